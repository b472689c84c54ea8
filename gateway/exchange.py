"""One HTTP exchange: headers and a bounded body in, a reply or a stream out, a caller who may hang up."""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Protocol

from gateway.doors import Door
from gateway.errors import CallerGone, RequestTimeout, RequestTooLarge
from gateway.trace import Trace
from kernel import Caller, PlatformError

_HELD_BYTES_MAX = 16 * 1024


class Connection(Protocol):
    """A request as it comes, and the line that its answer goes over.

    headers: names in lower case; a repeated one is one list with commas. received: bytes of the body until now;
    is_whole: that is all of it. is_lost: the other side is gone. is_full: it has yet to take what was written.
    """

    @property
    def method(self) -> str: ...  # noqa: D102 - told above, as all of these are
    @property
    def path(self) -> str: ...  # noqa: D102
    @property
    def query(self) -> bytes: ...  # noqa: D102
    @property
    def headers(self) -> Mapping[str, str]: ...  # noqa: D102
    @property
    def received(self) -> int: ...  # noqa: D102
    @property
    def is_whole(self) -> bool: ...  # noqa: D102
    @property
    def is_lost(self) -> bool: ...  # noqa: D102
    @property
    def is_full(self) -> bool: ...  # noqa: D102

    def take(self) -> bytes:
        """What came of the body since the last time."""
        ...

    async def more(self) -> None:
        """Wait until more of the body has come, or all of it; then, until the other side is gone."""
        ...

    def watch(self, on_lost: Callable[[], None] | None) -> None:
        """Call this once, when the other side is gone; None: nothing any more."""
        ...

    def abort(self) -> None:
        """Drop it, without waiting for what was not read."""
        ...

    def begin(self, status: int, head: bytes, length: int | None) -> None:
        """The status line and these header lines. length: of the body in bytes; None: it comes in chunks."""
        ...

    def write(self, data: bytes, *, more: bool) -> None:
        """Send what has begun and a part of the body. more: whether more will follow."""
        ...

    async def drained(self) -> None:
        """Wait until the other side has taken what was written, or is gone."""
        ...

    def rest_until(self, done: asyncio.Future[Any], seconds: float) -> None:
        """After this answer, carry no other request before that is done; for so long at most."""
        ...


class Exchange:
    """A request being answered, in the wire of its door. `caller` is set once the key is known."""

    def __init__(self, connection: Connection, trace: Trace, door: Door) -> None:
        self.connection = connection
        self.door = door
        self.path = connection.path
        self.method = connection.method
        self.headers = connection.headers
        self.trace = trace
        self.caller: Caller | None = None
        self.status = 0
        self.task: asyncio.Task[None] | None = None
        self.ended_by: PlatformError | None = None
        self._held = b""

    async def body(self, *, bytes_max: int, seconds: float) -> bytes:
        """The whole body. Raises RequestTooLarge before buffering more than allowed, RequestTimeout when it is slow."""
        connection = self.connection
        length = self.headers.get("content-length", "0")
        if length.isdigit() and int(length) > bytes_max:
            raise RequestTooLarge(f"The body is larger than {bytes_max} bytes.")
        if not connection.is_whole:
            await self._arrival(bytes_max, seconds)
        if connection.received > bytes_max:
            raise RequestTooLarge(f"The body is larger than {bytes_max} bytes.")
        return connection.take()

    async def _arrival(self, bytes_max: int, seconds: float) -> None:
        connection = self.connection
        try:
            async with asyncio.timeout(seconds):
                while not connection.is_whole and connection.received <= bytes_max:
                    if connection.is_lost:
                        raise CallerGone("The connection closed before the body was complete.")
                    await connection.more()
        except TimeoutError:
            raise RequestTimeout(f"The body did not arrive within {seconds:g} seconds; send it again.") from None

    def start(self, status: int, headers: Iterable[tuple[str, str]], length: int | None = None) -> None:
        """Send the status line and headers; not by way of ASGI, whose server looks at every header again.

        length: of the body in bytes; None: it comes in chunks.
        """
        self.status = status
        lines = [f"{name}: {value}\r\n" for name, value in headers]
        head = f"{''.join(lines)}x-request-id: {self.trace.turn_id}\r\n"
        assert head.count("\n") == len(lines) + 1, "a header's value is one line"
        self.connection.begin(status, head.encode("latin-1", "replace"), length)

    async def write(self, data: bytes, *, follows: bool = False) -> None:
        """Send a part of the body; waits while the caller reads slowly. follows: it may leave with the next part."""
        if self._held:
            data, self._held = self._held + data, b""
        if follows and len(data) < _HELD_BYTES_MAX:
            self._held = data
            return
        if self.connection.is_full:
            await self.connection.drained()
        self.connection.write(data, more=True)

    async def finish(self) -> None:
        """End the answer. It waits as `write` does."""
        if self.connection.is_full:
            await self.connection.drained()
        held, self._held = self._held, b""
        self.connection.write(held, more=False)

    async def reply(self, status: int, body: bytes, headers: Iterable[tuple[str, str]] = ()) -> None:
        """Send a whole JSON answer but for its end, which `finish` sends."""
        self.start(status, [("content-type", "application/json"), *headers], len(body))
        await self.write(body)

    def turn_running(self) -> "Running":
        """A context in which the caller's leaving cancels the task inside, and in which `end` does."""
        return Running(self)

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

    def __enter__(self) -> None:
        """Begin to watch. Raises CallerGone for one who has left already."""
        task = asyncio.current_task()
        assert task is not None
        connection = self._exchange.connection
        if connection.is_lost:
            raise CallerGone("The connection closed before the answer began.")
        self._exchange.task = task
        connection.watch(self._leave)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> bool:
        """Stop watching; swallow the cancellation that a hang-up caused."""
        exchange = self._exchange
        task, exchange.task = exchange.task, None
        exchange.connection.watch(None)
        if self._gone and task is not None and kind is not None and issubclass(kind, asyncio.CancelledError):
            task.uncancel()
            return True
        return False

    def _leave(self) -> None:
        self._gone = True
        if self._exchange.trace.turn is not None:
            self._exchange.trace.turn.gone = True
        if self._exchange.task is not None:
            self._exchange.task.cancel()
