"""HTTP/1.1 to providers over connections of our own: an asyncio protocol over httptools, a pool, and nothing else.

It exists because the client decides what a turn costs (docs/decisions/0004). A connection that fails is never
replaced behind the caller's back: whether a request left is what money depends on. What a server sends before it was
asked, or after its answer, closes the connection.
"""

import asyncio
import math
import select
from collections.abc import Mapping

import httptools

from router.carrier import Head, Origin, lines
from router.dispatch import UpstreamSettings
from router.errors import UpstreamError
from router.journey import Journey
from router.tls import Contexts

_OVERHEAD_BYTES_MAX = 64 * 1024  # of a head, of trailers, of anything in a row that is not body
_BUFFERED_BYTES_MAX = 256 * 1024  # of an answer that nobody reads; then the socket fills up, and the provider waits
_PIECE_BYTES = 256 * 1024  # of a request is written at once, so that others get their turn
_BODILESS = frozenset({204, 304})
_FINAL, _REFUSING = 200, 300  # the first statuses that are no interim ones, and that need no rest of the request


class Http1Answer:
    """One answer, filled by its connection. `carrier.Answer` says what it promises."""

    __slots__ = ("_blocks", "_connection", "_error", "_journey", "_unread", "_waiter", "complete", "headers", "status")

    def __init__(self, connection: "_Connection", journey: Journey) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.complete = False
        self._connection = connection
        self._journey = journey
        self._blocks: list[bytes] = []
        self._unread = 0
        self._error: UpstreamError | None = None
        self._waiter: asyncio.Future[None] | None = None

    async def head(self, rest: memoryview) -> None:
        """Write what is left of the request as the socket takes it, then wait for the status and the headers."""
        while rest and not self.complete and self._error is None and self.status < _REFUSING:
            if self._connection.is_full:
                await self._news()
            else:
                self._connection.write(rest[:_PIECE_BYTES])
                rest = rest[_PIECE_BYTES:]
                self._connection.owes = bool(rest)
                await asyncio.sleep(0)
        while not self.status:
            await self._news()

    async def block(self) -> bytes:
        """What came of the body since the last time."""
        while not self._blocks:
            if self.complete:
                return b""
            await self._news()
        block = self._blocks[0] if len(self._blocks) == 1 else b"".join(self._blocks)
        self._blocks.clear()
        if self._unread > _BUFFERED_BYTES_MAX:
            self._connection.resume(self)
        self._unread = 0
        return block

    def close(self) -> None:
        """Hang up, unless all has come."""
        self._connection.leave(self)

    def keep(self) -> None:
        """Let what is left of the body come, for a moment."""
        self._connection.drain(self)

    # What the connection says

    def take(self, data: bytes) -> None:
        """A piece of the body came."""
        self._blocks.append(data)
        self._unread += len(data)
        if self._unread > _BUFFERED_BYTES_MAX:
            self._connection.pause()
        if self._waiter is not None:
            self.wake()

    def finish(self) -> None:
        """All has come."""
        self.complete = True
        self.wake()

    def fail(self, cause: BaseException | None = None) -> None:
        """Nothing more will come."""
        self._error = self._journey.broken(cause)
        self.wake()

    def wake(self) -> None:
        """There is news for whoever waits."""
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _news(self) -> asyncio.Future[None]:
        """What to wait for until the connection says something more."""
        if self._error is not None:
            raise self._error
        if self._journey.deadline < self._connection.rings_at:
            self._connection.ring_at(self._journey.deadline)
        self._waiter = self._connection.loop.create_future()
        return self._waiter

    def look_at_the_clock(self) -> None:
        """End what is late; for anything else, see to it that this is called again."""
        # What is due moves on with every event, and the timer follows. Where nobody waits, as while a caller is slow to
        # take an event, only the end of everything is due.
        is_awaited = self._waiter is not None and not self._waiter.done()
        due = self._journey.deadline if is_awaited else self._journey.ends_at
        if self._connection.loop.time() < due:
            self._connection.ring_at(due)
            return
        self._error = self._journey.late(None if is_awaited else "total")
        self._blocks.clear()
        self._connection.leave(self)
        self.wake()


