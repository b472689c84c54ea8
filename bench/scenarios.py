"""The work that each gateway does, and what of it is measured: CPU from /proc, time and failures from the load."""

import asyncio
import json
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.asking import Answer, chat, set_mock
from bench.cores import Cores, cpu_seconds, named, resident_mib, tree
from bench.figures import Figure, Scenario
from bench.gateways import Running
from bench.processes import Failed, output

CHUNKS = 64
_STORES = ("postgres", "redis-server")
_BUSY = 64
_STREAMS = 50
_STREAM_DELAY_MS = 5
_MANY = 1000
_MANY_DELAY_MS = 100
# As long as a stream lasts, so that they begin, and later end, evenly.
_MANY_RAMP_SECONDS = (CHUNKS + 1) * _MANY_DELAY_MS / 1000
_RATE = 20
_OK = 200


@dataclass(frozen=True, slots=True)
class Lengths:
    """How long each measurement lasts, in seconds; commits counts them."""

    warm: float = 3.0
    busy: float = 4.0
    rate: float = 5.0
    many: float = 13.0
    commits: int = 60


FULL = Lengths()
SHORT = Lengths(busy=2.0, rate=3.0, many=9.0, commits=40)
Loads = dict[str, Mapping[str, Any]]


class Meter:
    """Measures one running gateway. Every measurement adds its load's own account to `loads`."""

    def __init__(self, running: Running, *, folder: Path, mock_port: int, cores: Cores, lengths: Lengths) -> None:
        self.loads: Loads = {}
        self._running = running
        self._folder = folder
        self._mock_port = mock_port
        self._cores = cores
        self._lengths = lengths

    async def measure(self, scenario: Scenario) -> dict[Figure, float]:
        """The figures of one scenario. Raises Failed where the gateway does not do what it should."""
        match scenario:
            case Scenario.START:
                return await self._start()
            case Scenario.REQUESTS:
                return await self._requests()
            case Scenario.LATENCY:
                return await self._latency()
            case Scenario.CHUNKS:
                return await self._chunks()
            case Scenario.STREAMS:
                return await self._many_streams()

    async def verify(self) -> None:
        """See that a whole answer and a stream come through complete. Raises Failed."""
        await set_mock(self._mock_port, delay_ms=1, chunks=CHUNKS)
        try:
            whole, stream = await chat(self._running.address), await chat(self._running.address, stream=True)
        except (OSError, TimeoutError) as error:
            raise Failed(f"a request was not answered: {type(error).__name__} {error}") from error
        usage = json.loads(whole.body).get("usage", {}) if whole.status == _OK else {}
        if usage.get("completion_tokens", 0) <= 0:
            raise Failed(f"an answer without usage: {_shown(whole)}")
        if stream.status != _OK or stream.chunks != CHUNKS or not stream.ended:
            raise Failed(f"a stream of {stream.chunks} chunks instead of {CHUNKS}: {_shown(stream)}")

    async def _start(self) -> dict[Figure, float]:
        if self._running.pid is None or self._running.start_seconds is None:
            return {}
        await asyncio.sleep(1)
        idle = resident_mib(tree(self._running.pid))
        return {Figure.START_SECONDS: self._running.start_seconds, Figure.IDLE_MIB: idle}

    async def _requests(self) -> dict[Figure, float]:
        await set_mock(self._mock_port, delay_ms=0)
        await self._load("warm", seconds=self._lengths.warm, connections=_BUSY)
        before, beside = self._cpu_seconds(), _stores_cpu_seconds()
        seen = await self._load(Scenario.REQUESTS, seconds=self._lengths.busy, connections=_BUSY)
        used, beside = self._cpu_seconds() - before, _stores_cpu_seconds() - beside
        asked = max(1, seen["ended"])
        figures = {Figure.REQUESTS_PER_SECOND: float(seen["per_second"])}
        if self._running.pid is None:
            return figures
        share = used / asked * seen["per_second"]
        figures |= {Figure.REQUEST_CPU_US: used / asked * 1e6, Figure.CORE_SHARE: share}
        return figures | ({Figure.BESIDE_CPU_US: beside / asked * 1e6} if beside else {})

    async def _latency(self) -> dict[Figure, float]:
        await set_mock(self._mock_port, delay_ms=0)
        seen = await self._load(Scenario.LATENCY, seconds=self._lengths.rate, connections=16, rate=_RATE)
        figures = _spread(seen["latency_ms"], p50=Figure.LATENCY_P50_MS, p99=Figure.LATENCY_P99_MS)
        if self._running.commit_ms is not None:
            figures[Figure.COMMIT_P50_MS] = await self._running.commit_ms(self._lengths.commits)
        return figures

    async def _chunks(self) -> dict[Figure, float]:
        await set_mock(self._mock_port, delay_ms=_STREAM_DELAY_MS, chunks=CHUNKS)
        before = self._cpu_seconds()
        seen = await self._load(Scenario.CHUNKS, seconds=self._lengths.busy, connections=_STREAMS, stream=True)
        used = self._cpu_seconds() - before
        figures = _spread(seen["transit_ms"], p50=Figure.TRANSIT_P50_MS)
        if self._running.pid is not None:
            figures[Figure.CHUNK_CPU_US] = used / max(1, seen["chunks"]) * 1e6
        return figures

    async def _many_streams(self) -> dict[Figure, float]:
        await set_mock(self._mock_port, delay_ms=_MANY_DELAY_MS, chunks=CHUNKS)
        peak = asyncio.create_task(self._peak_mib())
        try:
            seen = await self._load(
                Scenario.STREAMS,
                seconds=self._lengths.many,
                connections=_MANY,
                stream=True,
                ramp_seconds=_MANY_RAMP_SECONDS,
            )
        finally:
            peak.cancel()
        failures: dict[str, int] = seen["errors"]
        figures = {Figure.STREAM_FAILURES: float(sum(failures.values()))}
        figures |= _spread(seen["first_chunk_ms"], p50=Figure.FIRST_CHUNK_P50_MS, p99=Figure.FIRST_CHUNK_P99_MS)
        most = await peak
        return figures | ({Figure.STREAMS_MIB: most} if most else {})

    async def _peak_mib(self) -> float:
        """Watch memory until cancelled; the most that was seen."""
        most = 0.0
        with suppress(asyncio.CancelledError):
            while self._running.pid is not None:
                most = max(most, resident_mib(tree(self._running.pid)))
                await asyncio.sleep(0.25)
        return most

    def _cpu_seconds(self) -> float:
        return cpu_seconds(tree(self._running.pid)) if self._running.pid is not None else 0.0

    async def _load(
        self,
        name: str,
        *,
        seconds: float,
        connections: int,
        stream: bool = False,
        rate: float | None = None,
        ramp_seconds: float = 0,
    ) -> Mapping[str, Any]:
        address = self._running.address
        body = self._folder / f"{name}.json"
        body.write_bytes(address.body(stream=stream))
        arguments = [sys.executable, "-m", "bench.load", "--port", str(address.port), "--path", address.path]
        arguments += ["--body", str(body), "--seconds", str(seconds), "--connections", str(connections)]
        arguments += ["--ramp-seconds", str(ramp_seconds), *(["--rate", str(rate)] if rate else [])]
        arguments += [part for header in address.headers for part in ("--header", header)]
        seen: dict[str, Any] = json.loads(await output(arguments, body.with_suffix(".log"), core=self._cores.beside))
        self.loads[name] = seen
        return seen


def _spread(spread: Mapping[str, float] | None, **wanted: Figure) -> dict[Figure, float]:
    """The wanted percentiles; none where nothing was seen."""
    return {figure: spread[name] for name, figure in wanted.items()} if spread else {}


def _stores_cpu_seconds() -> float:
    return cpu_seconds(named(_STORES, os.getpid()))


def _shown(answer: Answer) -> str:
    return f"{answer.status} {answer.body[:200].decode(errors='replace')}"
