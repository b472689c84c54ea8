"""One HTTP exchange over raw ASGI: headers and a bounded body in, a reply or a stream out, a caller who may hang up."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from types import TracebackType
from typing import Any, Self

from gateway.errors import CallerGone, RequestTimeout, RequestTooLarge
from gateway.trace import Trace
from kernel import Caller

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
        self._receive = receive
        self._send = send
        self._headers: dict[str, str] | None = None

    @property
    def headers(self) -> Mapping[str, str]:
        """Request headers, names in lower case; of a repeated header the last."""
        if self._headers is None:
            self._headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in self.scope["headers"]}
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
        """Send a part of the body; waits while the caller reads slowly."""
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def finish(self) -> None:
        """End the answer: only now may the connection carry its next request."""
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def reply(self, status: int, body: bytes, headers: Iterable[tuple[str, str]] = ()) -> None:
        """Send a whole JSON answer but for its end, which `finish` sends."""
        own = [("content-type", "application/json"), ("content-length", str(len(body)))]
        await self.start(status, [*own, *headers])
        await self.write(body)

    def hang_up_cancels(self) -> "HangUp":
        """A context in which the caller's leaving cancels the task inside."""
        return HangUp(self._receive)


class HangUp:
    """Watches a connection and cancels its turn when the caller leaves; `happened` tells that from other cancels."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.happened = False

    async def __aenter__(self) -> Self:
        """Begin to watch."""
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._watcher = asyncio.create_task(self._watch())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> bool:
        """Stop watching; swallow the cancellation that a hang-up caused."""
        self._watcher.cancel()
        if self.happened and kind is not None and issubclass(kind, asyncio.CancelledError):
            self._task.uncancel()
            return True
        return False

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.happened = True
        self._task.cancel()
