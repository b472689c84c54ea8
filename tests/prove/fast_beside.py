"""Fast: whoever asks for something large, or a log that nobody reads, does not make the others wait."""

import asyncio
import fcntl
import json
import os
import random
import sys
import termios
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from urllib.parse import urlencode

from bench.cores import on_core
from tests.chaos.postgres import PostgresServer
from tests.prove.fast_callers import Crew, Seen, Work, crew
from tests.prove.fast_company import Size, enlarge
from tests.prove.fast_provider import TOOL_BYTES, tool_call
from tests.prove.fast_rig import CHAT, House, Rig, bootstrap_interval, percentile, rig
from tests.prove.proofs import Bench, NotRun, Outcome, proof

_PAIRS, _LONG_PAIRS = 12, 30
_WINDOW_SECONDS = 1.0
_RATE = 300.0
_CALLERS = 32
_PAUSE_SECONDS = 1.0  # no provider takes a prompt, or gives an answer, of that size within less
_RATIO_MAX = 1.3
_PROMPT_BYTES = 1_000_000
_SINK_TURNS = 12_000  # more than the lines that may wait for a sink
_PIPE_BYTES = 60_000

Beside = Callable[[float], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Case:
    """Something large for so many seconds: at the gateway, and around it, so that only the gateway's part differs."""

    name: str
    beside: Beside
    without: Beside


@dataclass(frozen=True, slots=True)
class Found:
    """The 99th percentile of the others with and without it: the medians of those of all windows.

    Pooled over all of them it would be that of the worst moments of a machine that does other things as well.
    """

    name: str
    with_ms: float
    without_ms: float
    low: float
    high: float

    @property
    def ratio(self) -> float:
        """How much longer the others wait."""
        return self.with_ms / self.without_ms

    def __str__(self) -> str:
        return (
            f"{self.name} x{self.ratio:.2f} [{self.low:.2f}, {self.high:.2f}] "
            f"({self.with_ms:.1f} / {self.without_ms:.1f} ms)"
        )


@proof(
    "fast.beside",
    what="a 200k-token prompt, a tool call of 4 MiB (asked, answered, streamed), a report over 10 million entries "
    "(short: 1 million) and a log sink that hangs, each again and again beside 200 requests a second; the gateway on "
    "one core, the ends, PostgreSQL and Redis on another; windows of 1 s in turn with the same thing done around the "
    "gateway (95 % by bootstrap over pairs of windows)",
    must="p99 of the others within 1.3x",
    best_of=2,
    seconds_max=600,
)
async def beside(bench: Bench) -> Outcome:
    """All cases on each store."""
    size = Size(keys=1_000, apps=1_000, policies=10, entries=10_000_000 if bench.long else 1_000_000)
    bench.figure("entries", f"{size.entries:,}")
    met = True
    for store in ("sqlite", "postgres"):
        folder = bench.workdir / store
        folder.mkdir()
        async with rig(folder) as built:
            if built.cores.shared:
                raise NotRun("there is but one core")
            everything = await _measure(built, bench, store, size)
        met = met and all(each.ratio <= _RATIO_MAX for each in everything)
        for each in everything:
            bench.figure(store, str(each))
    return Outcome(met)


async def _measure(built: Rig, bench: Bench, store: str, size: Size) -> list[Found]:
    server = None
    if store == "postgres":
        with on_core(built.cores.beside):
            server = await built.stack.enter_async_context(PostgresServer(built.workdir))
    make = built.on_sqlite if server is None else lambda name: built.on_postgres(name, server)
    house, hung = await make("house"), await make("hung")
    await enlarge(house.store, size)
    await house.start(built.stack)
    large = await built.stack.enter_async_context(crew(built.workdir, core=built.cores.beside, hurried=False))
    await _warm(built, house)
    rounds = _Rounds(built, bench)
    found = [await rounds.of(house, case) for case in _cases(built, house, large)]
    found.append(await rounds.of_sink(house, hung))
    return found


class _Rounds:
    """Windows in turn: with and without, and without and with."""

    def __init__(self, built: Rig, bench: Bench) -> None:
        self._built = built
        self._bench = bench
        self._pairs = _LONG_PAIRS if bench.long else _PAIRS

    async def of(self, house: House, case: Case) -> Found:
        """One case."""

        async def window(beside: Beside) -> Seen:
            seen, _ = await asyncio.gather(self._ordinary(house), beside(_WINDOW_SECONDS))
            return seen

        return await self._found(case.name, lambda: window(case.beside), lambda: window(case.without))

    async def of_sink(self, house: House, hung: House) -> Found:
        """Another gateway, whose log is a pipe that nobody reads."""
        with _hung_log(hung) as pipe:
            await hung.start(self._built.stack)
            turns = 0
            while turns < _SINK_TURNS:
                turns += len((await self._built.callers.do(hung.work(self._built.ordinary(), seconds=2))).latency_ms)
            waiting = _waiting(pipe)
            assert waiting > _PIPE_BYTES, f"the sink took everything: {waiting} bytes wait"
            found = await self._found("hung log", lambda: self._ordinary(hung), lambda: self._ordinary(house))
            self._bench.note(f"hung log: {hung.resident_mib():.0f} MiB after {turns} turns")
        return found

    async def _found(
        self, name: str, beside: Callable[[], Awaitable[Seen]], without: Callable[[], Awaitable[Seen]]
    ) -> Found:
        pairs = list[tuple[float, float]]()
        for number in range(self._pairs):
            if number % 2:
                first = _p99(await beside())
                pairs.append((first, _p99(await without())))
            else:
                second = _p99(await without())
                pairs.append((_p99(await beside()), second))
        low, high = bootstrap_interval(pairs, dice=random.Random(self._bench.seed))
        found = Found(name, median(first for first, _ in pairs), median(second for _, second in pairs), low, high)
        self._bench.note(str(found))
        return found

    async def _ordinary(self, house: House) -> Seen:
        work = house.work(self._built.ordinary(), seconds=_WINDOW_SECONDS, callers=_CALLERS, rate=_RATE)
        seen = await self._built.callers.do(work)
        assert not seen.errors, seen.errors
        return seen


def _cases(built: Rig, house: House, large: Crew) -> list[Case]:
    """Everything that is large, and how it is done without the gateway."""
    bodies = {
        "prompt of 1 MB": ("mock-model", [{"role": "user", "content": "the quick brown fox " * (_PROMPT_BYTES // 20)}]),
        "tool call of 4 MiB asked": ("mock-model", _with_tool_call()),
        "tool call of 4 MiB answered": ("tool-model", [{"role": "user", "content": "Write."}]),
        "tool call of 4 MiB streamed": ("tool-model", [{"role": "user", "content": "Write."}]),
    }
    cases = []
    for name, (model, messages) in bodies.items():
        body = {"model": model, "messages": messages, "max_tokens": 256}
        if name.endswith("streamed"):
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        path = built.workdir / f"{name.replace(' ', '-')}.json"
        path.write_text(json.dumps(body, separators=(",", ":")))
        around = f"/tool{CHAT}" if model == "tool-model" else CHAT
        cases.append(
            Case(
                name,
                _asking(large, house.gateway.port, CHAT, house.keys[-1], path),
                _asking(large, built.provider_port, around, "sk-mock", path),
            )
        )
    return [*cases, Case("report", _reporting(large, house), asyncio.sleep)]


def _with_tool_call() -> list[dict[str, object]]:
    return [
        {"role": "user", "content": "Write."},
        {"role": "assistant", "content": None, "tool_calls": [tool_call(TOOL_BYTES)]},
        {"role": "tool", "tool_call_id": "call_1", "content": "written"},
    ]


def _asking(large: Crew, port: int, path: str, key: str, body: Path) -> Beside:
    async def ask(seconds: float) -> None:
        work = Work(port, path, seconds, 1, [key], str(body), pause_seconds=_PAUSE_SECONDS)
        seen = await large.do(work)
        assert not seen.errors, seen.errors
        assert seen.latency_ms, "nothing large was answered"

    return ask


def _reporting(large: Crew, house: House) -> Beside:
    now = datetime.now(UTC)
    window = {"since": (now - timedelta(days=29)).isoformat(), "until": (now + timedelta(days=1)).isoformat()}
    path = "/api/spend?" + urlencode([*window.items(), ("by", "app"), ("by", "day")])

    async def report(seconds: float) -> None:
        seen = await large.do(Work(house.gateway.port, path, seconds, 1, [house.gateway.quickstart.admin_key]))
        assert not seen.errors, seen.errors

    return report


async def _warm(built: Rig, house: House) -> None:
    await built.callers.do(house.work(built.ordinary(), seconds=2))


@contextmanager
def _hung_log(house: House) -> Iterator[int]:
    """The log of a gateway that does not run yet is a pipe that nobody reads; what waits in it is all that it took."""
    path = house.gateway.data_dir.with_name("gateway.log")
    path.unlink()
    os.mkfifo(path)
    pipe = os.open(path, os.O_RDWR)  # open, so that whoever writes need not wait for a reader at once
    try:
        yield pipe
    finally:
        os.close(pipe)


def _waiting(pipe: int) -> int:
    told = fcntl.ioctl(pipe, termios.FIONREAD, bytes(4))
    return int.from_bytes(told, sys.byteorder)


def _p99(seen: Seen) -> float:
    return percentile(seen.latency_ms, 0.99)
