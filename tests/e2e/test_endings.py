"""Turns that somebody else ended, told by the trail for what they were, and a store that somebody else keeps locked."""

import asyncio
import json
import signal
import sqlite3
import time
from pathlib import Path

from tests.prove.books import open_holds
from tests.prove.company import chat, chat_and_leave, found_company, scripted
from tests.prove.server import Gateway, Simulator

HELLO = [{"role": "user", "content": "Hello"}]
LONG = scripted(tokens=200, pace_ms=50)


async def _ending(gateway: Gateway) -> tuple[str, int, str, str]:
    """How the only turn ended: outcome, status and code of its record, and the reason on its entry."""
    async with asyncio.timeout(5):
        while open_holds(gateway.data_dir):
            await asyncio.sleep(0.02)
    connection = sqlite3.connect(gateway.data_dir / "penstock.db")
    try:
        [[body]] = connection.execute("SELECT body FROM audit WHERE event = 'turn.ended'").fetchall()
        [[reason]] = connection.execute("SELECT reason FROM entries WHERE step = 1").fetchall()
    finally:
        connection.close()
    told = json.loads(body)
    return told["outcome"], told["status"], told["code"], reason


async def _answering(simulator: Simulator) -> None:
    async with asyncio.timeout(5):
        while not (await simulator.stats())["answering"]:
            await asyncio.sleep(0.02)


async def test_a_stream_cut_by_a_revocation_is_told_as_that(gateway: Gateway, simulator: Simulator) -> None:
    await found_company(gateway, simulator)
    made = await gateway.issue_key(name="short", app="proof-app")
    stream = asyncio.create_task(chat(gateway, made.key, LONG, stream=True))
    await _answering(simulator)
    await gateway.ask("DELETE", f"/api/keys/{made.id}", key=gateway.quickstart.admin_key)
    await stream
    assert await _ending(gateway) == ("cut", 401, "invalid_api_key", "invalid_api_key")


async def test_a_caller_who_leaves_is_told_as_gone(gateway: Gateway, simulator: Simulator) -> None:
    key = await found_company(gateway, simulator)
    await chat_and_leave(gateway, key, LONG, after_bytes=1, stream=True)
    assert await _ending(gateway) == ("caller_gone", 499, "caller_gone", "caller_gone")


async def test_a_stream_cut_by_the_end_of_the_drain_is_told_as_a_stop(simulator: Simulator, tmp_path: Path) -> None:
    async with Gateway(tmp_path, environment={"PENSTOCK_DRAIN_SECONDS": "1"}) as gateway:
        key = await found_company(gateway, simulator)
        stream = asyncio.create_task(chat(gateway, key, LONG, stream=True))
        await _answering(simulator)
        assert await gateway.process.stop(signal.SIGTERM, seconds=20) == 0
        assert '"shutting_down"' in (await stream).events[-1]
        assert await _ending(gateway) == ("cut", 503, "shutting_down", "shutting_down")


async def test_a_locked_store_answers_503_in_time_and_is_used_again_once_it_is_free(gateway: Gateway) -> None:
    key, model = gateway.quickstart.app_key, "sandbox-priced"

    async def ready() -> int:
        async with gateway.session.get(f"{gateway.url}/readyz") as answer:
            return answer.status

    assert (await chat(gateway, key, HELLO, model=model)).status == 200
    rival = sqlite3.connect(gateway.data_dir / "penstock.db", isolation_level=None)
    rival.execute("BEGIN IMMEDIATE")
    try:
        for wait in (0, 0.7, 1.4):  # at whatever point of its own tries the ledger is asked
            await asyncio.sleep(wait)
            asked = time.monotonic()
            refused = await chat(gateway, key, HELLO, model=model)
            assert (refused.status, refused.code) == (503, "store_unavailable")
            assert time.monotonic() - asked < 2.5
            assert await ready() == 503
    finally:
        rival.execute("ROLLBACK")
        rival.close()
    async with asyncio.timeout(5):
        while await ready() != 200:
            await asyncio.sleep(0.05)
    assert (await chat(gateway, key, HELLO, model=model)).status == 200
