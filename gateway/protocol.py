"""uvicorn's HTTP protocol with what it leaves open: bounded headers, bounded time for them, errors in OpenAI's shape.

Its own protocol answers a 50 MB header with 200 and waits for ever for the second half of one. Times are looked at
once a second for all connections together (`tend`), so that no request pays for a timer of its own.
"""

import asyncio
from collections.abc import Callable, Iterable
from http import HTTPStatus

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from gateway.errors import HeadersTooLarge, InvalidRequest, RequestTimeout, encode_error, error_headers
from kernel import PlatformError

HEADER_BYTES_MAX = 64 * 1024
HEADER_SECONDS = 10.0
_TOO_LARGE = HeadersTooLarge(f"The request's line and headers are larger than {HEADER_BYTES_MAX} bytes.")


class BoundedProtocol(HttpToolsProtocol):
    """One connection. A head that is too large or too slow is answered and the connection closed."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The first head is due from now on."""
        super().connection_made(transport)
        self.on_lost: Callable[[], None] | None = None
        self._head_bytes = 0
        self._head_since: float | None = self.loop.time()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whoever answers here."""
        super().connection_lost(exc)
        if self.on_lost is not None:
            self.on_lost()

    def data_received(self, data: bytes) -> None:
        """Feed the parser; what it keeps of an unfinished head is bounded by what came since the head began."""
        if self.transport.is_closing():
            return
        self._head_bytes += len(data)
        super().data_received(data)
        if self._head_since is None:
            self._head_bytes = 0
        elif self._head_bytes > HEADER_BYTES_MAX and not self.transport.is_closing():
            self._refuse(_TOO_LARGE)

    def on_message_begin(self) -> None:
        """A head begins; a connection that was idle may take as long as any for it."""
        super().on_message_begin()
        if self._head_since is None:
            self._head_since = self.loop.time()

    def on_headers_complete(self) -> None:
        """The head is whole; the application may watch the connection and close it hard."""
        if sum(len(name) + len(value) for name, value in self.headers) + len(self.url) > HEADER_BYTES_MAX:
            return  # not handed on, so that `data_received` finds a head that has not ended
        self._head_since = None
        super().on_headers_complete()  # makes the cycle, whose task begins later
        self.scope["penstock.connection"] = _Line(self, self.cycle)  # type: ignore[typeddict-unknown-key]

    def send_400_response(self, msg: str) -> None:
        """What is not HTTP."""
        del msg
        too_large = self._head_since is not None and self._head_bytes > HEADER_BYTES_MAX
        self._refuse(_TOO_LARGE if too_large else InvalidRequest("The request is not valid HTTP."))

    def look_at_the_clock(self, now: float) -> None:
        """Refuse a head that is late."""
        if self._head_since is not None and now - self._head_since > HEADER_SECONDS and not self.transport.is_closing():
            if self._head_bytes:
                self._refuse(RequestTimeout(f"The headers did not arrive within {HEADER_SECONDS:g} seconds."))
            else:
                self.transport.close()

    def _refuse(self, error: PlatformError) -> None:
        body = encode_error(error)
        headers = {**error_headers(error), "content-type": "application/json", "content-length": str(len(body))}
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        status = HTTPStatus(error.status)
        head = f"HTTP/1.1 {status.value} {status.phrase}\r\n{lines}connection: close\r\n\r\n"
        self.transport.write(head.encode() + body)
        self.transport.close()


class _Line:
    """What one request's answer goes over: `gateway.exchange.Connection`."""

    __slots__ = ("_cycle", "_head", "_protocol")

    def __init__(self, protocol: BoundedProtocol, cycle: RequestResponseCycle) -> None:
        self._protocol = protocol
        self._cycle = cycle
        self._head = b""

    @property
    def is_lost(self) -> bool:
        return self._cycle.disconnected

    def whole_body(self) -> bytes | None:
        cycle = self._cycle
        return None if cycle.more_body or cycle.disconnected else bytes(cycle.body)

    def watch(self, on_lost: Callable[[], None] | None) -> None:
        self._protocol.on_lost = on_lost

    def abort(self) -> None:
        self._protocol.transport.abort()

    def begin(self, status: int, head: bytes, length: int | None) -> None:
        cycle = self._cycle
        cycle.response_started, cycle.waiting_for_100_continue = True, False
        cycle.chunked_encoding = length is None
        framing = b"transfer-encoding: chunked\r\n" if length is None else b"content-length: %d\r\n" % length
        last = b"\r\n" if cycle.keep_alive else b"connection: close\r\n\r\n"
        self._head = STATUS_LINE[status] + head + framing + last

    async def write(self, data: bytes, *, more: bool) -> None:
        cycle = self._cycle
        if cycle.flow.write_paused and not cycle.disconnected:
            await cycle.flow.drain()
        if cycle.disconnected:
            return
        if cycle.scope["method"] == "HEAD":
            data = b""
        elif cycle.chunked_encoding:
            data = (b"%x\r\n%b\r\n" % (len(data), data) if data else b"") + (b"" if more else b"0\r\n\r\n")
        if self._head or data:
            head, self._head = self._head, b""
            cycle.transport.write(head + data)  # together: each write is a system call, and a wake-up over there
        if not more:
            cycle.response_complete = True
            cycle.message_event.set()
            if not cycle.keep_alive:
                cycle.transport.close()
            cycle.on_response()


async def tend(connections: Iterable[object], seconds: float = 1.0) -> None:
    """Look at the clock for every connection, for ever."""
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(seconds)
        for connection in [each for each in connections if isinstance(each, BoundedProtocol)]:
            connection.look_at_the_clock(loop.time())
