"""A provider that does exactly what a test wrote down, byte by byte, on a socket of its own."""

import asyncio
import json
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

HOLD = "hold"  # say nothing more until the client hangs up
CUT = "cut"  # close the connection in good order
RESET = "reset"  # close it with a TCP RST
HALF_CLOSE = "half-close"  # send FIN, go on listening


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
    """`async with ScriptedUpstream() as upstream`, then `upstream.will(...)`: the steps of every further answer."""

    steps: tuple[Step, ...] = ()
    requests: list[Request] = field(default_factory=list)
    connections: int = 0
    hung_up: asyncio.Event = field(default_factory=asyncio.Event)
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def will(self, *steps: Step) -> None:
        self.steps = steps

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.get_running_loop().create_task(self._converse(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                self.requests.append(await self._read(reader))
                self.asked.set()
                for step in self.steps:
                    if await self._do(step, reader, writer):
                        return
        except (OSError, asyncio.IncompleteReadError):
            self.hung_up.set()
        finally:
            writer.close()

    @staticmethod
    async def _read(reader: asyncio.StreamReader) -> Request:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in head[1:] if line)}
        return Request(head[0], headers, await reader.readexactly(int(headers.get("content-length", "0"))))

    async def _do(self, step: Step, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Take one step; True if the connection is over."""
        match step:
            case bytes():
                writer.write(step)
                await writer.drain()
            case Repeat(block, times):
                for _ in range(times):
                    writer.write(block)
                    await writer.drain()
            case Drip(block, piece_bytes):
                for at in range(0, len(block), piece_bytes):
                    writer.write(block[at : at + piece_bytes])
                    await writer.drain()
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
            case "half-close":
                writer.write_eof()
                return await self._do(HOLD, reader, writer)
            case "cut":
                return True
        return False


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
