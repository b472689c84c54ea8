"""HTTP on one connection, without a socket: in which order requests are answered, and what is waited for."""

import asyncio
import gc
import weakref
from collections.abc import Iterator

import pytest
import uvicorn
from prometheus_client import CollectorRegistry
from uvicorn.server import ServerState

from gateway.exchange import Connection
from gateway.metrics import Metrics
from gateway.overload import Admission
from gateway.protocol import HttpProtocol
from kernel import SystemClock

REQUEST = b"GET /%b HTTP/1.1\r\nhost: a\r\n\r\n"
REST_SECONDS = 5.0


def open_to_all() -> Admission:
    metrics = Metrics(CollectorRegistry())
    return Admission(clock=SystemClock(), waiting=lambda: 0, round_seconds_max=1, metrics=metrics)


class Transport(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.is_reading = True
        self.is_closed = False

    def write(self, data: bytes) -> None:
        self.written += data

    def pause_reading(self) -> None:
        self.is_reading = False

    def resume_reading(self) -> None:
        self.is_reading = True

    def is_closing(self) -> bool:
        return self.is_closed

    def close(self) -> None:
        self.is_closed = True


class Line:
    """A connection whose requests are answered with their path; the first one rests until it is booked."""

    def __init__(self) -> None:
        self.booked: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.asked: list[str] = []
        self.takes_bodies = False
        config = uvicorn.Config(self._answer, interface="asgi3", lifespan="off", log_config=None, proxy_headers=False)
        config.load()
        self.protocol = HttpProtocol(config, ServerState(), {}, admission=open_to_all())
        self.transport = Transport()
        self.protocol.connection_made(self.transport)

    async def _answer(self, connection: Connection) -> None:
        self.asked.append(connection.path)
        if self.takes_bodies:
            connection.take()
            assert self.transport.is_reading, "else nobody would see the caller leave"
        if len(self.asked) == 1:
            connection.rest_until(self.booked, REST_SECONDS)
        connection.begin(200, b"", len(connection.path))
        connection.write(connection.path.encode(), more=False)

    async def hear(self, *paths: bytes) -> None:
        self.protocol.data_received(b"".join(REQUEST % path for path in paths))
        await asyncio.sleep(0.01)


@pytest.fixture
async def line() -> Line:
    return Line()


@pytest.mark.parametrize(
    ("before", "target"), [(b"", b"a:" + b"x" * 65_537), (b"GET /a HTTP/1.0\r\n\r\n", b"a:1"), (b"", b"a:1")]
)
async def test_a_tunnel_is_refused_however_it_is_asked_for(line: Line, before: bytes, target: bytes) -> None:
    line.booked.set_result(None)
    line.protocol.data_received(before + b"CONNECT %b HTTP/1.1\r\nhost: a\r\n\r\n" % target)
    await asyncio.sleep(0.01)
    assert line.transport.is_closed
    assert len(line.asked) == (before != b"")


@pytest.mark.parametrize("takes_it", [True, False])
async def test_a_long_body_that_came_at_once_holds_nothing_up_that_follows(line: Line, *, takes_it: bool) -> None:
    line.booked.set_result(None)
    line.takes_bodies = takes_it
    line.protocol.data_received(b"POST /a HTTP/1.1\r\nhost: a\r\ncontent-length: 70000\r\n\r\n" + b"x" * 70_000)
    assert not line.transport.is_reading
    await asyncio.sleep(0.01)
    assert line.asked == ["/a"]
    assert line.transport.is_reading


@pytest.fixture(autouse=True)
def _ends(line: Line) -> Iterator[None]:
    yield
    line.protocol.connection_lost(None)


async def test_an_answer_leaves_at_once_and_the_next_request_waits_for_its_books(line: Line) -> None:
    await line.hear(b"one")
    assert line.transport.written.endswith(b"/one")
    await line.hear(b"two")
    assert line.asked == ["/one"]
    line.booked.set_result(None)
    await asyncio.sleep(0.01)
    assert line.asked == ["/one", "/two"]


async def test_who_waits_too_long_for_books_goes_on(line: Line) -> None:
    await line.hear(b"one", b"two")
    now = asyncio.get_running_loop().time()
    line.protocol.look_at_the_clock(now + REST_SECONDS / 2, 60)
    await asyncio.sleep(0.01)
    assert line.asked == ["/one"]
    line.protocol.look_at_the_clock(now + REST_SECONDS + 1, 60)
    await asyncio.sleep(0.01)
    assert line.asked == ["/one", "/two"]
    line.booked.set_result(None)
    await line.hear(b"three")
    assert line.asked == ["/one", "/two", "/three"]


async def test_requests_that_come_ahead_are_answered_in_their_order_and_not_read_without_end(line: Line) -> None:
    await line.hear(*(b"%d" % number for number in range(5)))
    assert not line.transport.is_reading
    line.booked.set_result(None)
    await asyncio.sleep(0.05)
    assert line.asked == ["/0", "/1", "/2", "/3", "/4"]
    assert line.transport.is_reading


async def test_a_connection_that_rests_is_closed_at_once_when_the_process_stops(line: Line) -> None:
    await line.hear(b"one")
    line.protocol.shutdown()
    assert line.transport.is_closed


async def test_what_is_no_request_is_refused_after_the_answer_before_it(line: Line) -> None:
    await line.hear(b"one")
    line.protocol.data_received(b"nonsense\r\n\r\n")
    assert b"/oneHTTP/1.1 400 Bad Request" in line.transport.written
    assert line.transport.is_closed


async def test_all_that_came_before_what_is_no_request_is_answered_first(line: Line) -> None:
    line.protocol.data_received(REQUEST % b"one" + REQUEST % b"two" + b"nonsense\r\n\r\n")
    line.booked.set_result(None)
    await asyncio.sleep(0.05)
    assert line.asked == ["/one", "/two"]
    assert line.transport.is_closed


async def test_an_idle_connection_is_closed_in_its_time_and_not_before(line: Line) -> None:
    line.booked.set_result(None)
    await line.hear(b"one")
    now = asyncio.get_running_loop().time()
    line.protocol.look_at_the_clock(now + 4, 60)
    assert not line.transport.is_closed
    line.protocol.look_at_the_clock(now + 6, 60)  # uvicorn's own five seconds are over
    assert line.transport.is_closed


async def test_who_takes_nothing_of_an_answer_is_dropped_and_who_waits_for_one_is_not(line: Line) -> None:
    await line.hear(b"one")
    now = asyncio.get_running_loop().time()
    aborted = []
    line.transport.abort = lambda: aborted.append(True)
    line.protocol.look_at_the_clock(now + 3, 2)
    assert not aborted
    line.protocol.pause_writing()
    line.protocol.look_at_the_clock(now + 3, 2)
    assert aborted


async def test_a_connection_that_is_gone_leaves_nothing_to_the_garbage_collector(line: Line) -> None:
    line.booked.set_result(None)
    await line.hear(b"one", b"two")
    gone = weakref.ref(line.protocol)
    gc.disable()
    try:
        line.protocol.connection_lost(None)
        line.protocol = Line().protocol
        await asyncio.sleep(0)
        assert gone() is None
    finally:
        gc.enable()
