"""A connection to a process that has no place: what is refused, how soon, and what is told in which order."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
import uvicorn
from prometheus_client import CollectorRegistry
from uvicorn.server import ServerState

from gateway.exchange import Connection
from gateway.metrics import Metrics
from gateway.overload import Admission
from gateway.protocol import HttpProtocol
from kernel import SystemClock
from tests.prove.server import free_port

BODY = b'{"n":1}'
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
ASKED = HEAD % len(BODY) + BODY


class Full(Admission):
    """An admission that is told whether there is a place."""

    def __init__(self) -> None:
        super().__init__(
            clock=SystemClock(), waiting=lambda: 0, round_seconds_max=1, metrics=Metrics(CollectorRegistry())
        )
        self.has_places = False

    def take(self) -> bool:
        return self.has_places


class Service:
    """An application that answers with the body, whose turns are booked when it is told to."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []
        self.may_answer = asyncio.Event()
        self.is_booked = asyncio.Event()
        self.may_answer.set()
        self.is_booked.set()

    async def __call__(self, connection: Connection) -> None:
        body = connection.take()
        while not connection.is_whole:
            await connection.more()
            body += connection.take()
        self.asked.append(connection.path.encode() + body)
        await self.may_answer.wait()
        connection.rest_until(asyncio.ensure_future(self.is_booked.wait()), 60)
        connection.begin(200, b"", len(body))
        connection.write(body, more=False)


class Client:
    """A connection that reads one answer after the other."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    async def answer(self) -> tuple[int, bytes, bytes]:
        """Status, head and body of the next answer; it comes soon."""
        async with asyncio.timeout(2):
            head = await self._reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
            return int(head.split()[1]), head, await self._reader.readexactly(length)


@asynccontextmanager
async def served(service: Service, admission: Admission) -> AsyncIterator[Client]:
    port = free_port()
    protocol = partial(HttpProtocol, admission=admission)
    config = uvicorn.Config(
        service, port=port, http=protocol, interface="asgi3", lifespan="off", log_config=None, proxy_headers=False
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    client = Client(*await asyncio.open_connection("127.0.0.1", port))
    yield client
    client.writer.close()
    service.may_answer.set()
    service.is_booked.set()
    server.should_exit = True
    await serving


@pytest.fixture
async def full() -> Full:
    return Full()


@pytest.fixture
async def service() -> Service:
    return Service()


@pytest.fixture
async def client(service: Service, full: Full) -> AsyncIterator[Client]:
    async with served(service, full) as made:
        yield made


async def test_who_finds_no_place_is_told_so_and_keeps_its_connection(
    client: Client, service: Service, full: Full
) -> None:
    for _ in range(3):
        client.writer.write(ASKED)
        status, head, body = await client.answer()
        assert status == 503
        assert b"retry-after: " in head
        assert b"x-should-retry: true" in head
        assert b"connection: close" not in head
        assert b'"overloaded"' in body
    full.has_places = True
    client.writer.write(ASKED)
    assert (await client.answer())[0] == 200
    assert service.asked == [b"/v1/chat/completions" + BODY]


async def test_whoever_comes_in_pieces_is_refused_too(client: Client, service: Service) -> None:
    client.writer.write(ASKED[:-3])
    await asyncio.sleep(0.05)
    status, head, _ = await client.answer()
    assert (status, b"connection: close" in head) == (503, True)
    assert service.asked == []


async def test_one_decision_stands_for_a_whole_request(client: Client, service: Service, full: Full) -> None:
    inside = ASKED * 3  # a body that looks like requests
    full.has_places = True
    client.writer.write(HEAD % len(inside))
    await asyncio.sleep(0.05)
    full.has_places = False
    client.writer.write(inside)
    status, _, body = await client.answer()
    assert (status, body) == (200, inside)
    assert len(service.asked) == 1


async def test_other_doors_stay_open(client: Client, service: Service) -> None:
    client.writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (await client.answer())[0] == 200
    client.writer.write(ASKED.replace(b"/v1/chat/completions", b"/api/apply"))
    assert (await client.answer())[0] == 200
    assert len(service.asked) == 2


async def test_who_was_answered_and_asks_again_before_its_books_are_closed_does_not_wait_for_them(
    client: Client, service: Service, full: Full
) -> None:
    service.is_booked.clear()
    full.has_places = True
    client.writer.write(ASKED)
    assert (await client.answer())[0] == 200
    full.has_places = False
    client.writer.write(ASKED)
    assert (await client.answer())[0] == 503
    service.is_booked.set()
    full.has_places = True
    client.writer.write(ASKED)
    assert (await client.answer())[0] == 200


async def test_answers_come_in_the_order_of_their_requests(client: Client, service: Service, full: Full) -> None:
    service.may_answer.clear()
    full.has_places = True
    client.writer.write(ASKED)
    await asyncio.sleep(0.05)
    full.has_places = False
    client.writer.write(ASKED)
    await asyncio.sleep(0.05)
    service.may_answer.set()
    assert [(await client.answer())[0] for _ in range(2)] == [200, 503]


class Stuck(asyncio.Transport):
    """A transport whose other side reads nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.is_dropped = False
        self.written = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += len(data)

    def abort(self) -> None:
        self.is_dropped = True

    def is_closing(self) -> bool:
        return self.is_dropped


async def test_who_asks_on_without_reading_is_dropped(service: Service, full: Full) -> None:
    config = uvicorn.Config(service, interface="asgi3", lifespan="off", log_config=None, proxy_headers=False)
    config.load()
    protocol, transport = HttpProtocol(config, ServerState(), {}, admission=full), Stuck()
    protocol.connection_made(transport)
    protocol.data_received(ASKED)
    assert not transport.is_dropped
    protocol.pause_writing()
    written = transport.written
    for _ in range(10):
        protocol.data_received(ASKED)
    assert transport.is_dropped
    assert transport.written == written
    protocol.connection_lost(None)
