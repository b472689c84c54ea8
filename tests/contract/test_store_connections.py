"""Whose connections are whose: reports never make a turn, a revocation or a lease wait."""

import asyncio
import time
from pathlib import Path

import pytest
from sqlalchemy import text

from gateway.schema import migrate
from gateway.settings import Settings
from gateway.wiring import build
from governance import NewKey
from kernel import AuditRecord, Role

pytestmark = pytest.mark.postgres


async def test_reports_and_requests_about_turns_keep_no_commit_and_no_change_waiting(
    on_postgres: dict[str, str], tmp_path: Path
) -> None:
    settings = Settings(data_dir=tmp_path, redis_url="redis://127.0.0.1:9/0", **on_postgres)
    platform = build(settings)
    await migrate(platform.engine)
    async with platform:
        created = await platform.keys.create(NewKey("k", roles=frozenset({Role.PLATFORM_ADMIN})), "me")
        blocker = await platform.engine.connect()
        await blocker.execute(text("LOCK TABLE entries, audit IN ACCESS EXCLUSIVE MODE"))
        reports = [asyncio.create_task(platform.spend.budget_states()) for _ in range(3)]
        reports += [asyncio.create_task(platform.trail.of_turn("req_x")) for _ in range(20)]
        reports += [asyncio.create_task(platform.ledger.request("req_x")) for _ in range(20)]
        await asyncio.sleep(0.3)
        began = time.monotonic()
        await platform.ledger._store.beat("proc_x")
        assert await platform.edge.ready() == {"store": "ok", "redis": "away"}
        await platform.feed.catch_up()
        assert time.monotonic() - began < 0.5
        await blocker.rollback()
        await blocker.close()
        began = time.monotonic()
        await platform.ledger.record(AuditRecord("admin.x"))
        await platform.keys.revoke(created.id, "me")
        assert time.monotonic() - began < 0.5
        await asyncio.gather(*reports, return_exceptions=True)
