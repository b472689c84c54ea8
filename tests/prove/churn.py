"""`python -m tests.prove.churn`: so many streams at a time for so long, each on a connection of its own or on the last.

One in ten hangs up somewhere in its stream, and half of the others leave their connection: what a day of callers does
to a process. Prints how the streams ended, as JSON.
"""

import argparse
import asyncio
import gc
import json
import random
import sys
import time
from collections import Counter
from pathlib import Path

import uvloop

from bench.http1 import Malformed, Wire
from bench.load import request_of

_LEAVES = 0.1
_CLOSES = 0.5
_DONE = b"data: [DONE]"
_ANSWER_BYTES = 18_000  # of a stream of 64 chunks, roughly: who leaves does it before


class Stream(Wire):
    """One connection and the stream on it. `ended` says how it ended."""

    def __init__(self) -> None:
        super().__init__()
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._tail = b""
        self._taken = self._leave_after = 0

    def ask(self, request: bytes, leave_after: int) -> None:
        """Begin a stream. leave_after: bytes of the answer after which the caller hangs up; 0: never."""
        assert self.transport is not None
        self.ended = asyncio.get_running_loop().create_future()
        self._tail, self._taken, self._leave_after = b"", 0, leave_after
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        """A part of the stream."""
        try:
            self._tail = (self._tail + self.reader.feed(data))[-64:]
        except Malformed:
            self._end("malformed")
            self.abort()
            return
        self._taken += len(data)
        if self._leave_after and self._taken >= self._leave_after:
            self._end("left")
            self.abort()
        elif self.reader.complete:
            whole = self.reader.head[9:12] == b"200" and self._tail.rstrip().endswith(_DONE)
            self._end("whole" if whole else f"status {self.reader.head[9:12].decode()}")

    def connection_lost(self, exc: Exception | None) -> None:
        """A stream that was due is lost."""
        super().connection_lost(exc)
        self._end("lost")

    def _end(self, how: str) -> None:
        if not self.ended.done():
            self.ended.set_result(how)


async def _caller(port: int, request: bytes, until: float, dice: random.Random, counted: Counter[str]) -> None:
    """Streams one after the other. The first waits, so that not all begin at once."""
    await asyncio.sleep(dice.uniform(0, 6))
    stream: Stream | None = None
    while time.monotonic() < until:
        if stream is None or stream.transport is None or stream.transport.is_closing():
            _, stream = await asyncio.get_running_loop().create_connection(Stream, "127.0.0.1", port)
        leaves = dice.random() < _LEAVES
        stream.ask(request, dice.randrange(1, _ANSWER_BYTES // 2) if leaves else 0)
        counted[await stream.ended] += 1
        if dice.random() < _CLOSES and stream.transport is not None:
            stream.transport.close()
            stream = None
    if stream is not None:
        stream.abort()


async def _run(given: argparse.Namespace) -> Counter[str]:
    counted: Counter[str] = Counter()
    request = request_of(given.port, "/v1/chat/completions", given.body.read_bytes(), given.header)
    dice, until = random.Random(given.seed), time.monotonic() + given.seconds
    async with asyncio.TaskGroup() as callers:
        for _ in range(given.streams):
            callers.create_task(_caller(given.port, request, until, random.Random(dice.random()), counted))
    return counted


def main() -> None:
    """Do what the command line asks."""
    parser = argparse.ArgumentParser(description="Streams with churn.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--header", action="append", default=[])
    parser.add_argument("--body", type=Path, required=True)
    parser.add_argument("--streams", type=int, default=300)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--seed", type=int, default=0)
    gc.freeze()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        sys.stdout.write(json.dumps(runner.run(_run(parser.parse_args()))))


if __name__ == "__main__":
    main()
