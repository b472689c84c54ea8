"""The one door to everything that answers. It finds the provider and its credential; upstreams do the talking."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from kernel import Chunk, Clock, ModelReply, ModelRequest, Target
from router.carrier import Carrier
from router.catalogue import Catalogue, Provider
from router.dispatch import Dispatch, Upstream, UpstreamCall, UpstreamSettings
from router.errors import UpstreamUnreachable
from router.health import Health
from router.http1 import Http1
from router.sandbox import Sandbox
from router.wire_client import Address, Translator, WireClient

__all__ = ["Address", "Translator", "Upstream", "UpstreamCall", "UpstreamSettings", "Upstreams"]


async def _nowhere() -> Address:
    raise UpstreamUnreachable("This provider is reached through the translator, and there is none.")


class Upstreams:
    """Sends a request to a target, once. Losing a provider means failing the attempt, with an UpstreamError.

    health: told how every call ended; it refuses calls to a target that rests.
    catalogue: the one in force at this moment. credentials: the opened credential of that name, or None. translator:
    where it is, for what providers do not speak themselves.
    """

    def __init__(  # noqa: PLR0913 - what it needs to reach anything, each by name
        self,
        catalogue: Callable[[], Catalogue],
        credentials: Callable[[str], str | None],
        *,
        health: Health,
        clock: Clock,
        settings: UpstreamSettings,
        carrier: Carrier | None = None,
        translator: Translator = _nowhere,
    ) -> None:
        self._catalogue = catalogue
        self._credentials = credentials
        self._health = health
        self._clock = clock
        self._settings = settings
        self._translator = translator
        self._sandbox = Sandbox(clock)
        self._wire = WireClient(clock, settings, carrier or Http1(settings), translator=translator)
        self._proxied: Upstream | None = None

    async def complete(self, target: Target, request: ModelRequest, call: UpstreamCall) -> ModelReply:
        """The target's whole answer. Raises UpstreamError; cancelling it hangs up."""
        with self._health.call(target):
            dispatch = self._dispatch(target, request, call)
            upstream = self._direct(dispatch.provider) or await self._beyond_proxies()
            return await upstream.complete(dispatch)

    async def stream(self, target: Target, request: ModelRequest, call: UpstreamCall) -> AsyncGenerator[Chunk, None]:
        """The target's answer by events, to be iterated within `aclosing`: closing it hangs up.

        It ends only when the answer is whole; a cut one raises UpstreamBroken.
        """
        with self._health.call(target) as called:
            dispatch = self._dispatch(target, request, call)
            upstream = self._direct(dispatch.provider) or await self._beyond_proxies()
            async with aclosing(upstream.stream(dispatch)) as chunks:
                async for chunk in chunks:
                    if called.probes and chunk.content:
                        called.answers()
                    yield chunk

    async def close(self) -> None:
        """Close the connections."""
        for upstream in filter(None, (self._wire, self._proxied)):
            await upstream.close()

    def _direct(self, provider: Provider) -> Upstream | None:
        if provider.dialect == "sandbox":
            return self._sandbox
        return self._wire if provider.proxy is None else None

    async def _beyond_proxies(self) -> Upstream:
        if self._proxied is None:
            carrier = await asyncio.to_thread(_carrier_for_proxies, self._settings)
            self._proxied = self._proxied or WireClient(
                self._clock, self._settings, carrier, translator=self._translator
            )
        return self._proxied

    def _dispatch(self, target: Target, request: ModelRequest, call: UpstreamCall) -> Dispatch:
        try:
            provider = self._catalogue().provider(target.provider)
        except KeyError as error:  # withdrawn since the plan was made
            raise UpstreamUnreachable(f"The target `{target.name}` is no longer offered.") from error
        credential = self._opened(provider.credential, target)
        if credential is not None and not (credential.isascii() and credential.isprintable()):
            raise _without_credential(target)
        certificate = self._opened(provider.client_certificate, target)
        return Dispatch(provider, credential, target, request, call, certificate)

    def _opened(self, name: str | None, target: Target) -> str | None:
        if name is None:
            return None
        if secret := self._credentials(name):
            return secret
        raise _without_credential(target)


def _without_credential(target: Target) -> UpstreamUnreachable:
    return UpstreamUnreachable(f"The target `{target.name}` has no usable credential; seal it again.")


def _carrier_for_proxies(settings: UpstreamSettings) -> Carrier:
    # aiohttp takes 20 MiB and a quarter of a second to import, and only those who declared a proxy need it.
    from router.aiohttp_carrier import AiohttpCarrier  # noqa: PLC0415

    return AiohttpCarrier(settings)
