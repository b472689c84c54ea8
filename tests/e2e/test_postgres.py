"""The same server on PostgreSQL, from one set of tables."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import asyncpg
import pytest
from sqlalchemy import text

from gateway.ownership import _SERVING_LOCK, AlreadyServed, ServingLock
from kernel import StoreUnavailable
from kernel.db import make_engine
from tests.chaos.postgres import PostgresServer, plain
from tests.chaos.proxy import Proxy
from tests.prove.company import chat
from tests.prove.server import Gateway, Refused, StartFailed

HELLO = [{"role": "user", "content": "Hello"}]

pytestmark = pytest.mark.postgres


@pytest.fixture
def environment(on_postgres: dict[str, str]) -> dict[str, str]:
    """The same for a process of its own, which declares the demo."""
    return {f"PENSTOCK_{name.upper()}": value for name, value in on_postgres.items()} | {"PENSTOCK_DEMO": "true"}


async def test_a_turn_a_budget_and_a_kill_on_postgresql(
    environment: dict[str, str], postgres_url: str, tmp_path: Path
) -> None:
    async with Gateway(tmp_path, environment=environment) as gateway:
        key = gateway.quickstart.app_key
        answer = await chat(gateway, key, HELLO, model="sandbox-priced")
        told = await gateway.ask("GET", f"/v1/requests/{answer.headers['x-request-id']}", key=key)
        assert told["attempts"][0]["state"] == "posted"
        await gateway.apply('budgets: [{name: b, scope: app, of: demo-app, period: day, limit_usd: "0.0002"}]')
        while (last := await chat(gateway, key, HELLO, model="sandbox-priced")).status == 200:
            pass
        assert last.code == "budget_exhausted"
        slow = [{"role": "user", "content": 'sandbox: {"tokens": 500, "delay_ms": 20}'}]
        await gateway.apply("budgets: [{name: b, scope: app, of: demo-app, period: day, limit_usd: 1}]")
        stream = asyncio.create_task(chat(gateway, key, slow, model="sandbox-priced", stream=True))
        await asyncio.sleep(0.5)
        await gateway.kill()
        await asyncio.gather(stream, return_exceptions=True)
        await gateway.start()
        engine = make_engine(postgres_url)
        async with asyncio.timeout(30):
            while await _open_holds(engine):
                await asyncio.sleep(0.2)
        await engine.dispose()
        assert (await chat(gateway, key, HELLO, model="sandbox-priced")).status == 200
        verdict = await gateway.ask("GET", "/api/audit/verify", key=gateway.quickstart.admin_key)
        assert verdict["intact"], json.dumps(verdict)


async def _open_holds(engine) -> int:
    async with engine.connect() as connection:
        return (await connection.execute(text("SELECT count(*) FROM open_holds"))).scalar_one()


async def test_a_second_process_without_redis_does_not_start(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "second").mkdir()
    async with Gateway(tmp_path, environment=environment):
        with pytest.raises(StartFailed, match="PENSTOCK_REDIS_URL"):
            async with Gateway(tmp_path / "second", environment=environment):
                pass


async def until(true: Callable[[], bool], seconds: float) -> None:
    async with asyncio.timeout(seconds):
        while not true():
            await asyncio.sleep(0.01)


@pytest.fixture
async def opening() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


def lock_at(opening: AsyncExitStack, url: str, *, shared: bool = False) -> ServingLock:
    engine = make_engine(url, timeout_seconds=1)
    opening.push_async_callback(engine.dispose)
    lock = ServingLock(engine, shared=shared, timeout_seconds=1)
    opening.push_async_callback(lock.release)
    return lock


async def test_sole_lock_admits_nobody_beside_it_and_shared_ones_only_each_other(opening, postgres_url) -> None:
    first, second, sole = (lock_at(opening, postgres_url, shared=shared) for shared in (True, True, False))
    for lock in (first, second):
        await lock.take()
    with pytest.raises(AlreadyServed):
        await sole.take()
    await first.release()
    await second.release()
    await sole.take()
    assert [lock.is_held for lock in (first, second, sole)] == [False, False, True]
    with pytest.raises(AlreadyServed):
        await first.take()


async def rob(opening: AsyncExitStack, url: str) -> asyncpg.Connection:
    """A session that gets the lock in the very moment in which its holder's connection ends."""
    rival, admin = await asyncpg.connect(plain(url)), await asyncpg.connect(plain(url))
    for connection in (rival, admin):
        opening.push_async_callback(connection.close)
    locks = "SELECT pid FROM pg_locks JOIN pg_database d ON d.oid = database WHERE locktype = 'advisory' "
    locks += "AND d.datname = current_database() AND "
    waiting = asyncio.create_task(rival.execute(f"SELECT pg_advisory_lock({_SERVING_LOCK})"))
    async with asyncio.timeout(5):
        while await admin.fetchval(locks + "NOT granted") is None:
            await asyncio.sleep(0.01)
    await admin.execute("SELECT pg_terminate_backend($1)", await admin.fetchval(locks + "granted"))
    await waiting
    return rival


