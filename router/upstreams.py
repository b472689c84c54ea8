"""The one door to everything that answers. It finds the provider and its credential; upstreams do the talking."""

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing

from kernel import ChatReply, ChatRequest, Chunk, Clock, Target
from router.catalogue import Catalogue
from router.dispatch import Dispatch, Upstream, UpstreamCall, UpstreamSettings
from router.errors import UpstreamUnreachable
from router.health import Health
from router.sandbox import Sandbox
from router.wire_client import WireClient

__all__ = ["Upstream", "UpstreamCall", "UpstreamSettings", "Upstreams"]


class Upstreams:
    """Sends a request to a target, once. Losing a provider means failing the attempt, with an UpstreamError.

    health: told how every call ended; it refuses calls to a target that rests.
    catalogue: the one in force at this moment. credentials: the opened credential of that name, or None.
    """

    def __init__(
        self,
        catalogue: Callable[[], Catalogue],
        credentials: Callable[[str], str | None],
        *,
        health: Health,
        clock: Clock,
        settings: UpstreamSettings,
    ) -> None:
        self._catalogue = catalogue
        self._credentials = credentials
        self._health = health
        # A new dialect is one class that fulfils dispatch.Upstream, one row here and one word in wire.ProviderBody.
        self._upstreams: Mapping[str, Upstream] = {"sandbox": Sandbox(clock), "openai": WireClient(clock, settings)}

    async def complete(self, target: Target, request: ChatRequest, call: UpstreamCall) -> ChatReply:
        """The target's whole answer. Raises UpstreamError; cancelling it hangs up."""
        with self._health.call(target):
            dispatch = self._dispatch(target, request, call)
            return await self._upstreams[dispatch.provider.dialect].complete(dispatch)

    async def stream(self, target: Target, request: ChatRequest, call: UpstreamCall) -> AsyncGenerator[Chunk, None]:
        """The target's answer by events, to be iterated within `aclosing`: closing it hangs up.

        It ends only when the answer is whole; a cut one raises UpstreamBroken.
        """
        with self._health.call(target) as called:
            dispatch = self._dispatch(target, request, call)
            async with aclosing(self._upstreams[dispatch.provider.dialect].stream(dispatch)) as chunks:
                async for chunk in chunks:
                    if chunk.content:
                        called.answers()
                    yield chunk

    async def close(self) -> None:
        """Close the connections."""
        for upstream in self._upstreams.values():
            await upstream.close()

    def _dispatch(self, target: Target, request: ChatRequest, call: UpstreamCall) -> Dispatch:
        try:
            provider = self._catalogue().provider(target.provider)
        except KeyError as error:  # withdrawn since the plan was made
            raise UpstreamUnreachable(f"The target `{target.name}` is no longer offered.") from error
        credential = None
        if provider.credential is not None:
            credential = self._credentials(provider.credential)
            if not credential or not credential.isascii() or not credential.isprintable():
                raise UpstreamUnreachable(f"The target `{target.name}` has no usable credential; seal it again.")
        return Dispatch(provider, credential, target, request, call)
