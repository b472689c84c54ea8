"""Bytes in, bytes out: one connection that says what it is told to and keeps whatever it hears. It judges nothing."""

import asyncio
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

_READ_BYTES = 256 * 1024
_KEPT_BYTES_MAX = 16 * 1024 * 1024
_QUIET_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Wait:
    """Say nothing for so long."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Repeat:
    """The same block many times, with a pause after each."""

    block: bytes
    times: int
    every_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Hear:
    """Wait until so many answers have come, interim ones not counted."""

    answers: int


@dataclass(frozen=True, slots=True)
class Fin:
    """Close our half."""


@dataclass(frozen=True, slots=True)
class Deaf:
    """Read nothing for so long; the socket's buffer is small."""

    seconds: float


Step = bytes | Wait | Repeat | Hear | Fin | Deaf


class Malformed(Exception):
    """What came is no HTTP answer."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer. Header names are lower case; of a repeated one the last counts."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass(slots=True)
class Heard:
    """What a conversation came to. end: `closed`, `reset` or `open`; seconds: until then; malformed: of what came."""

    answers: list[Answer] = field(default_factory=list)
    interim: int = 0
    end: str = "open"
    seconds: float = 0.0
    malformed: str = ""


class _Ear:
    """Reads answers off a socket until it closes."""

    def __init__(self, sock: socket.socket, *, heads_only: bool) -> None:
        self.heard = Heard()
        self.ended = asyncio.Event()
        self.news = asyncio.Condition()
        self.last = time.monotonic()
        self.deaf_until = 0.0
        self._sock = sock
        self._heads_only = heads_only
        self._kept = bytearray()

    async def listen(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while True:
                while (pause := self.deaf_until - time.monotonic()) > 0:
                    await asyncio.sleep(pause)
                data = await loop.sock_recv(self._sock, _READ_BYTES)
                self.last = time.monotonic()
                if not data:
                    self.heard.end = "closed"
                    return
                await self._take(data)
        except OSError:
            self.heard.end = "reset"
        finally:
            if self._kept and not self.heard.malformed and not self.is_deaf:
                self.heard.malformed = f"ended within an answer: {bytes(self._kept[:60])!r}"
            self.ended.set()
            async with self.news:
                self.news.notify_all()

    @property
    def is_deaf(self) -> bool:
        return time.monotonic() < self.deaf_until

    def lost(self) -> None:
        """It cannot be written to any more, which is all that who reads nothing will ever notice."""
        if self.is_deaf:
            self.heard.end = "reset"
            self.ended.set()

    async def heard_so_many(self, answers: int) -> None:
        async with self.news:
            await self.news.wait_for(lambda: len(self.heard.answers) >= answers or self.ended.is_set())

    async def _take(self, data: bytes) -> None:
        if self.heard.malformed:
            return
        self._kept += data
        try:
            while (taken := _answer(self._kept, heads_only=self._heads_only)) is not None:
                answer, size = taken
                del self._kept[:size]
                if answer.status < 200 and answer.status != 101:
                    self.heard.interim += 1
                else:
                    self.heard.answers.append(answer)
        except Malformed as wrong:
            self.heard.malformed = str(wrong)
        if len(self._kept) > _KEPT_BYTES_MAX:
            self.heard.malformed = "an answer without end"
        async with self.news:
            self.news.notify_all()


def _answer(kept: bytearray, *, heads_only: bool) -> tuple[Answer, int] | None:
    """The first whole answer and its length; None while it is not whole."""
    if kept and not b"HTTP/1.1 ".startswith(kept[:9]):
        raise Malformed(f"no status line: {bytes(kept[:60])!r}")
    end = kept.find(b"\r\n\r\n")
    if end < 0:
        return None
    line, *lines = bytes(kept[:end]).decode("latin-1").split("\r\n")
    try:
        status = int(line.split(" ", 2)[1])
        headers = {name.lower(): value.strip() for name, value in (each.split(":", 1) for each in lines)}
    except (IndexError, ValueError):
        raise Malformed(f"no head: {line!r}") from None
    start = end + 4
    if heads_only or status < 200 or status in {204, 304}:
        return Answer(status, headers, b""), start
    if headers.get("transfer-encoding") == "chunked":
        return _chunked(kept, start, status, headers)
    if not headers.get("content-length", "").isdigit():
        raise Malformed(f"an answer without a length: {line!r}")
    stop = start + int(headers["content-length"])
    return None if len(kept) < stop else (Answer(status, headers, bytes(kept[start:stop])), stop)


def _chunked(kept: bytearray, at: int, status: int, headers: dict[str, str]) -> tuple[Answer, int] | None:
    body = b""
    while (end := kept.find(b"\r\n", at)) >= 0:
        size = int(kept[at:end], 16)
        at = end + 2 + size + 2
        if len(kept) < at:
            return None
        if size == 0:
            return Answer(status, headers, body), at
        body += kept[end + 2 : at - 2]
    return None


async def talk(
    port: int,
    steps: Iterable[Step],
    *,
    answers: int,
    seconds: float,
    until_closed: bool,
    heads_only: bool = False,
) -> Heard:
    """Say the steps while listening. It is over when the connection is closed, when so many seconds have passed, or,
    not `until_closed`, when the answers have come and nothing follows them.
    """
    steps = tuple(steps)
    sock = socket.socket()
    sock.settimeout(0)
    if any(isinstance(step, Deaf) for step in steps):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    began = time.monotonic()
    ear = _Ear(sock, heads_only=heads_only)
    tasks: list[asyncio.Task[None]] = []
    try:
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        tasks = [asyncio.create_task(ear.listen()), asyncio.create_task(_say(sock, ear, steps))]
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await _over(ear, tasks[1], answers=answers, until_closed=until_closed)
    except OSError:
        ear.heard.end = "reset"
    finally:
        ear.heard.seconds = time.monotonic() - began
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        sock.close()
    return ear.heard


async def _over(ear: _Ear, saying: asyncio.Task[None], *, answers: int, until_closed: bool) -> None:
    if until_closed:
        await ear.ended.wait()
        return
    await asyncio.wait([saying])
    while not ear.ended.is_set():
        if len(ear.heard.answers) >= answers and time.monotonic() - ear.last > _QUIET_SECONDS:
            return
        await asyncio.sleep(0.02)


async def _say(sock: socket.socket, ear: _Ear, steps: Iterable[Step]) -> None:
    """Says everything, or as much as the other side takes."""
    try:
        for step in steps:
            await _say_one(sock, ear, step)
    except OSError:
        ear.lost()


async def _say_one(sock: socket.socket, ear: _Ear, step: Step) -> None:
    loop = asyncio.get_running_loop()
    match step:
        case bytes():
            await loop.sock_sendall(sock, step)
        case Wait():
            await asyncio.sleep(step.seconds)
        case Deaf():
            ear.deaf_until = time.monotonic() + step.seconds
            await asyncio.sleep(0.05)  # it may be listening still
        case Fin():
            sock.shutdown(socket.SHUT_WR)
        case Hear():
            await ear.heard_so_many(step.answers)
        case Repeat():
            for _ in _while_open(ear, step.times):
                await loop.sock_sendall(sock, step.block)
                if step.every_seconds:
                    await asyncio.sleep(step.every_seconds)


def _while_open(ear: _Ear, times: int) -> Iterator[int]:
    for at in range(times):
        if ear.ended.is_set():
            return
        yield at
