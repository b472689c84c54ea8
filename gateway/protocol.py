"""HTTP/1.1 as the gateway speaks it: a protocol over httptools on uvicorn's server, where every answer is one write.

Heads, the time for them, and what is read ahead are bounded; errors below HTTP are in OpenAI's shape too. Times are
looked at once a second for all connections together (`tend`), so that no request pays for a timer of its own.
"""

import asyncio
import logging
import re
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from functools import lru_cache, partial
from typing import Any

import httptools
import uvicorn
from uvicorn.server import ServerState

from gateway.errors import (
    Crowded,
    HeadersTooLarge,
    InternalError,
    InvalidRequest,
    Overloaded,
    RequestTimeout,
    encode_error,
    error_lines,
)
from gateway.exchange import Connection
from gateway.overload import Admission, is_one_turn
from gateway.request import STATUS_LINES, Request
from kernel import PlatformError

HEADER_BYTES_MAX = 64 * 1024
HEADER_SECONDS = 10.0
_TOO_LARGE = HeadersTooLarge(f"The request's line and headers are larger than {HEADER_BYTES_MAX} bytes.")
_HOST = re.compile(r"[A-Za-z0-9._~!$&'()*+;=%:\[\]-]*")
_TURNS = b"POST /v1/"
_WAITING_MAX = 2  # requests behind the one that is answered; nearly everybody sends one, while its turn is booked

_log = logging.getLogger("penstock.protocol")

Application = Callable[[Connection], Coroutine[Any, Any, None]]


