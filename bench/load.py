"""`python -m bench.load`: one request, sent many times; prints what it saw as a line of JSON.

A closed loop keeps so many connections busy; a rate sends at fixed instants and counts a request's time from the
instant it was due, so that waiting behind a slow answer is not forgotten. Requests that are open when the time is
over are waited for, so that what the gateway did can be divided by what it was asked.
"""

import argparse
import asyncio
import gc
import json
import re
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import uvloop

from bench.http1 import Malformed, Wire
from bench.tally import Seen, Tally

_STAMP = re.compile(rb"@T(\d{20}) ")
_STAMP_BYTES = 23
_DONE = b"data: [DONE]"
_HOST = "127.0.0.1"
# uvloop's timers count whole milliseconds: the last two are spent looking at the clock.
_TIMER_NS = 2_000_000
_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Work:
    """What to do: for how long, over how many connections, at what rate (None: as fast as answers come).

    ramp_seconds: over what time the connections of a closed loop begin.
    """

    port: int
    request: bytes
    stream: bool
    connections: int
    seconds: float
    rate: float | None = None
    ramp_seconds: float = 0.0
    drain_seconds: float = 30.0


class Connection(Wire):
    """One connection; it tells the load when it is idle, and its tally what happened."""

    def __init__(self, load: "Load") -> None:
        super().__init__()
        self._load = load
        self._since: int | None = None
        self._fault = "connection lost"
        self._tail = b""
        self._chunked = False

    def send(self, since: int) -> None:
        """Send the request; `since` is when it was due."""
        assert self.transport is not None
        self._since = since
        self._tail = b""
        self._chunked = False
        self.transport.write(self._load.work.request)

    def data_received(self, data: bytes) -> None:
        """Note what came, and when."""
        now = time.monotonic_ns()
        try:
            payload = self.reader.feed(data)
        except Malformed:
            self._fault = "malformed"
            self.abort()
            return
        if self._since is None:
            self._load.tally.errors["unasked"] += 1
            self.abort()
            return
        if self._load.work.stream:
            self._note_chunks(payload, now, self._since)
        if self.reader.complete:
            self._end(now, self._since)

    def _note_chunks(self, payload: bytes, now: int, since: int) -> None:
        text = self._tail + payload
        tally = self._load.tally
        for stamp in _STAMP.findall(text):
            tally.transit.append(now - int(stamp))
            tally.chunks_in_time += now < self._load.until
            if not self._chunked:
                self._chunked = True
                tally.first_chunk.append(now - since)
        self._tail = text[1 - _STAMP_BYTES :]

    def _end(self, now: int, since: int) -> None:
        status = self.reader.head[9:12]
        self._since = None
        tally = self._load.tally
        if status != b"200":
            tally.errors[status.decode()] += 1
        elif self._load.work.stream and not self._tail.rstrip().endswith(_DONE):
            tally.errors["ended without [DONE]"] += 1
        else:
            tally.latency.append(now - since)
            tally.in_time += now < self._load.until
        self._load.ended(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Replaced; an answer that was due is an error."""
        super().connection_lost(exc)
        if self._since is not None:
            self._load.tally.errors[self._fault] += 1
        self._load.lost(self, busy=self._since is not None)


class Load:
    """Sends one work's requests. One object, one run."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.tally = Tally()
        self.until = 0
        self._all: set[Connection] = set()
        self._idle: deque[Connection] = deque()
        self._due: deque[int] = deque()
        self._open = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> Seen:
        """Everything the work asks for, then the wait for what is open. Raises OSError where nobody listens."""
        work = self.work
        made = [await self._connect() for _ in range(work.connections)]
        began = time.monotonic_ns()
        self.until = began + int(work.seconds * _NS)
        if work.rate is None:
            await self._begin(made, began)
        else:
            self._idle.extend(made)
            await self._send_at(began, _NS / work.rate)
        await asyncio.sleep(max(0, self.until - time.monotonic_ns()) / _NS)
        await self._drain()
        seen = self.tally.seen(work.seconds)
        await asyncio.gather(*self._tasks)
        for connection in tuple(self._all):
            connection.abort()
        await asyncio.sleep(0)
        return seen

    def ended(self, connection: Connection) -> None:
        """An answer has come: the connection is free for the next request."""
        self._open -= 1
        self._next(connection)

    def lost(self, connection: Connection, *, busy: bool) -> None:
        """A connection has ended: another takes its place while there is time."""
        self._all.discard(connection)
        if busy:
            self._open -= 1
        elif connection in self._idle:
            self._idle.remove(connection)
        if time.monotonic_ns() < self.until:
            task = asyncio.create_task(self._replace())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _next(self, connection: Connection) -> None:
        """Send what is due, or at once in a closed loop."""
        now = time.monotonic_ns()
        if self._due:
            self._send(connection, self._due.popleft())
        elif self.work.rate is None and now < self.until:
            self._send(connection, now)
        else:
            self._idle.append(connection)

    async def _replace(self) -> None:
        while time.monotonic_ns() < self.until:
            await asyncio.sleep(0.01)
            try:
                connection = await self._connect()
            except OSError:
                self.tally.errors["not connected"] += 1
            else:
                self._next(connection)
                return

    async def _connect(self) -> Connection:
        _, connection = await asyncio.get_running_loop().create_connection(
            lambda: Connection(self), _HOST, self.work.port
        )
        self._all.add(connection)
        return connection

    def _send(self, connection: Connection, since: int) -> None:
        self._open += 1
        connection.send(since)

    async def _begin(self, connections: list[Connection], began: int) -> None:
        gap = self.work.ramp_seconds * _NS / len(connections)
        for number, connection in enumerate(connections):
            due = began + int(number * gap)
            if gap:
                await _until(due)
            self._send(connection, max(due, time.monotonic_ns()))

    async def _send_at(self, began: int, gap: float) -> None:
        number = 0
        while (due := began + int(number * gap)) < self.until:
            await _until(due)
            number += 1
            if self._idle:
                self._send(self._idle.popleft(), due)
            else:
                self._due.append(due)

    async def _drain(self) -> None:
        last = time.monotonic_ns() + int(self.work.drain_seconds * _NS)
        while (self._open or self._due) and time.monotonic_ns() < last:  # noqa: ASYNC110 - ten milliseconds do
            await asyncio.sleep(0.01)
        if unanswered := self._open + len(self._due):
            self.tally.errors["unanswered"] += unanswered


async def _until(due: int) -> None:
    if (rest := due - time.monotonic_ns()) > _TIMER_NS:
        await asyncio.sleep((rest - _TIMER_NS) / _NS)
    while time.monotonic_ns() < due:  # noqa: ASYNC110 - a timer is too coarse; the loop turns meanwhile
        await asyncio.sleep(0)


def request_of(port: int, path: str, body: bytes, headers: Sequence[str] = ()) -> bytes:
    """The bytes of one POST, as every connection sends them."""
    lines = [f"POST {path} HTTP/1.1", f"Host: {_HOST}:{port}", "Content-Type: application/json", *headers]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


def main() -> None:
    """Do what the command line asks and print the result."""
    parser = argparse.ArgumentParser(prog="python -m bench.load", description="Sends one request many times.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--path", default="/v1/chat/completions")
    parser.add_argument("--body", type=Path, required=True, help="the file to send; one with a stream is read as one")
    parser.add_argument("--header", action="append", default=[], help="another header, as `Name: value`")
    parser.add_argument("--connections", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--rate", type=float, help="requests per second; without it as fast as answers come")
    parser.add_argument("--ramp-seconds", type=float, default=0)
    given = parser.parse_args()
    body = given.body.read_bytes()
    work = Work(
        port=given.port,
        request=request_of(given.port, given.path, body, given.header),
        stream=json.loads(body).get("stream") is True,
        connections=given.connections,
        seconds=given.seconds,
        rate=given.rate,
        ramp_seconds=given.ramp_seconds,
    )
    gc.disable()  # nothing here makes cycles
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        sys.stdout.write(json.dumps(asdict(runner.run(Load(work).run()))) + "\n")


if __name__ == "__main__":
    main()
