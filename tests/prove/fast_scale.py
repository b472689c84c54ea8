"""Fast: what a request costs does not depend on how much there is beside it."""

import asyncio
from dataclasses import dataclass
from statistics import median

from bench.cores import on_core
from tests.chaos.postgres import PostgresServer
from tests.prove.fast_callers import Crew, Work, crew
from tests.prove.fast_company import Size, enlarge
from tests.prove.fast_rig import House, Rig, rig, sign_interval
from tests.prove.proofs import Bench, NotRun, Outcome, proof

_PAIRS = 15
_WINDOW_SECONDS = 1.5
_CALLERS = 32
_LAG_ROUNDS = 5
_LAG_SECONDS = 1.5
_PROBES_PER_SECOND = 400.0
_CHANGES = 100


@dataclass(slots=True)
class Found:
    """What one store's pair of houses came to."""

    start_seconds: float
    start_small_seconds: float
    more_mib: float
    cost: tuple[float, float, float]
    lag_ms: float
    quiet_ms: float

    @property
    def met(self) -> bool:
        """Whether each figure is within its bound."""
        return self.start_seconds <= 5 and self.more_mib <= 120 and self.cost[2] < 1.10 and self.lag_ms <= 20

    def __str__(self) -> str:
        middle, low, high = self.cost
        return (
            f"start {self.start_seconds:.2f} s (small {self.start_small_seconds:.2f}), {self.more_mib:+.0f} MiB, "
            f"cost x{middle:.3f} [{low:.3f}, {high:.3f}], worst lag {self.lag_ms:.1f} ms while {_CHANGES} keys change "
            f"({self.quiet_ms:.1f} while none does)"
        )


@proof(
    "fast.scale",
    what="100,000 keys, 1,000 apps, 1,000 policies, 10 million ledger entries (short: 1 million) against the small "
    "case, SQLite and PostgreSQL + Redis, in turn on one core: start, memory, CPU per request of 15 interleaved pairs "
    "(median, 95 % by the sign test), worst round trip of a probe 400 times a second (median of 5 rounds)",
    must="start <= 5 s, +120 MiB; 95 % interval of the cost below 1.10; worst loop lag 20 ms while 100 keys change",
    best_of=2,
    seconds_max=420,
)
async def scale(bench: Bench) -> Outcome:
    """Two houses on each store, one of them large."""
    size = Size(keys=100_000, apps=1_000, policies=1_000, entries=10_000_000 if bench.long else 1_000_000)
    bench.figure("entries", f"{size.entries:,}")
    met = True
    for store in ("sqlite", "postgres"):
        folder = bench.workdir / store
        folder.mkdir()
        async with rig(folder) as built:
            if built.cores.shared:
                raise NotRun("there is but one core")
            found = await _measure(built, store, size)
        met = met and found.met
        bench.figure(store, str(found))
    return Outcome(met)


async def _measure(built: Rig, store: str, size: Size) -> Found:
    houses = await _houses(built, store)
    small, large = houses
    await enlarge(large.store, size)
    starts = [await house.start(built.stack) for house in houses]
    await asyncio.sleep(2)
    resident = [house.resident_mib() for house in houses]
    cost = await _costs(built, small, large)
    probes = await built.stack.enter_async_context(crew(built.workdir, core=built.cores.beside))
    lags = [await _lags(probes, large) for _ in range(_LAG_ROUNDS)]
    return Found(
        start_seconds=starts[1],
        start_small_seconds=starts[0],
        more_mib=resident[1] - resident[0],
        cost=(median(cost), *sign_interval(cost)),
        lag_ms=median(changing for _, changing in lags),
        quiet_ms=median(quiet for quiet, _ in lags),
    )


async def _houses(built: Rig, store: str) -> tuple[House, House]:
    if store == "sqlite":
        return await built.on_sqlite("small"), await built.on_sqlite("large")
    with on_core(built.cores.beside):
        server = await built.stack.enter_async_context(PostgresServer(built.workdir))
    return await built.on_postgres("small", server), await built.on_postgres("large", server)


async def _costs(built: Rig, small: House, large: House) -> list[float]:
    """The large house's CPU per request over the small one's, pair by pair; who begins changes from pair to pair."""
    body = built.ordinary()

    async def cost(house: House, seconds: float) -> float:
        before = house.cpu_seconds()
        seen = await built.callers.do(house.work(body, seconds=seconds, callers=_CALLERS))
        assert not seen.errors, seen.errors
        return (house.cpu_seconds() - before) / len(seen.latency_ms)

    ratios = []
    for number in range(-2, _PAIRS):
        order = (small, large) if number % 2 else (large, small)
        costs = {id(house): await cost(house, _WINDOW_SECONDS) for house in order}
        if number >= 0:  # the first two warm up
            ratios.append(costs[id(large)] / costs[id(small)])
    return ratios


async def _lags(probes: Crew, house: House) -> tuple[float, float]:
    """The worst round trip of a probe while nothing changes, and while keys do, in milliseconds."""
    work = Work(house.gateway.port, "/healthz", _LAG_SECONDS, callers=2, rate=_PROBES_PER_SECOND)
    quiet = await probes.do(work)
    probing = asyncio.create_task(probes.do(work))
    async with asyncio.timeout(60):
        for _ in range(_CHANGES // 2):
            made = await house.gateway.issue_key(name="changing", app="fast-app-0")
            await house.gateway.ask("DELETE", f"/api/keys/{made.id}", key=house.gateway.quickstart.admin_key)
    changing = await probing
    assert not quiet.errors, quiet.errors
    assert not changing.errors, changing.errors
    return max(quiet.latency_ms), max(changing.latency_ms)