class _Connection(asyncio.Protocol):
    """One connection: idle in its pool, carrying one request, or read to the end of an answer that nobody wants.

    is_full: the socket takes no more for now. owes: a part of the request has yet to be written. rings_at: when its
    answer will look at the clock. One timer serves all answers: making and stopping one for each costs more than
    looking once too often.
    """

    def __init__(self, pool: "Http1", origin: Origin) -> None:
        self.loop = asyncio.get_running_loop()
        self.origin = origin
        self.idle_since = 0.0
        self.is_full = self.owes = False
        self.rings_at = math.inf
        self._timer: asyncio.TimerHandle | None = None
        self._pool = pool
        self._parser = httptools.HttpResponseParser(self)
        self._answer: Http1Answer | None = None
        self._draining: asyncio.TimerHandle | None = None
        self._overhead_bytes = 0
        self._in_head = self._over = self._keeps_alive = self._ends_by_closing = False

    @property
    def is_open(self) -> bool:
        """Whether it can carry more, as far as the loop has noticed."""
        return not self._transport.is_closing()

    @property
    def is_quiet(self) -> bool:
        """Whether nothing has come, not even an end, that the loop has yet to notice: then nobody asked for it."""
        return self.is_open and not self._arrivals.poll(0)

    def send(self, journey: Journey, first: bytes, *, owes: bool) -> Http1Answer:
        """Send a request or the first piece of one; its answer is filled as it comes."""
        self._answer = answer = Http1Answer(self, journey)
        self._overhead_bytes, self._in_head, self.owes = 0, True, owes
        journey.depart()
        self._transport.write(first)
        return answer

    def ring_at(self, due: float) -> None:
        """Let the answer that is there then look at the clock."""
        if self._timer is not None:
            self._timer.cancel()
        self.rings_at = due
        self._timer = self.loop.call_at(due, self._ring)

    def write(self, piece: memoryview) -> None:
        """Send more of the request."""
        self._transport.write(piece)

    def leave(self, answer: Http1Answer) -> None:
        """Hang up, if this is still the answer that comes."""
        if answer is self._answer:
            self._answer = None
            self._transport.abort()

    def drain(self, answer: Http1Answer) -> None:
        """Read this answer to its end without anybody, if it still comes."""
        if answer is self._answer:
            self._answer = None
            self._draining = self.loop.call_later(self._pool.settings.drain_seconds, self._transport.abort)
            self._transport.resume_reading()

    def pause(self) -> None:
        """Read no more for now."""
        self._transport.pause_reading()

    def resume(self, answer: Http1Answer) -> None:
        """Read on, if this is still the answer that comes."""
        if answer is self._answer:
            self._transport.resume_reading()

    def close(self, cause: BaseException | None = None) -> None:
        """Hang up; an answer that was still to come is broken."""
        answer, self._answer = self._answer, None
        if answer is not None:
            answer.fail(cause)
        self._transport.abort()

    def _ring(self) -> None:
        self._timer, self.rings_at = None, math.inf
        if self._answer is not None:
            self._answer.look_at_the_clock()

    # asyncio's callbacks

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # TCP's is no less
        self._transport = transport
        self._arrivals = select.poll()
        self._arrivals.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
        self._pool.remember(self)

    def data_received(self, data: bytes) -> None:
        if self._answer is None and self._draining is None:
            self._transport.abort()  # nobody asked
            return
        self._overhead_bytes += len(data)
        try:
            self._parser.feed_data(data)
            is_sound = self._overhead_bytes <= _OVERHEAD_BYTES_MAX
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            is_sound = False
        if self._over:
            self._finish(is_reusable=is_sound and self._keeps_alive)
        elif not is_sound:
            self.close()

    def pause_writing(self) -> None:
        self.is_full = True

    def resume_writing(self) -> None:
        self.is_full = False
        if self._answer is not None:
            self._answer.wake()

    def eof_received(self) -> None:
        if not self._ends_by_closing:
            self.close()  # asyncio would first write what is left of the request, to nobody

    def connection_lost(self, exc: Exception | None) -> None:
        self._pool.forget(self)
        if self._timer is not None:
            self._timer.cancel()
        if exc is None and self._ends_by_closing:
            self._finish(is_reusable=False)
        else:
            self.close(exc)
        if self._draining is not None:
            self._draining.cancel()
        del self._parser  # it and this hold each other, and would wait for the garbage collector

    # httptools' callbacks; what they raise ends its feed_data. What is to be done waits until that has returned.

    def on_message_begin(self) -> None:
        if self._over or self._answer is None:
            raise ValueError("more came than one answer")
        self._answer.headers.clear()  # of an interim answer

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._answer is not None and self._in_head:  # else a trailer
            self._answer.headers.setdefault(name.decode("latin-1").lower(), value.decode("latin-1"))

    def on_headers_complete(self) -> None:
        answer, status = self._answer, self._parser.get_status_code()
        if answer is None or status < _FINAL:
            return
        coding = answer.headers.get("transfer-encoding")
        if coding is not None and coding.strip().lower() != "chunked":
            raise ValueError("a coding that nobody asked for")
        self._ends_by_closing = coding is None and "content-length" not in answer.headers and status not in _BODILESS
        self._in_head = False
        answer.status = status
        answer.wake()

    def on_body(self, data: bytes) -> None:
        self._overhead_bytes = 0
        if self._answer is not None:
            self._answer.take(data)

    def on_message_complete(self) -> None:
        if not self._in_head:  # else an interim answer, such as 100
            self._over, self._keeps_alive = True, self._parser.should_keep_alive()

    def _finish(self, *, is_reusable: bool) -> None:
        """The answer is whole, and nobody knows this connection any more but its pool."""
        answer, self._answer = self._answer, None
        self._over = self._ends_by_closing = False
        if answer is not None:
            answer.finish()
        if self._draining is not None:
            self._draining.cancel()
            self._draining = None
        # A server that answers before it has read all of the request will close.
        if is_reusable and not self.owes and self.is_open and not self._transport.get_write_buffer_size():
            self._transport.resume_reading()
            self._pool.give_back(self)
        else:
            self._transport.abort()


