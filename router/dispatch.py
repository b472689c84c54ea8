"""What an upstream is given and how it is bounded. The door is upstreams.py; nothing here sends anything."""

from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Protocol

from msgspec import Struct

from kernel import Chunk, ModelReply, ModelRequest, Target
from router.catalogue import Provider


@dataclass(frozen=True, slots=True)
class UpstreamSettings:
    """What no answer and no crowd of requests may exceed.

    Connections are bounded by the turns that the edge lets in and not here, where one provider that stalls would
    take them from all others. error_seconds is how long the body of an error status may take, drain_seconds how long
    a connection may take to finish after the last event, in order to be used again.
    """

    event_bytes_max: int = 4 * 1024 * 1024
    reply_bytes_max: int = 32 * 1024 * 1024
    error_bytes_max: int = 64 * 1024
    error_seconds: float = 1.0
    drain_seconds: float = 0.1
    keepalive_seconds: float = 15.0


class UpstreamCall(Struct, frozen=True):
    """One attempt, as its turn knows it.

    reference: `turn/attempt`, told to the provider. sent: called once, when the first byte of the request leaves
    and not before; never called, nothing can be billed.
    """

    reference: str
    sent: Callable[[], None]


class Dispatch(Struct, frozen=True):
    """One request on its way to one target, with everything that is needed to get there.

    client_certificate: PEM of a chain and its key, to show to the provider.
    """

    provider: Provider
    credential: str | None
    target: Target
    request: ModelRequest
    call: UpstreamCall
    client_certificate: str | None = None

    def __repr__(self) -> str:
        """Without what is secret."""
        return f"Dispatch({self.provider.name!r}, {self.target.name!r}, {self.call.reference!r})"


class Upstream(Protocol):
    """A way to reach models. It raises UpstreamError and nothing else, and it never tries twice."""

    async def complete(self, dispatch: Dispatch) -> ModelReply:
        """The whole answer."""
        ...

    def stream(self, dispatch: Dispatch) -> AsyncGenerator[Chunk, None]:
        """The answer by events; it ends only when the answer is whole. Closing it hangs up."""
        ...

    async def close(self) -> None:
        """Let go of what is open."""
        ...
