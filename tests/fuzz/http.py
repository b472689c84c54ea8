"""One connection of the gateway's without a socket: bytes in, and the requests that it was taken for."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

from gateway.exchange import Connection
from gateway.protocol import HttpProtocol

_STILL_ROUNDS = 4  # of the loop, without anything that goes on


@dataclass(slots=True)
class Spoken:
    """What was understood: each request's method, path, query, headers and body.

    is_unread: one was answered before its body came, or might have been. is_held_up: nothing can follow.
    """

    requests: list[tuple[object, ...]] = field(default_factory=list)
    is_unread: bool = False
    is_held_up: bool = False


def spoken(blocks: Iterable[bytes]) -> Spoken:
    """Let the protocol take in these blocks, one after the other, as a socket would. Raises what it raises."""
    return _loop().run_until_complete(_speak(blocks))


@lru_cache(1)
def _loop() -> asyncio.AbstractEventLoop:
    return asyncio.new_event_loop()


async def _speak(blocks: Iterable[bytes]) -> Spoken:
    told, wrong = Spoken(), list[BaseException]()

    async def application(connection: Connection) -> None:
        try:
            await _hear(connection, told)
        except Exception as error:
            wrong.append(error)
            raise

    state = SimpleNamespace(connections=set(), tasks=set())
    config: Any = SimpleNamespace(loaded_app=application, limit_concurrency=None, timeout_keep_alive=5)
    admission: Any = SimpleNamespace(take=lambda: True)
    protocol, transport = HttpProtocol(config, state, None, admission=admission), _Transport()  # type: ignore[arg-type]
    protocol.connection_made(transport)
    for block in blocks:
        await _rest(transport, state.tasks)
        if transport.is_closed or not transport.is_reading:
            break
        protocol.data_received(block)
    await _rest(transport, state.tasks)
    told.is_held_up = not transport.is_reading and not transport.is_closed and not state.tasks
    protocol.connection_lost(None)
    await asyncio.gather(*state.tasks, return_exceptions=True)
    if wrong:
        raise wrong[0]
    return told


async def _hear(connection: Connection, told: Spoken) -> None:
    """Read a request and answer it; one in whose path is an x is answered unread."""
    body = b""
    told.is_unread = told.is_unread or "x" in connection.path
    while "x" not in connection.path:
        body += connection.take()
        if connection.is_whole or connection.is_lost:
            break
        await connection.more()
    if connection.is_lost:
        return
    if connection.is_whole:
        headers = tuple(sorted(connection.headers.items()))
        told.requests.append((connection.method, connection.path, connection.query, headers, body))
    connection.begin(200, b"", 2)
    connection.write(b"ok", more=False)


async def _rest(transport: "_Transport", tasks: "set[asyncio.Task[None]]") -> None:
    """Until what came is worked off, or waits for more."""
    before: object = None
    still = 0
    while still < _STILL_ROUNDS:
        await asyncio.sleep(0)
        now = (len(transport.written), len(tasks), transport.is_reading)
        still = still + 1 if now == before else 0
        before = now


class _Transport(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.is_reading = True
        self.is_closed = False

    def write(self, data: Any) -> None:
        self.written += data

    def pause_reading(self) -> None:
        self.is_reading = False

    def resume_reading(self) -> None:
        self.is_reading = True

    def is_closing(self) -> bool:
        return self.is_closed

    def close(self) -> None:
        self.is_closed = True

    def abort(self) -> None:
        self.is_closed = True
