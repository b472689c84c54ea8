"""Callers in a process of their own, `python -m tests.prove.fast_callers`, and how a proof speaks to them.

A line of JSON in says what to ask for a while (`Work`), a line out says what was seen: every answer's time, because a
percentile over many short windows needs them all.
"""

import asyncio
import gc
import json
import os
import random
import sys
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import uvloop

from bench.cores import on_core
from bench.http1 import Malformed, Wire
from bench.load import request_of
from bench.processes import end

_ANSWER_SECONDS = 90.0
_LINE_BYTES_MAX = 64 * 1024 * 1024
_URGENCY = -15


@dataclass(frozen=True, slots=True)
class Work:
    """Who asks what: a connection per caller, each with the key whose turn it is; without a body it is a GET.

    rate: requests a second, at random instants; None: each caller asks again once it has its answer and has paused.
    body: the file with it.
    """

    port: int
    path: str
    seconds: float
    callers: int = 1
    keys: Sequence[str] = ()
    body: str | None = None
    rate: float | None = None
    pause_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Seen:
    """What the callers of one work saw. latency_ms: of each answer with 200, in the order of their ends."""

    latency_ms: list[float] = field(default_factory=list)
    errors: dict[str, int] = field(default_factory=dict)


class Crew:
    """The process, while it runs."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def do(self, work: Work) -> Seen:
        """Ask for as long as the work says, and wait for what is open then."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asdict(work)).encode() + b"\n")
        line = await self._process.stdout.readline()
        if not line:
            raise ConnectionResetError("the callers' process has ended; see callers.log")
        return Seen(**json.loads(line))


@asynccontextmanager
async def crew(folder: Path, *, core: int, hurried: bool = True) -> AsyncIterator[Crew]:
    """Callers on a core. hurried: those who measure go before whatever else runs there, where we may say so."""
    arguments = [sys.executable, "-m", "tests.prove.fast_callers"]
    with (folder / "callers.log").open("ab") as kept, on_core(core):
        process = await asyncio.create_subprocess_exec(
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=kept,
            limit=_LINE_BYTES_MAX,
            start_new_session=True,  # a Ctrl-C reaches it through us only
        )
    if hurried:
        hurry(process.pid)
    try:
        yield Crew(process)
    finally:
        await end(process)


def hurry(pid: int) -> None:
    """Let a process, the first of a session of its own, run before others on its core, where we may say so."""
    with suppress(OSError):
        Path(f"/proc/{pid}/autogroup").write_text(str(_URGENCY))
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, _URGENCY)


class _Caller(Wire):
    """One connection: a request, its answer, the next one."""

    def __init__(self, crowd: "_Crowd", request: bytes) -> None:
        super().__init__()
        self._crowd = crowd
        self._request = request
        self._since: int | None = None

    def ask(self, due: int) -> None:
        """Send the request; its time counts from when it was due."""
        assert self.transport is not None
        self._since = due
        self.transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Note when an answer is whole."""
        try:
            self.reader.feed(data)
        except Malformed:
            self.abort()
            return
        if self.reader.complete and self._since is not None:
            since, self._since = self._since, None
            self._crowd.ended(self, time.monotonic_ns() - since, self.reader.head[9:12].decode())

    def connection_lost(self, exc: Exception | None) -> None:
        """An answer that was due is an error."""
        super().connection_lost(exc)
        if self._since is not None:
            self._since = None
            self._crowd.ended(None, 0, "lost")


class _Crowd:
    """Does one work."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._loop = asyncio.get_running_loop()
        self._latency_ns: list[int] = []
        self._errors: Counter[str] = Counter()
        self._idle: deque[_Caller] = deque()
        self._due: deque[int] = deque()
        self._open = 0
        self._ending = False
        self._over = asyncio.Event()

    async def run(self) -> Seen:
        """Everything the work asks for. Raises OSError where nobody listens."""
        work = self._work
        made = [await self._caller(number) for number in range(work.callers)]
        if work.rate is None:
            for caller in made:
                self._ask(caller, time.monotonic_ns())
        else:
            self._idle.extend(made)
            self._ask_at_random()
        with suppress(TimeoutError):
            async with asyncio.timeout(work.seconds + _ANSWER_SECONDS):
                await asyncio.sleep(work.seconds)
                self._ending = True
                self._look_whether_all_is_over()
                await self._over.wait()
        if self._open:
            self._errors["unanswered"] += self._open
        for caller in made:
            caller.abort()
        await asyncio.sleep(0)
        return Seen([round(each / 1e6, 4) for each in self._latency_ns], dict(self._errors))

    def ended(self, caller: _Caller | None, nanoseconds: int, status: str) -> None:
        """An answer came, or will not come."""
        self._open -= 1
        if status == "200":
            self._latency_ns.append(nanoseconds)
        else:
            self._errors[status] += 1
        if caller is not None:
            self._go_on(caller)
        self._look_whether_all_is_over()

    def _go_on(self, caller: _Caller) -> None:
        work, now = self._work, time.monotonic_ns()
        if self._due:
            self._ask(caller, self._due.popleft())
        elif work.rate is not None:
            self._idle.append(caller)
        elif work.pause_seconds:
            self._loop.call_later(work.pause_seconds, self._ask_again, caller)
        elif not self._ending:
            self._ask(caller, now)

    def _ask_again(self, caller: _Caller) -> None:
        if not self._ending and caller.transport is not None:
            self._ask(caller, time.monotonic_ns())

    def _ask(self, caller: _Caller, due: int) -> None:
        self._open += 1
        caller.ask(due)

    def _ask_at_random(self) -> None:
        now = time.monotonic_ns()
        if self._ending:
            return
        assert self._work.rate is not None
        self._loop.call_later(random.expovariate(self._work.rate), self._ask_at_random)
        if self._idle:
            self._ask(self._idle.popleft(), now)
        else:
            self._due.append(now)

    def _look_whether_all_is_over(self) -> None:
        if self._ending and not self._open and not self._due:
            self._over.set()

    async def _caller(self, number: int) -> _Caller:
        work = self._work
        headers = [f"Authorization: Bearer {work.keys[number % len(work.keys)]}"] if work.keys else []
        if work.body is None:
            request = "\r\n".join(
                [f"GET {work.path} HTTP/1.1", f"Host: 127.0.0.1:{work.port}", *headers, "", ""]
            ).encode()
        else:
            request = request_of(work.port, work.path, Path(work.body).read_bytes(), headers)
        _, caller = await self._loop.create_connection(lambda: _Caller(self, request), "127.0.0.1", work.port)
        return caller


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        try:
            seen = await _Crowd(Work(**json.loads(line))).run()
        except OSError as error:
            seen = Seen(errors={type(error).__name__: 1})
        sys.stdout.write(json.dumps(asdict(seen)) + "\n")
        sys.stdout.flush()


def main() -> None:
    """Do what the lines say until there are no more."""
    gc.disable()  # nothing here makes cycles
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve())


if __name__ == "__main__":
    main()
