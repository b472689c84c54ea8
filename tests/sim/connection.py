"""HTTP/1.1 down to the byte: requests read one after the other, answers written, split, cut or reset at will.

It knows no vendor. A client that leaves, or half-closes, ends the task that serves it.
"""

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from http import HTTPStatus
from urllib.parse import parse_qsl

import httptools

JSON_HEADERS = (("content-type", "application/json"),)
STREAM_HEADERS = (("content-type", "text/event-stream; charset=utf-8"), ("cache-control", "no-cache"))
_REASONS = {status.value: status.phrase for status in HTTPStatus}
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@dataclass(slots=True)
class Request:
    """One request, whole. Header names are lower case; the last of a repeated header counts."""

    method: str = ""
    path: str = ""
    query: dict[str, str] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    keep_alive: bool = True


Headers = tuple[tuple[str, str], ...]
Serve = Callable[[Request, "Connection"], Coroutine[None, None, None]]


def head(status: int, headers: Headers, *, length: int | None) -> bytes:
    """Status line and headers; without a length the body comes in chunks."""
    framing = ("transfer-encoding", "chunked") if length is None else ("content-length", str(length))
    lines = [f"HTTP/1.1 {status} {_REASONS.get(status, 'Status')}"]
    lines += [f"{name}: {value}" for name, value in (*headers, framing)]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", errors="replace")


def chunk(data: bytes) -> bytes:
    """One chunk of a chunked body; of nothing, the last one."""
    return b"%x\r\n%b\r\n" % (len(data), data)


class Connection(asyncio.Protocol):
    """One client. `serve` is called for one request at a time, in a task that is cancelled when the client leaves."""

    def __init__(self, serve: Serve, roll: set["Connection"]) -> None:
        self._serve = serve
        self._roll = roll
        self._parser = httptools.HttpRequestParser(self)
        self._reading = Request()
        self._waiting: deque[Request] = deque()
        self._task: asyncio.Task[None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._transport: asyncio.Transport

    async def send(self, data: bytes, *, piece_bytes: int = 0) -> None:
        """Write, in pieces of their own if so wished, and wait while the client does not read.

        Raises ConnectionResetError once the connection is closing.
        """
        step = piece_bytes or len(data)
        for start in range(0, len(data), step or 1):
            if self._transport.is_closing():
                raise ConnectionResetError
            self._transport.write(data[start : start + step])
            if piece_bytes:
                await asyncio.sleep(0)
        await self._writable.wait()

    async def reply(self, status: int, body: bytes, headers: Headers = JSON_HEADERS, *, piece_bytes: int = 0) -> None:
        """A whole answer."""
        await self.send(head(status, headers, length=len(body)) + body, piece_bytes=piece_bytes)

    def close(self) -> None:
        """FIN once what was written is out, whatever the framing promised."""
        self._transport.close()

    def reset(self) -> None:
        """RST, now."""
        connected: socket.socket = self._transport.get_extra_info("socket")
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self._transport.abort()

    def end(self) -> asyncio.Task[None] | None:
        """Drop the client and the work for it; the task returned ends soon."""
        self._transport.abort()
        if self._task:
            self._task.cancel()
        return self._task

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._roll.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._roll.discard(self)
        self._waiting.clear()
        self._writable.set()
        if self._task:
            self._task.cancel()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._transport.write(head(400, JSON_HEADERS, length=0))
            self._transport.close()

    def on_message_begin(self) -> None:
        self._reading = Request()

    def on_url(self, url: bytes) -> None:
        self._reading.path += url.decode("latin-1")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._reading.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        self._reading.body += body

    def on_message_complete(self) -> None:
        self._reading.method = self._parser.get_method().decode("latin-1")
        self._reading.path, _, query = self._reading.path.partition("?")
        self._reading.query = dict(parse_qsl(query, keep_blank_values=True))
        self._reading.keep_alive = self._parser.should_keep_alive()
        self._waiting.append(self._reading)
        self._next()

    def _next(self) -> None:
        if self._task is None and self._waiting and not self._transport.is_closing():
            self._task = asyncio.get_running_loop().create_task(self._run(self._waiting.popleft()))

    async def _run(self, request: Request) -> None:
        served = False
        try:
            await self._serve(request, self)
            served = True
        except ConnectionResetError:
            return
        finally:
            self._task = None
            if not served:
                self._transport.abort()
        if not request.keep_alive:
            self._transport.close()
        self._next()