async def test_lock_that_another_got_lets_nobody_through_until_it_is_back(opening, postgres_url, caplog) -> None:
    lock = lock_at(opening, postgres_url)
    await lock.take()
    lock.require()
    rival = await rob(opening, postgres_url)
    await until(lambda: not lock.is_held, 0.5)  # it hears of it, long before it would look
    with pytest.raises(StoreUnavailable, match="lost its place"):
        lock.require()
    await asyncio.sleep(2.5)  # looks go by
    assert not lock.is_held
    await rival.close()
    await until(lambda: lock.is_held, 3)
    assert [record.levelname for record in caplog.records if "place" in record.message] == ["ERROR", "WARNING"]


async def test_lock_behind_a_silent_line_is_given_up_in_time_and_taken_again(
    opening, mortal_postgres: PostgresServer, tmp_path: Path
) -> None:
    server = mortal_postgres
    proxy = await opening.enter_async_context(Proxy(tmp_path, server.port))
    lock = lock_at(opening, server.url_through(proxy.port))
    await lock.take()
    await asyncio.sleep(2.5)
    assert lock.is_held
    await proxy.black_hole()
    await until(lambda: not lock.is_held, 3)
    await proxy.let_pass()
    await until(lambda: lock.is_held, 5)
    await server.kill9()
    await until(lambda: not lock.is_held, 0.5)
    await server.start()
    await until(lambda: lock.is_held, 5)


async def test_process_that_lost_its_place_refuses_turns_and_is_not_ready(
    opening, environment, postgres_url, tmp_path
) -> None:
    gateway = await opening.enter_async_context(Gateway(tmp_path, environment=environment))
    key = gateway.quickstart.app_key
    assert (await chat(gateway, key, HELLO, model="sandbox")).status == 200
    rival = await rob(opening, postgres_url)
    async with asyncio.timeout(0.5):  # PostgreSQL frees the lock a moment before it closes the connection
        while (refused := await chat(gateway, key, HELLO, model="sandbox")).status == 200:
            pass
    assert (refused.status, refused.code) == (503, "store_unavailable")
    with pytest.raises(Refused, match=r"503 .*not allowed"):
        await gateway.ask("GET", "/readyz", key=key)
    await rival.close()
    async with asyncio.timeout(5):
        while (await chat(gateway, key, HELLO, model="sandbox")).status != 200:
            await asyncio.sleep(0.05)
    assert (await gateway.ask("GET", "/readyz", key=key)) == {"store": "ok"}


async def test_without_shared_secrets_it_does_not_start(postgres_url: str, tmp_path: Path) -> None:
    with pytest.raises(StartFailed, match="PENSTOCK_KEY_PEPPER"):
        async with Gateway(tmp_path, environment={"PENSTOCK_DATABASE_URL": postgres_url}):
            pass