class Http1:
    """Sends POSTs over HTTP/1.1, with TLS where the URL says so; `carrier.Carrier` says what it promises."""

    def __init__(self, settings: UpstreamSettings) -> None:
        self.settings = settings
        self._all: set[_Connection] = set()
        self._idle: dict[Origin, dict[_Connection, None]] = {}  # the one that was used last comes last
        self._contexts = Contexts()
        self._sweep: asyncio.TimerHandle | None = None
        self._closed = False

    async def post(self, journey: Journey, head: Head, own: Mapping[str, str], body: bytes) -> Http1Answer:
        """Send once and wait for the head of the answer."""
        connection = self._idle_one(head.origin) or await self._connect(journey, head.origin)
        size, rest = len(body), memoryview(body)[_PIECE_BYTES:]
        first = b"%b%bContent-Length: %d\r\n\r\n%b" % (head.lines, lines(own), size, body[:_PIECE_BYTES])
        answer = connection.send(journey, first, owes=bool(rest))
        try:
            await answer.head(rest)
        except BaseException:
            answer.close()
            raise
        return answer

    async def close(self) -> None:
        """Let go of all connections."""
        self._closed = True
        if self._sweep is not None:
            self._sweep.cancel()
        for connection in list(self._all):
            connection.close()
        await asyncio.sleep(0)  # in which their transports end

    def remember(self, connection: _Connection) -> None:
        """The connection is there."""
        self._all.add(connection)
        if self._closed:
            connection.close()

    def give_back(self, connection: _Connection) -> None:
        """The connection can carry another request."""
        connection.idle_since = connection.loop.time()
        self._idle.setdefault(connection.origin, {})[connection] = None
        if self._sweep is None:
            self._sweep = connection.loop.call_later(self.settings.keepalive_seconds, self._close_old_ones)

    def forget(self, connection: _Connection) -> None:
        """The connection is gone."""
        self._all.discard(connection)
        self._idle.get(connection.origin, {}).pop(connection, None)

    def _idle_one(self, origin: Origin) -> _Connection | None:
        """The one that was used last, so that those which are not needed grow old."""
        idle = self._idle.get(origin)
        while idle:
            connection, _ = idle.popitem()
            if connection.is_quiet:
                return connection
            connection.close()
        return None

    async def _connect(self, journey: Journey, origin: Origin) -> _Connection:
        loop = asyncio.get_running_loop()
        due = loop.time() + journey.dispatch.provider.connect_seconds
        try:
            async with asyncio.timeout_at(min(due, journey.deadline)):
                tls = None if origin.terms is None else await self._contexts.of(origin.terms)
                _, connection = await loop.create_connection(
                    lambda: _Connection(self, origin), origin.host, origin.port, ssl=tls
                )
        except TimeoutError as error:
            raise journey.late("connect" if due < journey.deadline else None) from error
        except (OSError, ValueError) as error:  # of TLS too; the latter for a key or a host that cannot be read
            raise journey.broken() from error
        if not connection.is_open:  # it was accepted and closed, or spoke first
            raise journey.broken()
        return connection

    def _close_old_ones(self) -> None:
        loop = asyncio.get_running_loop()
        keepalive_seconds, due = self.settings.keepalive_seconds, math.inf
        for origin, idle in list(self._idle.items()):
            for connection in list(idle):
                if loop.time() < connection.idle_since + keepalive_seconds:
                    due = min(due, connection.idle_since + keepalive_seconds)
                    break
                del idle[connection]
                connection.close()
            if not idle:
                del self._idle[origin]
        self._sweep = loop.call_at(due, self._close_old_ones) if due < math.inf else None
