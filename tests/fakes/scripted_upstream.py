"""A provider that does exactly what a test wrote down, byte by byte, on a socket of its own."""

import asyncio
import json
import os
import socket
import ssl
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any, Self

HOLD = "hold"  # say nothing more until the client hangs up
CUT = "cut"  # close the connection in good order
RESET = "reset"  # close it with a TCP RST
FIN = "fin"  # send FIN
HALF_CLOSE = "half-close"  # send FIN, go on listening
SWALLOW = "swallow"  # read the body of a request whose head alone was read


@dataclass(frozen=True)
class Repeat:
    """The same block many times over."""

    block: bytes
    times: int


@dataclass(frozen=True)
class Drip:
    """A block in pieces, each in a write and a turn of the loop of its own."""

    block: bytes
    piece_bytes: int = 1


@dataclass(frozen=True)
class Wait:
    """A pause; kept to hundredths, and always against a limit that is smaller or far larger."""

    seconds: float


Step = bytes | str | Repeat | Drip | Wait


@contextmanager
def deaf_url() -> Iterator[str]:
    """Where nobody is ever connected: the one place in the queue is taken, so that a further SYN is not answered."""
    with ExitStack() as opened:
        deaf = opened.enter_context(socket.socket())
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        for _ in range(3):
            other = opened.enter_context(socket.socket())
            other.settimeout(0)
            other.connect_ex(deaf.getsockname())
        yield f"http://127.0.0.1:{deaf.getsockname()[1]}"


@dataclass
class Request:
    line: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class ScriptedUpstream:
    """`async with ScriptedUpstream() as upstream`, then `upstream.will(...)`: the steps of every further answer.

    greeting: the steps before anything was read. reads_bodies: whether a request is read to its end before the answer
    begins. answer: makes the steps of each answer, where they differ. heads: the headers of all requests, whole or not;
    requests: those that came whole. written: bytes that the socket took. peers: the names in the
    certificates of those who asked.
    """

    steps: tuple[Step, ...] = ()
    greeting: tuple[Step, ...] = ()
    tls: ssl.SSLContext | None = None
    reads_bodies: bool = True
    answer: Callable[[], tuple[Step, ...]] | None = None
    requests: list[Request] = field(default_factory=list)
    heads: list[Mapping[str, str]] = field(default_factory=list)
    connections: int = 0
    closed: int = 0
    written: int = 0
    peers: list[str] = field(default_factory=list)
    hung_up: asyncio.Event = field(default_factory=asyncio.Event)
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _open: set[asyncio.StreamWriter] = field(default_factory=set)

    def will(self, *steps: Step) -> None:
        self.steps = steps

    @property
    def port(self) -> int:
        return self._server.sockets[0].getsockname()[1]

    @property
    def url(self) -> str:
        return f"http{'s' if self.tls else ''}://127.0.0.1:{self.port}/v1"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=self.tls, backlog=1024)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def say(self, data: bytes) -> None:
        """Write to every connection, asked or not."""
        for writer in self._open:
            writer.write(data)

    def drop(self, how: int = socket.SHUT_RDWR) -> None:
        """End every connection at once, before the loop turns and the client can know."""
        for writer in self._open:
            descriptor = os.dup(writer.get_extra_info("socket").fileno())
            with socket.socket(fileno=descriptor) as connection, suppress(OSError):  # it may have ended already
                connection.shutdown(how)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._open.add(writer)
        task = asyncio.get_running_loop().create_task(self._converse(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            for step in self.greeting:
                if await self._do(step, reader, writer):
                    return
            while True:
                await self._read(reader)
                if shown := writer.get_extra_info("peercert"):
                    self.peers.append(dict(part[0] for part in shown["subject"])["commonName"])
                for step in self.answer() if self.answer else self.steps:
                    if await self._do(step, reader, writer):
                        return
        except (OSError, asyncio.IncompleteReadError):
            self.hung_up.set()
        finally:
            self.closed += 1
            self._open.discard(writer)
            writer.close()

    async def _read(self, reader: asyncio.StreamReader) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in head[1:] if line)}
        self.heads.append(headers)
        self.asked.set()
        if self.reads_bodies:
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            self.requests.append(Request(head[0], headers, body))

    async def _do(self, step: Step, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Take one step; True if the connection is over."""
        match step:
            case bytes() | Repeat() | Drip():
                for piece in _pieces(step):
                    writer.write(piece)
                    await writer.drain()
                    self.written += len(piece)
                    if isinstance(step, Drip):
                        await asyncio.sleep(0)
            case Wait(seconds):
                await asyncio.sleep(seconds)
            case "hold":
                while await reader.read(65536):
                    pass
                self.hung_up.set()
                return True
            case "reset":
                sock = writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()
                return True
            case "fin":
                writer.write_eof()
            case "half-close":
                writer.write_eof()
                return await self._do(HOLD, reader, writer)
            case "swallow":
                await reader.readexactly(int(self.heads[-1]["content-length"]))
            case "cut":
                return True
        return False


def _pieces(step: bytes | Repeat | Drip) -> Iterable[bytes]:
    match step:
        case bytes():
            return (step,)
        case Repeat(block, times):
            return repeat(block, times)
        case Drip(block, size):
            return (block[at : at + size] for at in range(0, len(block), size))


def whole(body: bytes | object, *headers: str, status: str = "200 OK", length: int | None = None) -> bytes:
    """A complete HTTP answer with a JSON body."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status}", "Content-Type: application/json", *headers]
    lines.append(f"Content-Length: {len(data) if length is None else length}")
    return "\r\n".join([*lines, "", ""]).encode() + data


STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\nx-request-id: req-7\r\n\r\n"
)
LAST_CHUNK = b"0\r\n\r\n"
DONE = b"data: [DONE]\n\n"


def chunked(*blocks: bytes) -> bytes:
    """Blocks as HTTP chunks."""
    return b"".join(f"{len(block):x}\r\n".encode() + block + b"\r\n" for block in blocks)


def event(value: object) -> bytes:
    """A JSON value as a server-sent event."""
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def said(text: str, index: int = 0) -> bytes:
    """An event that carries text."""
    return event({"id": "c-1", "choices": [{"index": index, "delta": {"content": text}, "finish_reason": None}]})


def finished(index: int = 0, usage: object = None) -> bytes:
    """An event that ends a choice."""
    return event({"id": "c-1", "choices": [{"index": index, "delta": {}, "finish_reason": "stop"}], "usage": usage})


def used(prompt: int = 7, completion: int = 2) -> bytes:
    """The event that carries usage alone."""
    return event({"id": "c-1", "choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": completion}})


ROLE = event({"id": "c-1", "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
REPLY = {
    "id": "c-1",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello there"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9},
}
EVENTS = (ROLE, said("Hello"), said(" there"), finished(), used(), DONE)
