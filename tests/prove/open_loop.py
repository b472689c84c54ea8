"""`python -m tests.prove.open_loop`: one request at the rates of a plan, whatever the answers; keeps what came back.

A request's time counts from when it was due, so that waiting for a free connection is not forgotten. Each phase of
the plan is told apart by when its requests were due. One process, one event loop; it says how busy it was itself.
"""

import argparse
import asyncio
import gc
import json
import sys
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path

import uvloop

from bench.http1 import Malformed, Wire
from bench.load import request_of

_TICK_SECONDS = 0.001
_DRAIN_SECONDS = 10.0
_LATE_SECONDS = 0.025


@dataclass(slots=True)
class Phase:
    """So many seconds at a rate, and what became of the requests that were due in it.

    ended: when each was due, in seconds since the phase began, how long it took, and its status; 0 is a lost one.
    late: how many were sent, or began to wait for a connection, long after they were due.
    """

    seconds: float
    rate: float
    ended: list[tuple[float, float, int]] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    cpu_share: float = 0.0
    late: int = 0


class Caller(Wire):
    """One connection, with at most one request on it."""

    def __init__(self, load: "OpenLoop") -> None:
        super().__init__()
        self._load = load
        self.due: tuple[Phase, float] | None = None

    def data_received(self, data: bytes) -> None:
        """The answer, in one piece or in several."""
        try:
            self.reader.feed(data)
        except Malformed:
            self.abort()
            return
        if self.reader.complete and self.due is not None:
            due, self.due = self.due, None
            self._load.note(due, int(self.reader.head[9:12]), self.reader.head)
            self._load.free(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """What was asked on it is lost."""
        super().connection_lost(exc)
        if self.due is not None:
            self._load.note(self.due, 0, b"")
        self._load.lost(self)


class OpenLoop:
    """Sends when it is due. Connections that are lost are replaced."""

    def __init__(self, port: int, request: bytes, phases: list[Phase]) -> None:
        self._port = port
        self._request = request
        self._phases = phases
        self._idle: deque[Caller] = deque()
        self._waiting: deque[tuple[Phase, float]] = deque()
        self._open = 0
        self._lost = 0

    async def run(self, connections: int) -> None:
        """The whole plan, then a wait for what is open."""
        for _ in range(connections):
            await self._connect()
        at = time.monotonic()
        for phase in self._phases:
            at = await self._phase(phase, at)
        last = time.monotonic() + _DRAIN_SECONDS
        while (self._open or self._waiting) and time.monotonic() < last:
            await asyncio.sleep(0.01)
        self._phases[-1].faults["unanswered"] += self._open + len(self._waiting)

    async def _phase(self, phase: Phase, began: float) -> float:
        cpu, sent, ends = time.process_time(), 0, began + phase.seconds
        while (now := time.monotonic()) < ends:
            await asyncio.sleep(_TICK_SECONDS)
            while sent < int((min(time.monotonic(), ends) - began) * phase.rate):
                due = began + sent / phase.rate
                phase.late += time.monotonic() - due > _LATE_SECONDS
                self._send((phase, due))
                sent += 1
            while self._lost:
                self._lost -= 1
                await self._connect()
        phase.cpu_share = (time.process_time() - cpu) / (now - began)
        return ends

    def _send(self, due: tuple[Phase, float]) -> None:
        while self._idle:
            caller = self._idle.popleft()
            if caller.transport is not None and not caller.transport.is_closing():
                self._open += 1
                caller.due = due
                caller.transport.write(self._request)
                return
        self._waiting.append(due)

    def note(self, due: tuple[Phase, float], status: int, head: bytes) -> None:
        """A request has ended."""
        phase, at = due
        self._open -= 1
        phase.ended.append((at, time.monotonic() - at, status))
        if status == 503 and b"retry-after" not in head:
            phase.faults["503 without retry-after"] += 1

    def free(self, caller: Caller) -> None:
        """The connection may carry what waits."""
        self._idle.append(caller)
        if self._waiting:
            self._send(self._waiting.popleft())

    def lost(self, caller: Caller) -> None:
        """A connection is gone; another will take its place."""
        del caller
        self._lost += 1

    async def _connect(self) -> None:
        try:
            _, caller = await asyncio.get_running_loop().create_connection(
                lambda: Caller(self), "127.0.0.1", self._port
            )
        except OSError:
            self._lost += 1
        else:
            self.free(caller)


def main() -> None:
    """Do what the command line asks; the result is a file with a JSON list, an object for each phase."""
    parser = argparse.ArgumentParser(description="One request at the rates of a plan.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--header", action="append", default=[])
    parser.add_argument("--body", type=Path, required=True)
    parser.add_argument("--connections", type=int, default=1000)
    parser.add_argument("--seen", type=Path, required=True, help="the file that takes what was seen")
    parser.add_argument("--plan", required=True, help="seconds:rate, with commas")
    given = parser.parse_args()
    phases = [Phase(*(float(part) for part in each.split(":"))) for each in given.plan.split(",")]
    request = request_of(given.port, "/v1/chat/completions", given.body.read_bytes(), given.header)
    gc.disable()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(OpenLoop(given.port, request, phases).run(given.connections))
    told = []
    for phase in phases:
        origin = min((at for at, _, _ in phase.ended), default=0.0)
        ended = [(round(at - origin, 4), round(took * 1e3, 2), status) for at, took, status in phase.ended]
        told.append(
            {"faults": phase.faults, "cpu_share": round(phase.cpu_share, 3), "late": phase.late, "ended": ended}
        )
    given.seen.write_text(json.dumps(told))
    sys.stdout.write(json.dumps(str(given.seen)))


if __name__ == "__main__":
    main()
