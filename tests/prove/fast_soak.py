"""Fast: a process that has run for long is the one that was started, and one that is asked too much does what it can.

The gateway has a core of its own; the provider, the callers, PostgreSQL and Redis share the other. Where we may, all of
them run before whatever else this machine does.
"""

import asyncio
import json
import os
import re
import sys
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from statistics import fmean, median
from typing import Any, NamedTuple

from bench.asking import Address, answers, set_mock
from bench.cores import Cores, cpu_seconds, resident_mib, tree
from bench.gateways import Place, Running, Start
from bench.penstock import on_postgres, on_sqlite
from bench.processes import Failed, output, running
from bench.scenarios import CHUNKS
from tests.prove.proofs import Bench, NotRun, Outcome, proof
from tests.prove.server import free_port

STREAMS = 300
DELAY_MS = 100
WARM_SECONDS, RAMP_SECONDS = 45.0, 15.0
SHORT_SECONDS, LONG_SECONDS = 180.0, 1800.0
OVERLOAD_SECONDS = 60.0
FACTOR = 3
GOOD_SECONDS = 1.0
SLOPE_MAX = 1.0
REFUSED_MS_MAX = 50.0
RECOVERY_MAX = 2.0
_GOODPUT_MIN = 0.9
_BLOCK_SECONDS = 15.0
_IDLE_SECONDS = 30  # longer than idle connections to providers are kept
_CLOSED = (64, 128, 256)
_OPEN = (0.9, 0.95, 1.0)
_BEFORE, _AFTER = 5.0, 10.0
_CALM = 0.5
_WINDOW = 0.1
_NORMAL_WINDOWS = 5
_LATE_MAX = 0.01
_STORE_CONNECTIONS_MAX = 21  # five of the ledger and eight each of the other two
_URGENCY = -10
# Student's t, two-sided 95 %, for so many degrees of freedom; more are nearly normal.
_T95 = (12.7, 4.3, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.2, 2.18, 2.16, 2.14, 2.13)


@dataclass(frozen=True, slots=True)
class Level:
    """What an idle process has open. store: connections to the store, a pool that is filled when there is need."""

    tasks: int
    descriptors: int
    store: int

    def is_within(self, other: "Level") -> bool:
        """Whether it is no more than the other; a pool may be as full as it can get."""
        is_less = self.tasks <= other.tasks and self.descriptors <= other.descriptors
        return is_less and self.store <= _STORE_CONNECTIONS_MAX


