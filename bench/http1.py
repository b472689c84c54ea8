"""HTTP/1.1 messages as they come off a socket: just enough to know where each ends and what it carries.

For both ends of a measurement, which are ours: one message at a time, a length or chunks, no body until close.
"""

import asyncio

HEAD_END = b"\r\n\r\n"
_LENGTH = b"\r\ncontent-length:"
_CHUNKED = b"\r\ntransfer-encoding: chunked\r\n"


class Malformed(Exception):
    """What came is not a message that this reads; the connection is of no use any more."""


class Wire(asyncio.Protocol):
    """A connection that knows its transport for as long as it has one."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.reader = Reader()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # TCP's is no less
        """Keep what to write to."""
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        """There is nothing to write to any more."""
        del exc
        self.transport = None

    def abort(self) -> None:
        """Close hard, if that has not happened yet."""
        if self.transport is not None:
            self.transport.abort()


class Reader:
    """One direction of one connection. Feed it what arrives; `complete` says whether that ended a message.

    head: start line and headers of the message being read, each with its CRLF.
    """

    __slots__ = ("_chunked", "_in_body", "_kept", "_left", "complete", "head")

    def __init__(self) -> None:
        self.head = b""
        self.complete = False
        self._in_body = False
        self._chunked = False
        self._kept = b""
        self._left = 0

    def feed(self, data: bytes) -> bytes:
        """The part of the body in `data`, without its framing. Raises Malformed."""
        self.complete = False
        if not self._in_body:
            data = self._kept + data if self._kept else data
            end = data.find(HEAD_END)
            if end < 0:
                self._kept = data
                return b""
            self._kept = b""
            self._begin(data[: end + 2])
            data = data[end + 4 :]
        return self._chunks(data) if self._chunked else self._counted(data)

    def _begin(self, head: bytes) -> None:
        self.head = head
        self._in_body = True
        lowered = head.lower()
        self._chunked = _CHUNKED in lowered
        at = lowered.find(_LENGTH)
        self._left = 0
        if at >= 0 and not self._chunked:
            start = at + len(_LENGTH)
            self._left = _number(lowered[start : lowered.find(b"\r", start)], 10)

    def _counted(self, data: bytes) -> bytes:
        self._left -= len(data)
        if self._left <= 0:
            self._end(b"" if self._left == 0 else data)
        return data

    def _chunks(self, data: bytes) -> bytes:
        """`_left` counts what is missing of a chunk and its CRLF; `_kept` is the beginning of a size line."""
        parts = []
        at = 0
        if self._kept:
            data, self._kept = self._kept + data, b""
        while at < len(data):
            if self._left:
                here = data[at : at + self._left]
                at += len(here)
                parts.append(here[: self._left - 2])
                self._left -= len(here)
                continue
            line = data.find(b"\r\n", at)
            size = _number(data[at:line], 16) if line >= 0 else -1
            if size < 0 or (size == 0 and len(data) < line + 4):
                self._kept = data[at:]
                break
            if size == 0:
                self._end(data[line + 4 :])
                break
            at, self._left = line + 2, size + 2
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _end(self, rest: bytes) -> None:
        if rest:
            raise Malformed("more came than the message holds")
        self.complete = True
        self._in_body = False


def _number(digits: bytes, radix: int) -> int:
    try:
        return int(digits, radix)
    except ValueError as error:
        raise Malformed(f"{digits[:20]!r} is no number") from error
