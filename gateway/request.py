"""One request of a connection: its body as it comes, and the answer as it leaves. It knows HTTP and no application."""

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Protocol
from urllib.parse import unquote

import httptools

_READ_AHEAD_BYTES_MAX = 64 * 1024  # of a body that nobody asks for
_LEFT_OVER_BYTES_MAX = 16 * 1024 * 1024  # of a body that came too late for its answer; reading it lets that arrive
_BODILESS = frozenset({204, 304})
_PHRASES = {each.value: each.phrase for each in HTTPStatus}
STATUS_LINES = tuple(f"HTTP/1.1 {each} {_PHRASES.get(each, '')}\r\n".encode() for each in range(600))


class Line(Protocol):
    """The connection that a request came by. is_full: the other side has yet to take what was written."""

    transport: asyncio.Transport
    is_full: bool

    async def drained(self) -> None:
        """Wait until the other side has taken what was written, or is gone."""
        ...

    def done(self, request: "Request") -> None:
        """The request is answered."""
        ...


class Request:
    """One request as it comes, and the line that its answer goes over: `exchange.Connection` says what it promises.

    is_last: nothing follows it on its connection. is_refused: there was no place for it when it came.
    """

    def __init__(self, line: Line, method: str, target: bytes, headers: dict[str, str], *, is_last: bool) -> None:
        raw, _, query = target.partition(b"?")
        if not raw.startswith(b"/"):  # of a proxy, perhaps
            url = httptools.parse_url(target)
            raw, query = url.path or b"/", url.query or b""
        path = raw.decode("ascii")
        self.method = method
        self.path = unquote(path) if "%" in path else path
        self.query = query
        self.headers = headers
        self.is_last = is_last
        self.is_lost = self.is_whole = self.has_begun = self.is_answered = self.is_refused = False
        self.received = 0
        self._line = line
        self._parts: list[bytes] = []
        self._unread = 0
        self._waiter: asyncio.Future[None] | None = None
        self._on_lost: Callable[[], None] | None = None
        self._head = b""
        self._is_chunked = self._is_held_up = False
        self.rests_until: asyncio.Future[Any] | None = None
        self.rests_at_most_until = 0.0

    # What the protocol says

    def take_in(self, data: bytes) -> None:
        """A piece of the body came."""
        self.received += len(data)
        if self.is_answered:
            if self.received > _LEFT_OVER_BYTES_MAX:
                self._line.transport.abort()
            return
        self._parts.append(data)
        self._unread += len(data)
        if self._waiter is not None:
            self._wake()
        elif self._unread > _READ_AHEAD_BYTES_MAX:
            self._line.transport.pause_reading()
            self._is_held_up = True

    def end(self) -> None:
        """All of the body has come."""
        self.is_whole = True
        self._wake()

    def lose(self) -> None:
        """The other side is gone."""
        self.is_lost = True
        self._wake()
        if self._on_lost is not None:
            self._on_lost()

    # What whoever answers says

    def take(self) -> bytes:
        """What came of the body since the last time."""
        taken = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts.clear()
        self._unread = 0
        self._read_on()  # or nobody would see the other side leave
        return taken

    async def more(self) -> None:
        """Wait until more of the body has come, or all of it; then, until the other side is gone."""
        if self.is_lost:
            return
        if not self.is_whole:
            self._line.transport.resume_reading()
            if not self.received and not self.has_begun and self.headers.get("expect", "").lower() == "100-continue":
                self._line.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def watch(self, on_lost: Callable[[], None] | None) -> None:
        """Call this once, when the other side is gone."""
        self._on_lost = on_lost

    def abort(self) -> None:
        """Drop the connection."""
        self._line.transport.abort()

    @property
    def is_full(self) -> bool:
        """Whether the other side has yet to take what was written."""
        return self._line.is_full

    async def drained(self) -> None:
        """Wait until it has, or is gone."""
        await self._line.drained()

    def rest_until(self, done: asyncio.Future[Any], seconds: float) -> None:
        """Carry no other request on this connection before that is done; for so long at most."""
        self.rests_until, self.rests_at_most_until = done, asyncio.get_running_loop().time() + seconds

    def begin(self, status: int, head: bytes, length: int | None) -> None:
        """Keep the head for the first write."""
        self.has_begun = True
        self.is_last = self.is_last or not self.is_whole
        self._is_chunked = length is None and status not in _BODILESS
        if self._is_chunked:
            framing = b"transfer-encoding: chunked\r\n"
        else:
            framing = b"" if length is None else b"content-length: %d\r\n" % length
        last = b"connection: close\r\n\r\n" if self.is_last else b"\r\n"
        self._head = STATUS_LINES[status] + head + framing + last

    def write(self, data: bytes, *, more: bool) -> None:
        """Send what has begun and a part of the body in one piece: each write is a system call, and a wake-up there."""
        if self.is_lost:
            return
        if self.method == "HEAD":
            data = b""
        elif self._is_chunked:
            data = (b"%x\r\n%b\r\n" % (len(data), data) if data else b"") + (b"" if more else b"0\r\n\r\n")
        if self._head or data:
            head, self._head = self._head, b""
            self._line.transport.write(head + data)
        if not more:
            self.is_answered = True
            self._parts.clear()
            self._read_on()  # to what follows, if nobody took this body
            self._line.done(self)

    def _read_on(self) -> None:
        if self._is_held_up:
            self._is_held_up = False
            self._line.transport.resume_reading()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
