"""Two gateway processes on one PostgreSQL and one Redis, told as one story, because starting them takes longest."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest

from tests.chaos.postgres import PostgresServer, plain
from tests.chaos.proxy import Proxy
from tests.chaos.redis import RedisServer
from tests.chaos.replicas import Replicas
from tests.conftest import skipped_where_not_run
from tests.prove.company import Answer, chat, scripted
from tests.prove.server import Gateway, Refused, Simulator

pytestmark = pytest.mark.postgres

HELLO = scripted(tokens=16)
BUDGET = 'budgets: [{{name: b, scope: department, of: proof, period: month, limit_usd: "{limit}"}}]'


@dataclass
class Deployment:
    """Two processes, what they depend on, and a way to take PostgreSQL away."""

    postgres: PostgresServer
    network: Proxy
    redis: RedisServer
    replicas: Replicas
    key: str

    @property
    def two(self) -> list[Gateway]:
        return self.replicas.gateways

    async def ask(self, gateway: Gateway) -> Answer:
        return await chat(gateway, self.key, HELLO, max_tokens=32)

    async def figure(self, sql: str) -> int:
        """One number that the books say, asked past the network."""
        connection = await asyncpg.connect(plain(self.postgres.url))
        try:
            return int(await connection.fetchval(sql) or 0)
        finally:
            await connection.close()

    async def is_exact(self) -> bool:
        """Whether the budget says what its entries say, within its limit, and nothing is held."""
        spent = await self.figure("SELECT sum(amount_nano_usd) FROM entries WHERE kind IN ('post', 'correction')")
        posted = await self.figure("SELECT sum(posted_nano_usd) FROM budget_periods")
        held = await self.figure("SELECT sum(held_nano_usd) FROM budget_periods")
        opened = await self.figure("SELECT count(*) FROM open_holds")
        return posted == spent and held == opened == 0


@asynccontextmanager
async def deployed(workdir: Path) -> AsyncIterator[Deployment]:
    with skipped_where_not_run():
        postgres, redis = PostgresServer(workdir), RedisServer(workdir)
    async with postgres, redis, Simulator(workdir) as simulator, Proxy(workdir, postgres.port) as network:
        url = postgres.url_through(network.port)
        async with Replicas(workdir, database_url=url, redis_url=redis.url, count=2) as replicas:
            yield Deployment(postgres, network, redis, replicas, await replicas.found(simulator))


async def test_two_processes_share_money_and_changes_and_outlive_what_they_depend_on(tmp_path: Path) -> None:
    async with deployed(tmp_path) as deployment:
        await _money_is_exact_over_both(deployment)
        await _money_and_changes_outlive_redis(deployment)
        await _an_unreachable_store_refuses_shortly_and_resumes(deployment)
        await _until(deployment.is_exact)


async def _money_is_exact_over_both(deployment: Deployment) -> None:
    limit = 2_000_000
    await deployment.replicas.admin.apply(BUDGET.format(limit=f"{limit / 10**9:.9f}"))
    await asyncio.sleep(1.5)  # a process takes up to two polls to hear of a budget
    while True:
        answers = await asyncio.gather(*(deployment.ask(gateway) for gateway in deployment.two * 10))
        statuses = {answer.status for answer in answers}
        assert statuses <= {200, 402, 429}, statuses
        if statuses == {402}:
            break
    await _until(deployment.is_exact)
    assert 0.9 * limit <= await deployment.figure("SELECT sum(posted_nano_usd) FROM budget_periods") <= limit


async def _money_and_changes_outlive_redis(deployment: Deployment) -> None:
    await deployment.redis.kill9()
    for gateway in deployment.two:
        assert (await deployment.ask(gateway)).code == "budget_exhausted"
    one, other = deployment.two
    await one.apply(BUDGET.format(limit=1))
    began = time.monotonic()
    while (answer := await deployment.ask(other)).status != 200:
        assert answer.code == "budget_exhausted"
        assert time.monotonic() - began < 2.5, "changes are found by polling"
        await asyncio.sleep(0.05)
    spare = await one.issue_key(name="spare", app="proof-app")
    await deployment.replicas.agree(spare.key)
    await one.ask("DELETE", f"/api/keys/{spare.id}", key=one.quickstart.admin_key)
    await asyncio.sleep(2)
    assert (await chat(other, spare.key, HELLO)).status == 401
    answers = await asyncio.gather(*(deployment.ask(gateway) for gateway in deployment.two * 5))
    assert {answer.status for answer in answers} == {200}
    await _until(deployment.is_exact)


async def _an_unreachable_store_refuses_shortly_and_resumes(deployment: Deployment) -> None:
    for take_away in (deployment.network.black_hole, deployment.network.refuse):
        await take_away()
        for gateway in deployment.two * 2:
            began = time.monotonic()
            answer = await deployment.ask(gateway)
            assert (answer.status, answer.code) == (503, "store_unavailable")
            with pytest.raises(Refused, match="503"):
                await gateway.ask("GET", "/v1/requests/req_x", key=deployment.key)
            assert time.monotonic() - began < 2 * 2
        for gateway in deployment.two:
            async with gateway.session.get(f"{gateway.url}/readyz") as ready:
                assert ready.status == 503
        await deployment.network.let_pass()
        for gateway in deployment.two:
            await _until(lambda gateway=gateway: _serves(deployment, gateway))


async def _serves(deployment: Deployment, gateway: Gateway) -> bool:
    return (await deployment.ask(gateway)).status == 200


async def _until(holds) -> None:
    async with asyncio.timeout(5):
        while not await holds():
            await asyncio.sleep(0.1)
