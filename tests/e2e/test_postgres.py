"""The same server on PostgreSQL, from one set of tables."""

import asyncio
import json
from pathlib import Path

import pytest
from sqlalchemy import text

from kernel.db import make_engine
from tests.prove.company import chat
from tests.prove.server import Gateway, StartFailed

HELLO = [{"role": "user", "content": "Hello"}]
SECRETS = {"PENSTOCK_KEY_PEPPER": "p" * 32, "PENSTOCK_MASTER_KEY": "ab" * 32, "PENSTOCK_DEMO": "true"}

pytestmark = pytest.mark.postgres


async def test_a_turn_a_budget_and_a_kill_on_postgresql(postgres_url: str, tmp_path: Path) -> None:
    environment = {**SECRETS, "PENSTOCK_DATABASE_URL": postgres_url}
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


async def test_a_second_process_without_redis_does_not_start(postgres_url: str, tmp_path: Path) -> None:
    environment = {**SECRETS, "PENSTOCK_DATABASE_URL": postgres_url}
    (tmp_path / "second").mkdir()
    async with Gateway(tmp_path, environment=environment):
        with pytest.raises(StartFailed, match="PENSTOCK_REDIS_URL"):
            async with Gateway(tmp_path / "second", environment=environment):
                pass


async def test_without_shared_secrets_it_does_not_start(postgres_url: str, tmp_path: Path) -> None:
    with pytest.raises(StartFailed, match="PENSTOCK_KEY_PEPPER"):
        async with Gateway(tmp_path, environment={"PENSTOCK_DATABASE_URL": postgres_url}):
            pass
