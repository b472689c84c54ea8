"""What carries a request to a provider and its answer back: one contract, two carriers.

http1.py is ours and quick; aiohttp_carrier.py goes where ours does not, through proxies. Neither tries anything
twice, follows redirects, keeps cookies, undoes encodings or knows whose wire it carries.
"""

from collections.abc import Mapping
from typing import NamedTuple, Protocol
from urllib.parse import urlsplit

from router.journey import Journey
from router.tls import Terms


class Origin(NamedTuple):
    """Where connections go and what they rest on, and so which requests may share one. terms: None without TLS."""

    host: str
    port: int
    terms: Terms | None


class Head:
    """What many requests have in common: where they go, and headers that each of them says. It never changes.

    lines: how a request in HTTP/1.1 begins, up to the headers that are its own.
    """

    __slots__ = ("headers", "lines", "origin", "url")

    def __init__(self, url: str, headers: Mapping[str, str], terms: Terms) -> None:
        parts = urlsplit(url)
        is_tls = parts.scheme == "https"
        path = f"{parts.path}?{parts.query}" if parts.query else parts.path
        self.url = url
        self.headers = headers
        self.origin = Origin(parts.hostname or "", parts.port or (443 if is_tls else 80), terms if is_tls else None)
        self.lines = b"POST %b HTTP/1.1\r\n%b" % (path.encode("latin-1"), lines({"Host": parts.netloc, **headers}))


def lines(headers: Mapping[str, str]) -> bytes:
    """Headers as HTTP/1.1 writes them."""
    return "".join([f"{name}: {value}\r\n" for name, value in headers.items()]).encode("latin-1")


class Answer(Protocol):
    """An answer whose head has come. Whoever has it leaves it by `close` or `keep`; the first of them counts."""

    @property
    def status(self) -> int:
        """From 200 to 999."""
        ...

    @property
    def headers(self) -> Mapping[str, str]:
        """Names in lower case; of a repeated one the first."""
        ...

    async def block(self) -> bytes:
        """What came of the body since the last time, waiting if it is nothing yet; empty at its end.

        Raises UpstreamError: out of time as the journey has it, or broken.
        """
        ...

    def close(self) -> None:
        """Hang up, unless the body has come to its end."""
        ...

    def keep(self) -> None:
        """Nothing more is wanted: keep the connection for another request if the body ends soon, else hang up."""
        ...


class Carrier(Protocol):
    """A way to send a POST."""

    async def post(self, journey: Journey, head: Head, own: Mapping[str, str], body: bytes) -> Answer:
        """Send once; returns when the head of the answer has come. Raises UpstreamError.

        own: headers of this request alone.
        `journey.depart` is called when the first byte leaves. Cancelling it hangs up.
        """
        ...

    async def close(self) -> None:
        """Let go of all connections."""
        ...


async def read_whole(answer: Answer, bytes_max: int) -> bytes | None:
    """The whole body, or None where it is longer. Raises UpstreamError."""
    parts, size = [], 0
    while block := await answer.block():
        parts.append(block)
        size += len(block)
        if size > bytes_max:
            return None
    return b"".join(parts)
