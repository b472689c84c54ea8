"""The one door to everything that answers. It finds the provider and its credential; upstreams do the talking."""

from collections.abc import AsyncGenerator, Callable

from kernel import ChatReply, ChatRequest, Chunk, Clock, Target
from router.catalogue import Catalogue, Provider
from router.dispatch import Dispatch, Upstream, UpstreamCall, UpstreamSettings
from router.errors import UpstreamUnreachable
from router.sandbox import Sandbox
from router.wire_client import WireClient

__all__ = ["Upstream", "UpstreamCall", "UpstreamSettings", "Upstreams"]


class Upstreams:
    """Sends a request to a target, once. Losing a provider means failing the attempt, with an UpstreamError.

    catalogue: the one in force at this moment. credentials: the opened credential of that name, or None.
    """

    def __init__(
        self,
        catalogue: Callable[[], Catalogue],
        credentials: Callable[[str], str | None],
        clock: Clock,
        settings: UpstreamSettings,
    ) -> None:
        self._catalogue = catalogue
        self._credentials = credentials
        self._sandbox: Upstream = Sandbox(clock)
        self._wire: Upstream = WireClient(clock, settings)

    async def complete(self, target: Target, request: ChatRequest, call: UpstreamCall) -> ChatReply:
        """The target's whole answer. Raises UpstreamError; cancelling it hangs up."""
        dispatch = self._dispatch(target, request, call)
        return await self._upstream(dispatch.provider).complete(dispatch)

    def stream(self, target: Target, request: ChatRequest, call: UpstreamCall) -> AsyncGenerator[Chunk, None]:
        """The target's answer by events, to be iterated within `aclosing`: closing it hangs up.

        It ends only when the answer is whole; a cut one raises UpstreamBroken.
        """
        dispatch = self._dispatch(target, request, call)
        return self._upstream(dispatch.provider).stream(dispatch)

    async def close(self) -> None:
        """Close the connections."""
        await self._wire.close()
        await self._sandbox.close()

    def _upstream(self, provider: Provider) -> Upstream:
        return self._sandbox if provider.dialect == "sandbox" else self._wire

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
