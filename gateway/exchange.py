"""One HTTP exchange over raw ASGI: headers and a bounded body in, a reply or a stream out, a caller who may hang up."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from types import TracebackType
from typing import Any, Protocol, Self

from gateway.errors import CallerGone, RequestTimeout, RequestTooLarge
from gateway.trace import Trace
from kernel import Caller, PlatformError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Connection(Protocol):
    """What the answer goes over."""

    @property
    def is_lost(self) -> bool:
        """Whether the other side has closed it."""
        ...

    def whole_body(self) -> bytes | None:
        """The request's body, if all of it has come; None: wait for it by way of ASGI."""
        ...

    def watch(self, on_lost: Callable[[], None] | None) -> None:
        """Call this once, when it is closed by the other side; None: nothing any more."""
        ...

    def abort(self) -> None:
        """Drop it, without waiting for what was not read."""
        ...

    def begin(self, status: int, head: bytes, length: int | None) -> None:
        """The status line and these header lines. length: of the body in bytes; None: it comes in chunks."""
        ...

    async def write(self, data: bytes, *, more: bool) -> None:
        """Send what has begun and a part of the body, once the other side has taken what came before.

        more: whether more will follow.
        """
        ...


class Exchange:
    """A request being answered. `caller` is set once the key is known."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, trace: Trace) -> None:
        self.scope = scope
        self.connection: Connection = scope["penstock.connection"]
        self.path: str = scope["path"]
        self.method: str = scope["method"]
        self.trace = trace
        self.caller: Caller | None = None
        self.status = 0
        self.stuck_since: float | None = None
        self.task: asyncio.Task[None] | None = None
        self.ended_by: PlatformError | None = None
        self._receive = receive
        self._send = send
        self._headers: dict[str, str] | None = None

    @property
    def headers(self) -> Mapping[str, str]:
        """Request headers, names in lower case; a repeated header is one list with commas, as HTTP has it."""
        if self._headers is None:
            pairs = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in self.scope["headers"]]
            found = dict(pairs)
            if len(found) < len(pairs):
                found = {name: ", ".join(value for other, value in pairs if other == name) for name in found}
            self._headers = found
        return self._headers

    async def body(self, *, bytes_max: int, seconds: float) -> bytes:
        """The whole body. Raises RequestTooLarge before buffering more than allowed, RequestTimeout when it is slow."""
        length = self.headers.get("content-length", "0")
        if length.isdigit() and int(length) > bytes_max:
            raise RequestTooLarge(f"The body is larger than {bytes_max} bytes.")
        if (body := self.connection.whole_body()) is not None and len(body) <= bytes_max:
            return body
        try:
            async with asyncio.timeout(seconds):
                return await self._read(bytes_max)
        except TimeoutError:
            raise RequestTimeout(f"The body did not arrive within {seconds:g} seconds; send it again.") from None

    async def _read(self, bytes_max: int) -> bytes:
        parts: list[bytes] = []
        size, more = 0, True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise CallerGone("The connection closed before the body was complete.")
            part = message.get("body", b"")
            size += len(part)
            if size > bytes_max:
                raise RequestTooLarge(f"The body is larger than {bytes_max} bytes.")
            parts.append(part)
            more = message.get("more_body", False)
        return b"".join(parts)

    def start(self, status: int, headers: Iterable[tuple[str, str]], length: int | None = None) -> None:
        """Send the status line and headers; not by way of ASGI, whose server looks at every header again.

        length: of the body in bytes; None: it comes in chunks.
        """
        self.status = status
        lines = [f"{name}: {value}\r\n" for name, value in headers]
        head = f"{''.join(lines)}x-request-id: {self.trace.turn_id}\r\n"
        assert head.count("\n") == len(lines) + 1, "a header's value is one line"
        self.connection.begin(status, head.encode("latin-1", "replace"), length)

    async def write(self, data: bytes) -> None:
        """Send a part of the body; waits while the caller reads slowly, and `stuck_since` says since when."""
        await self._pass_on(data, more=True)

    async def _pass_on(self, data: bytes, *, more: bool) -> None:
        self.stuck_since = self.trace.clock.monotonic()
        await self.connection.write(data, more=more)
        self.stuck_since = None

    async def finish(self) -> None:
        """End the answer: only now may the connection carry its next request. It waits as `write` does."""
        await self._pass_on(b"", more=False)

    async def reply(self, status: int, body: bytes, headers: Iterable[tuple[str, str]] = ()) -> None:
        """Send a whole JSON answer but for its end, which `finish` sends."""
        self.start(status, [("content-type", "application/json"), *headers], len(body))
        await self.write(body)

    async def hand_over(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        """Let another application answer; this exchange must not have begun to."""
        await app(self.scope, self._receive, self._send)

    def turn_running(self) -> "Running":
        """A context in which the caller's leaving cancels the task inside, and in which `end` does."""
        return Running(self)

    def abort(self) -> None:
        """Drop the connection, without waiting for what was not read; the turn ends as if the caller had left."""
        self.connection.abort()

    def end(self, why: PlatformError) -> None:
        """End the turn that is running here; the caller is told why."""
        if self.task is not None and self.ended_by is None:
            self.ended_by = why
            if self.trace.turn is not None:
                self.trace.turn.ended_by = why
            self.task.cancel()


class Running:
    """A turn that is running: it is cancelled when its caller leaves, or when somebody ends it."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._gone = False

    async def __aenter__(self) -> Self:
        """Begin to watch. Raises CallerGone for one who has left already."""
        task = asyncio.current_task()
        assert task is not None
        connection = self._exchange.connection
        if connection.is_lost:
            raise CallerGone("The connection closed before the answer began.")
        self._task = self._exchange.task = task
        connection.watch(self._leave)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> bool:
        """Stop watching; swallow the cancellation that a hang-up caused."""
        self._exchange.connection.watch(None)
        self._exchange.task = None
        if self._gone and kind is not None and issubclass(kind, asyncio.CancelledError):
            self._task.uncancel()
            return True
        return False

    def _leave(self) -> None:
        self._gone = True
        if self._exchange.trace.turn is not None:
            self._exchange.trace.turn.gone = True
        self._task.cancel()
