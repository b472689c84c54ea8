"""A bridge to applications that speak ASGI, for what is not on the hot path. It decides nothing."""

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from gateway.exchange import Connection

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApplication = Callable[[Scope, Receive, Send], Awaitable[None]]


async def hand_over(
    connection: Connection, app: AsgiApplication, facts: Mapping[str, object], *, headers: Mapping[str, str]
) -> None:
    """Let the application answer; nobody else must have begun to.

    facts: what its scope holds besides. headers: what its answer says besides.
    """
    bridge = _Bridge(connection, "".join([f"{name}: {text}\r\n" for name, text in headers.items()]).encode())
    scope: Scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "scheme": "http",
        "method": connection.method,
        "path": connection.path,
        "raw_path": connection.path.encode(),
        "query_string": connection.query,
        "root_path": "",
        "headers": [(name.encode("latin-1"), text.encode("latin-1")) for name, text in connection.headers.items()],
        "client": None,
        "server": None,
        **facts,
    }
    await app(scope, bridge.receive, bridge.send)


class _Bridge:
    """ASGI's two callables for one request."""

    def __init__(self, connection: Connection, beside: bytes) -> None:
        self._connection = connection
        self._beside = beside
        self._is_read = False

    async def receive(self) -> Message:
        """A piece of the body, or that the caller has left, for which it waits."""
        connection = self._connection
        if self._is_read:
            while not connection.is_lost:
                await connection.more()
        data = connection.take()
        while not (data or connection.is_whole or connection.is_lost):
            await connection.more()
            data = connection.take()
        if connection.is_lost:
            return {"type": "http.disconnect"}
        self._is_read = connection.is_whole
        return {"type": "http.request", "body": data, "more_body": not self._is_read}

    async def send(self, message: Message) -> None:
        """A part of the answer; the head leaves with the first part of the body."""
        connection = self._connection
        if message["type"] == "http.response.start":
            headers = dict(message["headers"])
            length = headers.pop(b"content-length", None)
            lines = b"".join([b"%b: %b\r\n" % each for each in message["headers"] if each[0] in headers])
            connection.begin(message["status"], lines + self._beside, None if length is None else int(length))
            return
        if connection.is_full:
            await connection.drained()
        connection.write(message.get("body", b""), more=message.get("more_body", False))
