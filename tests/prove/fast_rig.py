"""What proofs of speed measure on: gateways alone on one core, everything else on another, and intervals of ratios.

The cores are those of bench.cores: the gateway has one; the provider, the callers, PostgreSQL, Redis and the proof
itself share another. Where we may (as root), gateways and those who measure run before whatever else this machine does.
"""

import asyncio
import math
import random
import secrets
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import asyncpg

from bench.asking import Address, answers, first_answer
from bench.cores import Cores, on_core, resident_mib
from bench.processes import running
from tests.chaos.postgres import PostgresServer, plain
from tests.chaos.redis import RedisServer
from tests.prove.fast_callers import Crew, Work, crew, hurry
from tests.prove.fast_company import CALLERS, Store, found
from tests.prove.server import Gateway, Process, free_port

CHAT = "/v1/chat/completions"
_FIRST_ANSWER_SECONDS = 30.0


async def hasten(process: Process) -> None:
    """Let a process that is being started run before others on its core, from its first moment, where we may say so.

    On Linux a session of its own is a group that is weighed as one: what `nice` says counts within it only.
    """
    while not process.alive:
        await asyncio.sleep(0)
    hurry(process.pid)


@dataclass(slots=True)
class House:
    """A gateway with its store and its callers' keys."""

    gateway: Gateway
    store: Store
    keys: list[str]
    cores: Cores

    @property
    def address(self) -> Address:
        """Where the first caller asks."""
        return Address(self.gateway.port, headers=(f"Authorization: Bearer {self.keys[0]}",))

    async def start(self, stack: AsyncExitStack) -> float:
        """Start on the gateway's core; seconds to the first answer of a model."""
        began = time.monotonic()
        with on_core(self.cores.gateway):
            hastening = asyncio.create_task(hasten(self.gateway.process))
            await stack.enter_async_context(self.gateway)
        await hastening
        await first_answer(self.address, seconds=_FIRST_ANSWER_SECONDS)
        return time.monotonic() - began

    def work(self, body: Path, *, seconds: float, callers: int = CALLERS, rate: float | None = None) -> Work:
        """Ordinary callers of this house."""
        return Work(self.gateway.port, CHAT, seconds, callers, self.keys, str(body), rate)

    def cpu_seconds(self) -> float:
        """What the gateway has used of its core, to the nanosecond."""
        return time.clock_gettime_ns((~self.gateway.process.pid << 3) | 2) / 1e9

    def resident_mib(self) -> float:
        """The memory it holds."""
        return resident_mib([self.gateway.process.pid])


@dataclass(frozen=True, slots=True)
class Rig:
    """The provider, the callers, and what makes houses."""

    workdir: Path
    cores: Cores
    provider_port: int
    callers: Crew
    stack: AsyncExitStack

    def ordinary(self) -> Path:
        """The file with an ordinary request, about 1 KB."""
        path = self.workdir / "ordinary.json"
        path.write_bytes(Address(0).body(stream=False))
        return path

    async def on_sqlite(self, name: str) -> House:
        """A founded house whose gateway does not run, with its store in a file."""
        folder = _made(self.workdir / name)
        gateway = Gateway(folder)
        return await self._founded(gateway, folder / "data" / "penstock.db")

    async def on_postgres(self, name: str, server: PostgresServer) -> House:
        """The same with a database of its own and a Redis of its own."""
        connection = await asyncpg.connect(plain(server.url))
        await connection.execute(f"CREATE DATABASE {name}")
        await connection.close()
        folder = _made(self.workdir / name)
        redis = await self.stack.enter_async_context(RedisServer(folder))
        url = f"{server.url.rpartition('/')[0]}/{name}"
        settings = {
            "PENSTOCK_DATABASE_URL": url,
            "PENSTOCK_REDIS_URL": redis.url,
            "PENSTOCK_KEY_PEPPER": secrets.token_hex(32),
            "PENSTOCK_MASTER_KEY": secrets.token_hex(32),
            "PENSTOCK_DEMO": "true",
        }
        return await self._founded(Gateway(folder, environment=settings), url)

    async def _founded(self, gateway: Gateway, store: Store) -> House:
        """Declared, and asked once by everybody, so that budgets have their periods."""
        async with gateway:
            house = House(gateway, store, await found(gateway, self.provider_port), self.cores)
            seen = await self.callers.do(house.work(self.ordinary(), seconds=0.2))
            assert len(seen.latency_ms) >= CALLERS, seen.errors
            assert not seen.errors, seen.errors
        return house


@asynccontextmanager
async def rig(workdir: Path) -> AsyncIterator[Rig]:
    """Everything but the houses; this process itself stays on the core beside while it lasts."""
    workdir.chmod(0o755)  # PostgreSQL may run as somebody else
    cores, port = Cores.choose(), free_port()
    async with AsyncExitStack() as stack:
        stack.enter_context(on_core(cores.beside))
        arguments = [sys.executable, "-m", "tests.prove.fast_provider", "--port", str(port)]
        provider = await stack.enter_async_context(running(arguments, workdir / "provider.log", core=cores.beside))
        hurry(provider.pid)
        callers = await stack.enter_async_context(crew(workdir, core=cores.beside))
        await answers(port)
        yield Rig(workdir, cores, port, callers, stack)


def percentile(values: Sequence[float], share: float) -> float:
    """The value that such a share of the others is not above."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)]


def sign_interval(values: Sequence[float]) -> tuple[float, float]:
    """An interval that holds the median with at least 95 %, whatever the distribution: order statistics (sign test)."""
    ordered, count = sorted(values), len(values)
    outside = 0
    while 2 * sum(math.comb(count, each) for each in range(outside + 1)) <= 0.05 * 2**count:
        outside += 1
    assert outside, "fewer than six values tell nothing with 95 %"
    return ordered[outside - 1], ordered[count - outside]


def bootstrap_interval(
    pairs: Sequence[tuple[float, float]], *, dice: random.Random, times: int = 2000
) -> tuple[float, float]:
    """95 % of the ratios of the medians, first to second, where the pairs are drawn anew so many times."""
    ratios = []
    for _ in range(times):
        drawn = dice.choices(pairs, k=len(pairs))
        ratios.append(median(first for first, _ in drawn) / median(second for _, second in drawn))
    ratios.sort()
    return ratios[int(0.025 * times)], ratios[int(0.975 * times) - 1]


def _made(folder: Path) -> Path:
    (folder / "data").mkdir(parents=True)
    return folder
