"""One HTTP exchange over raw ASGI: headers and a bounded body in, a reply or a stream out, a caller who may hang up."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from types import TracebackType
from typing import Any, Self

from gateway.errors import CallerGone, RequestTimeout, RequestTooLarge
from gateway.trace import Trace
from kernel import Caller, PlatformError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Exchange:
    """A request being answered. `caller` is set once the key is known."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, trace: Trace) -> None:
        self.scope = scope
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
            found: dict[str, str] = {}
            for raw_name, raw_value in self.scope["headers"]:
                name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
                found[name] = f"{found[name]}, {value}" if name in found else value
            self._headers = found
        return self._headers

    async def body(self, *, bytes_max: int, seconds: float) -> bytes:
        """The whole body. Raises RequestTooLarge before buffering more than allowed, RequestTimeout when it is slow."""
        length = self.headers.get("content-length", "0")
        if length.isdigit() and int(length) > bytes_max:
            raise RequestTooLarge(f"The body is larger than {bytes_max} bytes.")
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

    async def start(self, status: int, headers: Iterable[tuple[str, str]]) -> None:
        """Send the status line and headers."""
        self.status = status
        raw = [(name.encode("latin-1"), value.encode("latin-1", "replace")) for name, value in headers]
        raw.append((b"x-request-id", self.trace.turn_id.encode()))
        await self._send({"type": "http.response.start", "status": status, "headers": raw})

    async def write(self, data: bytes) -> None:
        """Send a part of the body; waits while the caller reads slowly, and `stuck_since` says since when."""
        self.stuck_since = self.trace.clock.monotonic()
        await self._send({"type": "http.response.body", "body": data, "more_body": True})
        self.stuck_since = None

    async def finish(self) -> None:
        """End the answer: only now may the connection carry its next request."""
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def reply(self, status: int, body: bytes, headers: Iterable[tuple[str, str]] = ()) -> None:
        """Send a whole JSON answer but for its end, which `finish` sends."""
        own = [("content-type", "application/json"), ("content-length", str(len(body)))]
        await self.start(status, [*own, *headers])
        await self.write(body)

    async def hand_over(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        """Let another application answer; this exchange must not have begun to."""
        await app(self.scope, self._receive, self._send)

    def turn_running(self, among: set["Exchange"]) -> "Running":
        """A context in which the caller's leaving cancels the task inside, and in which `end` does."""
        return Running(self, self._receive, among)

    def abort(self) -> None:
        """Drop the connection, without waiting for what was not read; the turn ends as if the caller had left."""
        abort = self.scope.get("penstock.abort")
        if abort is not None:
            abort()

    def end(self, why: PlatformError) -> None:
        """End the turn that is running here; the caller is told why."""
        if self.task is not None and self.ended_by is None:
            self.ended_by = why
            if self.trace.turn is not None:
                self.trace.turn.ended_by = why
            self.task.cancel()


class Running:
    """A turn that is running, among others: it is cancelled when its caller leaves, or when somebody ends it."""

    def __init__(self, exchange: Exchange, receive: Receive, among: set[Exchange]) -> None:
        self._exchange = exchange
        self._receive = receive
        self._among = among
        self._gone = False

    async def __aenter__(self) -> Self:
        """Begin to watch."""
        task = asyncio.current_task()
        assert task is not None
        self._task = self._exchange.task = task
        self._among.add(self._exchange)
        self._watcher = asyncio.create_task(self._watch())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> bool:
        """Stop watching; swallow the cancellation that a hang-up caused."""
        self._watcher.cancel()
        self._among.discard(self._exchange)
        self._exchange.task = None
        if self._gone and kind is not None and issubclass(kind, asyncio.CancelledError):
            self._task.uncancel()
            return True
        return False

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._gone = True
        if self._exchange.trace.turn is not None:
            self._exchange.trace.turn.gone = True
        self._task.cancel()