class HttpProtocol(asyncio.Protocol):
    """One connection: its requests are answered one after the other, in the order in which they came."""

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: object,
        _loop: object = None,
        *,
        admission: Admission,
    ) -> None:
        del app_state, _loop  # uvicorn gives them to every protocol; the first is lifespan's, which is off
        self.is_full = False
        self._application: Application = config.loaded_app
        self._admission = admission
        self._has_place = True  # the request whose head comes
        self._connections_max = config.limit_concurrency
        self._idle_seconds = config.timeout_keep_alive
        self._connections: set[Any] = server_state.connections
        self._tasks = server_state.tasks
        self._loop = asyncio.get_running_loop()
        self._parser = self._new_parser()
        self._coming: Request | None = None  # the one whose body comes
        self._answering: Request | None = None
        self._waiting: deque[Request] = deque()
        self._full_since: float | None = None
        self._drained: asyncio.Future[None] | None = None
        self._over = self._asks_again = False  # nothing that still comes is a request; the same one once more
        self._url, self._headers = b"", dict[str, str]()
        self._head_bytes = self._fields_bytes = self._data_bytes = self._content_bytes = 0
        self._beside_bytes = HEADER_BYTES_MAX  # what may still come of a body that is none of its content
        self._fault: str | None = None
        self._idle_since = self._loop.time()
        self._head_since: float | None = self._idle_since
        self._left_over_since: float | None = None

    # asyncio's callbacks

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # TCP's is no less
        """The first head is due from now on."""
        self.transport = transport
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whoever answers here."""
        del exc
        self._connections.discard(self)
        self._over = True
        self._waiting.clear()
        self.resume_writing()
        del self._parser  # it and this hold each other, and would wait for the garbage collector
        coming, answering = self._coming, self._answering
        self._coming = self._answering = None
        if coming is not None:
            coming.lose()
        if answering is not None and answering is not coming:
            answering.lose()

    def data_received(self, data: bytes) -> None:
        """Feed the parser; what it keeps of an unfinished head is bounded by what came since the head began."""
        if self._over or self.transport.is_closing():
            return
        if self._coming is None and not self._head_bytes and data.startswith(_TURNS):
            self._has_place = self._admission.take()
            if not self._has_place and self._turn_away(data):
                return
        self._head_bytes += len(data)
        self._data_bytes, self._content_bytes = len(data), 0
        try:
            while data:
                data = self._feed(data)
        except httptools.HttpParserError:
            fault = InvalidRequest(self._fault or "The request is not valid HTTP.")
            self._refuse(fault if self._head_fits else _TOO_LARGE)
            return
        if self._head_since is None:
            self._head_bytes = 0
        elif not self._head_fits:
            self._refuse(_TOO_LARGE)
        if self._coming is not None:
            # As much may be beside a body's content as is in it, but not in one go: extensions, trailers, tiny chunks.
            beside = self._data_bytes - self._content_bytes
            self._beside_bytes = min(self._beside_bytes + self._content_bytes, HEADER_BYTES_MAX) - beside
            if self._beside_bytes < 0:
                self._refuse(_TOO_LARGE)

    def _feed(self, data: bytes) -> bytes:
        """Feed the parser and give back what is still to be fed: after a request that asks for an upgrade, it again.

        The parser would take what follows for another protocol. An upgrade may be ignored (RFC 9110, 7.8), and Java's
        client asks for one with its first request, whatever that is.
        """
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if not self._asks_again:
                return b""  # of a head that is too large, or comes too late: to feed it again would never end
            self._asks_again = False
            head = [f"{self._parser.get_method().decode()} ".encode() + self._url + b" HTTP/1.1"]
            head += [f"{name}: {text}".encode("latin-1") for name, text in self._headers.items() if name != "upgrade"]
            self._parser = self._new_parser()
            return b"\r\n".join([*head, b"", data[upgrade.args[0] :]])
        return b""

    @property
    def _head_fits(self) -> bool:
        return self._head_since is None or self._head_bytes <= HEADER_BYTES_MAX

    def _new_parser(self) -> httptools.HttpRequestParser:
        parser = httptools.HttpRequestParser(self)
        # What follows a last request is for `data_received` to pass over, not for the parser to refuse.
        parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return parser

    def eof_received(self) -> None:
        """Whoever says nothing more hears nothing more: asyncio closes the connection."""

    def pause_writing(self) -> None:
        """The other side is slow to read."""
        self.is_full, self._full_since = True, self._loop.time()

    def resume_writing(self) -> None:
        """It has caught up, or is gone."""
        self.is_full, self._full_since = False, None
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    # httptools' callbacks

    def on_message_begin(self) -> None:
        """A head begins; a connection that was idle may take as long as any for it."""
        self._url, self._headers, self._fields_bytes = b"", {}, 0
        if self._head_since is None:
            self._head_since = self._loop.time()

    def on_url(self, url: bytes) -> None:
        """A part of the request's target."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header; a repeated one is one list with commas, as HTTP has it. Trailers are none (RFC 9110, 6.5.1)."""
        if self._coming is not None:
            return
        self._fields_bytes += len(name) + len(value)
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        known = self._headers.get(key)
        self._headers[key] = text if known is None else f"{known}, {text}"

    def on_headers_complete(self) -> None:
        """The head is whole: its request is answered as soon as those before it are."""
        if self._over or self._fields_bytes + len(self._url) > HEADER_BYTES_MAX:
            return  # too large is not handed on, so that `data_received` finds a head that has not ended
        parser = self._parser
        version = parser.get_http_version()
        self._fault = _fault_of(version, parser.get_method(), self._headers)
        if self._fault is not None:
            raise ValueError  # what the parser makes an HttpParserError of
        if parser.should_upgrade():
            self._asks_again = True  # without
            return
        self._head_since = None
        self._beside_bytes = HEADER_BYTES_MAX + self._data_bytes
        is_last = version == "1.0" or not parser.should_keep_alive()
        self._coming = request = Request(self, parser.get_method().decode(), self._url, self._headers, is_last=is_last)
        request.is_refused, self._has_place = not self._has_place, True
        if self._answering is None:
            self._answer(request)
        else:
            self._waiting.append(request)
            if len(self._waiting) >= _WAITING_MAX:
                self.transport.pause_reading()

    def on_body(self, data: bytes) -> None:
        """A piece of the body."""
        self._content_bytes += len(data)
        if self._coming is not None:
            self._coming.take_in(data)

    def on_message_complete(self) -> None:
        """The request is whole."""
        request, self._coming = self._coming, None
        if request is not None:
            self._over = self._over or request.is_last
            request.end()
            if request.is_answered and request.is_last:
                self.transport.close()

    # What requests and the server say

    async def drained(self) -> None:
        """Wait until the other side has taken what was written, or is gone."""
        self._drained = self._loop.create_future()
        await self._drained

    def done(self, request: Request) -> None:
        """The request is answered: go on with the next as soon as that may be, or close."""
        self._idle_since = self._loop.time()
        if request.is_last and request.is_whole:
            self.transport.close()
        elif self._coming is request:
            # Closing now could take the answer from whoever still writes: what comes is passed over, for a while.
            self._answering, self._left_over_since = None, self._idle_since
            self.transport.resume_reading()
        elif request.rests_until is not None and not request.rests_until.done():
            request.rests_until.add_done_callback(lambda _: self._go_on(request))
        else:
            self._go_on(request)

    def _go_on(self, request: Request) -> None:
        if self._answering is not request:
            return  # it rested too long, and others were answered since
        self._answering = None
        if request.is_last:
            self.transport.close()
        elif self._waiting:
            self._answer(self._waiting.popleft())
            if len(self._waiting) < _WAITING_MAX:
                self.transport.resume_reading()

    def shutdown(self) -> None:
        """Close as soon as what is being answered is; uvicorn calls it."""
        if self._answering is None or self._answering.is_answered:
            self.transport.close()
        else:
            self._answering.is_last = True
            self._waiting.clear()

    def look_at_the_clock(self, now: float, slow_reader_seconds: float) -> None:
        """Refuse a head that is late, close what is idle, drop who takes nothing: it holds money and an upstream."""
        if self.transport.is_closing():
            return
        is_deaf = self._full_since is not None and now - self._full_since > slow_reader_seconds
        if is_deaf or (self._left_over_since is not None and now - self._left_over_since > HEADER_SECONDS):
            self.transport.abort()
        elif self._head_since is not None and now - self._head_since > HEADER_SECONDS:
            if self._head_bytes:
                self._refuse(RequestTimeout(f"The headers did not arrive within {HEADER_SECONDS:g} seconds."))
            else:
                self.transport.close()
        elif self._answering is not None and self._answering.is_answered and now > self._answering.rests_at_most_until:
            self._go_on(self._answering)
        elif self._head_since is None and self._answering is None and now - self._idle_since > self._idle_seconds:
            self.transport.close()

    def _turn_away(self, data: bytes) -> bool:
        """Refuse what came without parsing it, where it is one plain request and no other answer goes first."""
        answering = self._answering
        is_next = not self._waiting and (answering is None or answering.is_answered)
        if is_next and self.is_full:  # whoever asks on without reading what it is told
            self.transport.abort()
            return True
        if is_next and is_one_turn(data):
            self.transport.write(self._admission.answer().whole)
            self._head_since, self._idle_since = None, self._loop.time()
            return True
        return False

    def _answer(self, request: Request) -> None:
        if self._connections_max is not None and len(self._connections) > self._connections_max:
            self._refuse(Crowded("Too many connections are open here; try again in a moment.", retry_after_seconds=1))
            return
        self._answering = request
        if request.is_refused:
            refusal = self._admission.answer()
            request.begin(Overloaded.status, refusal.head, len(refusal.body))
            request.write(refusal.body, more=False)
            return
        task = self._loop.create_task(self._application(request))
        self._tasks.add(task)
        task.add_done_callback(partial(self._ended, request))

    def _ended(self, request: Request, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        failure = None if task.cancelled() else task.exception()
        if failure is not None:
            _log.error("answering a request failed", exc_info=failure)
        if request.is_answered or request.is_lost:
            return
        if request.has_begun:
            self.transport.abort()
        else:
            self._answering = None
            self._refuse(InternalError("Something went wrong on our side."))

    def _refuse(self, error: PlatformError) -> None:
        """Answer below HTTP and close; where whole requests before it are still to be answered, close after those."""
        self._over = True
        if self._waiting and self._waiting[-1] is self._coming:
            self._waiting.pop()  # what is wrong is in its body
        answering = self._answering
        due = [] if answering is None or answering.is_answered else [answering]
        if due == [self._coming] and not due[0].has_begun:
            due.clear()  # what is wrong is in its body, and this is its answer
        due.extend(self._waiting)
        if due:
            due[-1].is_last = True
            return
        body = encode_error(error)
        framing = b"content-length: %d\r\nconnection: close\r\n\r\n" % len(body)
        self.transport.write(STATUS_LINES[error.status] + error_lines(error) + framing + body)
        self.transport.close()
        if answering is not None:
            answering.lose()


def _fault_of(version: str, method: bytes, headers: dict[str, str]) -> str | None:
    """What makes a head one that others may read differently: refused, and its connection closed."""
    if version not in {"1.1", "1.0"}:
        return "Speak HTTP/1.1 here."
    if method == b"CONNECT":
        return "There are no tunnels here."
    coding = headers.get("transfer-encoding")
    if coding is not None and (version == "1.0" or coding.lower() != "chunked"):
        return "The only transfer coding is chunked, once, in HTTP/1.1."
    if version == "1.1" and not _is_host(headers.get("host")):
        return "A request has one valid Host."
    return None


@lru_cache(64)
def _is_host(text: str | None) -> bool:
    return text is not None and _HOST.fullmatch(text) is not None


async def tend(connections: Iterable[object], *, slow_reader_seconds: float, seconds: float = 1.0) -> None:
    """Look at the clock for every connection, for ever."""
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(seconds)
        for connection in [each for each in connections if isinstance(each, HttpProtocol)]:
            connection.look_at_the_clock(loop.time(), slow_reader_seconds)