@dataclass(frozen=True, slots=True)
class Slope:
    """A least-squares slope and half of its 95 % interval."""

    value: float
    uncertainty: float

    @classmethod
    def of(cls, samples: list[tuple[float, float]], block: float = _BLOCK_SECONDS) -> "Slope":
        """Through the means of blocks, because neighbouring samples of memory say the same thing twice."""
        blocks: dict[int, list[tuple[float, float]]] = {}
        for at, value in samples:
            blocks.setdefault(int((at - samples[0][0]) // block), []).append((at, value))
        points = [(fmean(at for at, _ in each), fmean(v for _, v in each)) for each in blocks.values()]
        middle, level = fmean(at for at, _ in points), fmean(v for _, v in points)
        spread = sum((at - middle) ** 2 for at, _ in points)
        value = sum((at - middle) * (v - level) for at, v in points) / spread
        free = len(points) - 2
        rest = sum((v - level - value * (at - middle)) ** 2 for at, v in points)
        t = _T95[free - 1] if free <= len(_T95) else 2.1
        return cls(value, t * sqrt(rest / free / spread))


class Subject:
    """The gateway that is measured, and who asks it."""

    def __init__(self, bench: Bench, running: Running, cores: Cores, mock_port: int) -> None:
        assert running.pid is not None
        self.pid = running.pid
        self.address: Address = running.address
        self._bench = bench
        self._cores = cores
        self._mock_port = mock_port

    async def metric(self, name: str) -> float:
        """A sample's value, summed over its labels."""
        page = await answer_of(self.address.port, "/metrics")
        return sum(float(each) for each in re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", page, re.MULTILINE))

    async def level(self) -> Level:
        """What is open now; the connection that asks is in it, and its request's task."""
        tasks = int(await self.metric("penstock_tasks"))
        store = self._store_connections()
        return Level(tasks, len(list(Path(f"/proc/{self.pid}/fd").iterdir())) - store, store)

    def _store_connections(self) -> int:
        """Connections of the process to PostgreSQL, by its sockets' peers."""
        environment = Path(f"/proc/{self.pid}/environ").read_text()
        found = re.search(r"PENSTOCK_DATABASE_URL=[^\0]*?:(\d+)/", environment)
        if found is None:
            return 0
        peers = {}
        for line in Path(f"/proc/{self.pid}/net/tcp").read_text().splitlines()[1:]:
            told = line.split()
            peers[told[9]] = int(told[2].rpartition(":")[2], 16)
        links = list[str]()
        for each in Path(f"/proc/{self.pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # closed meanwhile
                links.append(str(each.readlink()))
        return sum(peers.get(link[8:-1]) == int(found[1]) for link in links if link.startswith("socket:["))

    async def idle_level(self, wanted: Level | None = None) -> Level:
        """The least that is open while nobody asks; at once, where no more than is wanted."""
        seen = await self.level()
        for _ in range(_IDLE_SECONDS):
            if wanted is not None and seen.is_within(wanted):
                break
            await asyncio.sleep(1)
            now = await self.level()
            seen = Level(min(seen.tasks, now.tasks), min(seen.descriptors, now.descriptors), now.store)
        return seen

    def cpu(self) -> float:
        """Seconds of the core that it has used."""
        return cpu_seconds(tree(self.pid))

    async def mock(self, **manner: int) -> None:
        """Tell the provider how to answer."""
        await set_mock(self._mock_port, **manner)

    async def load(self, module: str, *, stream: bool = False, **options: object) -> Any:
        """Run a load in a process of its own on the core beside; what it saw."""
        body = self._bench.workdir / f"{module.rpartition('.')[2]}.json"
        body.write_bytes(self.address.body(stream=stream))
        arguments = [sys.executable, "-m", module, "--port", str(self.address.port), "--body", str(body)]
        arguments += [part for header in self.address.headers for part in ("--header", header)]
        arguments += [part for name, value in options.items() for part in (f"--{name}", str(value))]
        hurrying = asyncio.create_task(hurry_children())
        try:
            return json.loads(await output(arguments, body.with_suffix(".log"), core=self._cores.beside))
        finally:
            hurrying.cancel()

    async def offered(self, plan: str) -> list[dict[str, Any]]:
        """Offer requests at the rates of a plan; each phase as open_loop tells it."""
        seen = self._bench.workdir / "seen.json"
        await self.load("tests.prove.open_loop", plan=plan, seen=seen)
        return list(json.loads(seen.read_text()))


async def answer_of(port: int, path: str) -> str:
    """A page, over a connection that is closed with it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: proof\r\nConnection: close\r\n\r\n".encode())
    page = (await reader.read()).decode()
    writer.close()
    return page


async def hurry_children() -> None:
    """Let what this proof has started run before others, where we may."""
    await asyncio.sleep(0.2)
    for pid in tree(os.getpid())[1:]:
        with suppress(OSError):
            Path(f"/proc/{pid}/autogroup").write_text(str(_URGENCY))
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, pid, _URGENCY)


async def started(stack: AsyncExitStack, bench: Bench, start: Start, name: str) -> Subject:
    """A gateway with its provider."""
    cores = Cores.choose()
    folder = bench.workdir / name
    folder.mkdir(mode=0o755)
    bench.workdir.chmod(0o755)
    mock_port = free_port()
    mock = [sys.executable, "-m", "bench.mock", "--port", str(mock_port)]
    await stack.enter_async_context(running(mock, folder / "mock.log", core=cores.beside))
    await answers(mock_port)
    try:
        ours = await stack.enter_async_context(start(Place(folder, mock_port, cores)))
    except Failed as error:
        raise NotRun(str(error)) from error
    await hurry_children()
    return Subject(bench, ours, cores, mock_port)


async def soak(bench: Bench, subject: Subject, seconds: float) -> bool:
    """Streams with churn, then quiet: whether memory, tasks and descriptors are where they were."""
    await subject.mock(delay_ms=DELAY_MS, chunks=CHUNKS)
    await subject.load("tests.prove.churn", stream=True, streams=STREAMS, seconds=WARM_SECONDS, seed=bench.seed + 1)
    idle = await subject.idle_level()
    samples: list[tuple[float, float]] = []

    async def watch() -> None:
        began = asyncio.get_running_loop().time()
        while True:
            await asyncio.sleep(1)
            samples.append((asyncio.get_running_loop().time() - began, resident_mib([subject.pid])))

    watching = asyncio.create_task(watch())
    ended = await subject.load(
        "tests.prove.churn", stream=True, streams=STREAMS, seconds=RAMP_SECONDS + seconds, seed=bench.seed
    )
    watching.cancel()
    kept = [(at, mib) for at, mib in samples if RAMP_SECONDS <= at <= RAMP_SECONDS + seconds]
    slope = Slope.of(kept)
    after = await subject.idle_level(idle)
    steep, unsure = slope.value * 600, slope.uncertainty * 600
    bench.note(f"streams: {ended}; memory {kept[0][1]:.1f} to {kept[-1][1]:.1f} MiB; idle {idle}, afterwards {after}")
    bench.figure("streams", sum(ended.values()))
    bench.figure("MiB per 10 min", f"{steep:.2f} +- {unsure:.2f} over {seconds / 60:g} min")
    bench.figure("tasks idle/after", f"{idle.tasks}/{after.tasks}")
    bench.figure("descriptors idle/after", f"{idle.descriptors}/{after.descriptors}")
    bench.figure("to the store", f"{idle.store}/{after.store}")
    is_whole = set(ended) <= {"whole", "left"} and ended["left"] > 0.05 * ended["whole"]
    return is_whole and steep + unsure < SLOPE_MAX and after.is_within(idle)


class Best(NamedTuple):
    """The best rates. open: of requests that come whatever the answers; closed: of callers who wait for each."""

    open: float
    closed: float


async def best(subject: Subject) -> Best:
    """What the gateway can do: over few connections that wait, then over as many as in the overload, about as much."""
    waiting = [await subject.load("bench.load", connections=each, seconds=5) for each in _CLOSED]
    closed = max(seen["per_second"] for seen in waiting)
    offered = [(await subject.offered(f"5:{share * closed:.0f}"))[0] for share in _OPEN]
    return Best(max(len(_took(each, 200, below=GOOD_SECONDS * 1e3)) / 5 for each in offered), closed)


async def overload(bench: Bench, subject: Subject, store: str) -> bool:
    """The best rate first; then three times that, between two spells of half of it; then the best rate again.

    On a machine with other work the first may not have been the best.
    """
    await subject.mock(delay_ms=0)
    await subject.load("bench.load", connections=64, seconds=3)
    first = await best(subject)
    rates = (_CALM * first.open, FACTOR * first.open, _CALM * first.open)
    plan = ",".join(f"{s}:{r:.0f}" for s, r in zip((_BEFORE, OVERLOAD_SECONDS, _AFTER), rates, strict=True))
    cpu = subject.cpu()
    before, over, after = await subject.offered(plan)
    cpu = subject.cpu() - cpu
    again = await best(subject)
    peak, closed = max(first.open, again.open), max(first.closed, again.closed)
    return judged(bench, store, Overload(peak, closed, cpu, before, over, after))


@dataclass(frozen=True, slots=True)
class Overload:
    """What was seen; each phase as open_loop tells it.

    closed: the rate of callers who wait for each answer. cpu: seconds that the gateway took for the whole plan.
    """

    peak: float
    closed: float
    cpu: float
    before: dict[str, Any]
    over: dict[str, Any]
    after: dict[str, Any]

    @property
    def goodput(self) -> float:
        """Answers in good time per second of overload."""
        return len(_took(self.over, 200, below=GOOD_SECONDS * 1e3)) / OVERLOAD_SECONDS

    @property
    def refused_ms(self) -> list[float]:
        """How long refusals took, in order."""
        return _took(self.over, 503)

    @property
    def others(self) -> int:
        """Requests that were neither answered nor properly refused."""
        phases = (self.before, self.over, self.after)
        odd = sum(status not in (200, 503) for phase in phases for _, _, status in phase["ended"])
        return odd + sum(sum(phase["faults"].values()) for phase in phases)

    @property
    def recovery(self) -> float:
        """Seconds from the overload's end to the first half second in which every window is as it was before it."""
        normal_ms = 2 * median(_took(self.before, 200))
        windows: dict[int, list[tuple[float, int]]] = {}
        for at, ms, status in self.after["ended"]:
            windows.setdefault(int(at / _WINDOW), []).append((ms, status))

        def is_normal(number: int) -> bool:
            seen = windows.get(number, [])
            return bool(seen) and all(s == 200 for _, s in seen) and median(ms for ms, _ in seen) <= normal_ms

        runs = (at for at in range(len(windows)) if all(is_normal(at + more) for more in range(_NORMAL_WINDOWS)))
        return next(runs, len(windows)) * _WINDOW

    @property
    def late(self) -> float:
        """The share of requests that the load itself sent late."""
        return self.over["late"] / max(1, len(self.over["ended"]))


def _took(phase: dict[str, Any], status: int, below: float = float("inf")) -> list[float]:
    """Milliseconds of the requests that ended so, in order."""
    return sorted(ms for _, ms, s in phase["ended"] if s == status and ms < below)


def judged(bench: Bench, store: str, seen: Overload) -> bool:
    """Whether the overload went as it must; raises NotRun where the load was the limit."""
    if seen.late > _LATE_MAX:
        raise NotRun(f"the load sent {seen.late:.0%} of its requests late: its core had other work")
    refused = seen.refused_ms
    p99 = refused[len(refused) * 99 // 100] if refused else float("inf")
    share = seen.goodput / seen.peak
    bench.figure(f"{store}: peak/s", round(seen.peak))
    bench.figure("goodput at 3x", f"{share:.1%} of it, {seen.goodput / seen.closed:.1%} of a closed loop's")
    bench.figure("refused", len(refused))
    bench.figure("503 p50/p99 ms", f"{median(refused):.1f}/{p99:.1f}" if refused else "none")
    bench.figure("recovery s", f"{seen.recovery:.1f}")
    ok = _took(seen.over, 200)
    bench.note(
        f"{store}: answered in {median(ok):.0f} ms (p50), {ok[len(ok) * 99 // 100]:.0f} (p99); "
        f"{seen.others} neither answered nor refused; load busy {seen.over['cpu_share']:.0%}, late {seen.late:.2%}; "
        f"the gateway took {seen.cpu:.1f} s of CPU"
    )
    is_met = share >= _GOODPUT_MIN and p99 < REFUSED_MS_MAX and seen.recovery < RECOVERY_MAX
    return is_met and bool(refused) and not seen.others


@proof(
    "fast.soak",
    what="300 streams with churn, one in ten hangs up, on PostgreSQL + Redis (short: 3 minutes, LONG: 30); then three "
    "times what one core can do for 60 s, on PostgreSQL + Redis and on SQLite",
    must="memory's slope with its 95 % interval below 1 MiB per 10 min, tasks and descriptors back to idle; goodput >= "
    "90 % of peak, refusals are 503 with retry-after in < 50 ms (p99), normal latency < 2 s after the end",
    seconds_max=2700.0,
)
async def soaked(bench: Bench) -> Outcome:
    """Both stores; the soak on the larger one."""
    verdicts: list[bool] = []
    async with AsyncExitStack() as stack:
        subject = await started(stack, bench, on_postgres, "postgres")
        verdicts.append(await soak(bench, subject, LONG_SECONDS if bench.long else SHORT_SECONDS))
        verdicts.append(await overload(bench, subject, "PostgreSQL"))
    async with AsyncExitStack() as stack:
        subject = await started(stack, bench, on_sqlite, "sqlite")
        verdicts.append(await overload(bench, subject, "SQLite"))
    return Outcome(all(verdicts))
