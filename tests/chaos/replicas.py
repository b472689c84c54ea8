"""Several gateway processes on one PostgreSQL and one Redis, and a client that goes round them."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import aiohttp

from tests.chaos.postgres import PostgresServer
from tests.chaos.redis import RedisServer
from tests.prove.company import Answer, chat, found_company
from tests.prove.server import Gateway, Simulator


class Replicas:
    """So many processes that share a store, secrets and Redis; each has a data folder of its own.

    The first is started before the others, because it is the one that writes quickstart.json.
    """

    def __init__(
        self,
        workdir: Path,
        *,
        database_url: str,
        redis_url: str,
        count: int = 3,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self.database_url = database_url
        self.environment = {
            "PENSTOCK_DATABASE_URL": database_url,
            "PENSTOCK_KEY_PEPPER": secrets.token_hex(32),
            "PENSTOCK_MASTER_KEY": secrets.token_hex(32),
            "PENSTOCK_DEMO": "true",
            "PENSTOCK_REDIS_URL": redis_url,
            **(settings or {}),
        }
        folders = [workdir / f"replica-{number}" for number in range(count)]
        self.gateways = [Gateway(_made(folder), environment=self.environment) for folder in folders]
        self._turn = 0

    @property
    def live(self) -> list[Gateway]:
        """Those that run, or at least have not ended."""
        return [gateway for gateway in self.gateways if gateway.process.alive]

    @property
    def admin(self) -> Gateway:
        """A live one, for administration."""
        return self.live[0]

    @property
    def logs(self) -> str:
        """Everything all of them wrote."""
        return "".join(gateway.logs for gateway in self.gateways)

    def next(self) -> Gateway:
        """The next live one in turn."""
        self._turn += 1
        live = self.live
        return live[self._turn % len(live)]

    async def chat(self, key: str, messages: list[dict[str, str]], **members: object) -> Answer:
        """One chat request at whoever is next; one that takes no connection is passed over, as a balancer does."""
        first = self.next()
        for gateway in [first, *(other for other in self.live if other is not first)] * 3:
            try:
                return await chat(gateway, key, messages, **members)
            except aiohttp.ClientConnectorError:
                await asyncio.sleep(0.05)
        return await chat(self.next(), key, messages, **members)

    async def kill(self, number: int) -> None:
        """kill -9 of one."""
        await self.gateways[number].kill()

    async def terminate(self, number: int, *, seconds: float = 40) -> int:
        """SIGTERM to one, and its exit status."""
        return await self.gateways[number].terminate(seconds=seconds)

    async def restart(self, number: int) -> None:
        """Start one that has ended."""
        await self.gateways[number].start()

    async def found(self, simulator: Simulator, more: str = "", *, base_url: str | None = None) -> str:
        """Declare the company and return a key that every process knows."""
        key = await found_company(self.admin, simulator, more, base_url=base_url)
        await self.agree(key)
        return key

    async def agree(self, key: str, model: str = "sim-small", *, seconds: float = 10) -> None:
        """Wait until every live process lets this key use this model."""
        async with asyncio.timeout(seconds):
            for gateway in self.live:
                while not await _offers(gateway, key, model):
                    await asyncio.sleep(0.05)

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as opening:
            first, *others = self.gateways
            await opening.enter_async_context(first)
            await asyncio.gather(*(opening.enter_async_context(other) for other in others))
            for other in others:
                other.quickstart = first.quickstart
            self._opened = opening.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        # A proof is over: what is still open in them is nobody's any more.
        for gateway in self.live:
            await gateway.kill()
        await self._opened.aclose()


@dataclass(frozen=True, slots=True)
class Cluster:
    """Everything of one proof: a store, a Redis, the provider and the processes between them."""

    postgres: PostgresServer
    redis: RedisServer
    simulator: Simulator
    replicas: Replicas
    key: str

    @property
    def store(self) -> str:
        """The store's URL, straight, for whoever reads the books."""
        return self.postgres.url


@asynccontextmanager
async def cluster(
    workdir: Path, *, count: int = 3, on: Path | None = None, settings: Mapping[str, str] | None = None
) -> AsyncIterator[Cluster]:
    """All of it on 127.0.0.1, with the company declared; it is gone afterwards. on: the disk of the store."""
    async with (
        PostgresServer(workdir, on=on) as postgres,
        RedisServer(workdir) as redis,
        Simulator(workdir) as simulator,
    ):
        replicas = Replicas(workdir, database_url=postgres.url, redis_url=redis.url, count=count, settings=settings)
        async with replicas:
            yield Cluster(postgres, redis, simulator, replicas, await replicas.found(simulator))


async def _offers(gateway: Gateway, key: str, model: str) -> bool:
    headers = {"Authorization": f"Bearer {key}"}
    async with gateway.session.get(f"{gateway.url}/v1/models", headers=headers) as answer:
        return answer.status == 200 and any(row["id"] == model for row in (await answer.json())["data"])


def _made(folder: Path) -> Path:
    (folder / "data").mkdir(parents=True)
    return folder
