"""Providers that speak OpenAI's chat wire, over whichever carrier reaches them. It tries nothing twice."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import NoReturn

from msgspec import Struct

from kernel import ChatReply, Chunk, Clock
from router.carrier import Answer, Carrier, Head, read_whole
from router.catalogue import Provider
from router.dispatch import Dispatch, UpstreamSettings
from router.errors import UpstreamError, UpstreamOverlong
from router.inflate import inflated
from router.journey import Journey
from router.openai import AnswerReader, bounded_id, encode, read_refusal, read_reply, read_retry_after
from router.sse import EventParser
from router.tls import Terms

_OK = 200
_DONE = b"[DONE]"
_REFERENCE = "X-Client-Request-Id"
_WAYS_MAX = 1024


class _Way(Struct, eq=False):
    """To a provider as it was declared then, with the secrets that were opened then."""

    provider: Provider
    credential: str | None
    client_certificate: str | None
    head: Head


class WireClient:
    """Talks OpenAI's chat wire to any provider that speaks it."""

    def __init__(self, clock: Clock, settings: UpstreamSettings, carrier: Carrier) -> None:
        self._clock = clock
        self._settings = settings
        self._carrier = carrier
        self._ways: dict[tuple[str, str], _Way] = {}

    async def complete(self, dispatch: Dispatch) -> ChatReply:
        """The whole answer. Raises UpstreamError."""
        answer = await self._begin(Journey(dispatch), accept="application/json")
        try:
            body = await read_whole(answer, self._settings.reply_bytes_max)
        finally:
            answer.close()
        if body is None:
            raise UpstreamOverlong(f"The provider sent a reply of more than {self._settings.reply_bytes_max} bytes.")
        return read_reply(body, _request_id(answer))

    async def stream(self, dispatch: Dispatch) -> AsyncGenerator[Chunk, None]:
        """The answer by events; it ends after [DONE], or without it where nothing can be missing."""
        journey = Journey(dispatch)
        answer = await self._begin(journey, accept="text/event-stream")
        try:
            reader = AnswerReader(_request_id(answer), choices=dispatch.request.choices)
            parser = EventParser(self._settings.event_bytes_max)
            while True:
                try:
                    block = await answer.block()
                except UpstreamError:
                    if reader.whole:
                        return
                    raise
                if not block:
                    reader.require_whole()
                    return
                for number, data in enumerate(parser.feed(block), start=1):
                    if data == _DONE:
                        reader.require_finished()
                        answer.keep()
                        return
                    yield reader.read(data, more=number < parser.together)
                    journey.progress()
        finally:
            answer.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._carrier.close()

    async def _begin(self, journey: Journey, accept: str) -> Answer:
        """An answer whose status is 200, to be left by whoever asked. Raises UpstreamError."""
        dispatch = journey.dispatch
        own = {_REFERENCE: dispatch.call.reference}
        body = encode(dispatch.request, dispatch.target, dispatch.provider)
        answer = await self._carrier.post(journey, self._head(dispatch, accept), own, body)
        try:
            if answer.status != _OK:
                await self._refuse(journey, answer)
            return inflated(answer)
        except BaseException:
            answer.close()
            raise

    def _head(self, dispatch: Dispatch, accept: str) -> Head:
        """The same as long as the provider's declaration and its secrets are."""
        provider, credential, certificate = dispatch.provider, dispatch.credential, dispatch.client_certificate
        way = self._ways.get((provider.name, accept))
        if (
            way is not None
            and way.provider is provider
            and way.credential == credential
            and way.client_certificate == certificate
        ):
            return way.head
        headers = {
            **provider.headers,
            "User-Agent": "penstock",
            "Content-Type": "application/json",
            "Accept": accept,
            "Accept-Encoding": "identity",  # a compressor on the way would hold events back
        }
        headers.pop(_REFERENCE, None)
        if credential is not None:
            headers["Authorization"] = f"Bearer {credential}"
        head = Head(f"{provider.base_url}/chat/completions", headers, Terms(provider.ca_certificates, certificate))
        if len(self._ways) >= _WAYS_MAX:
            self._ways.clear()
        self._ways[provider.name, accept] = _Way(provider, credential, certificate, head)
        return head

    async def _refuse(self, journey: Journey, answer: Answer) -> NoReturn:
        dispatch, body = journey.dispatch, b""
        # The status says enough, whatever becomes of the body: it has a time of its own, and no other limit counts.
        with suppress(TimeoutError, UpstreamError):
            async with asyncio.timeout(self._settings.error_seconds):
                body = await read_whole(inflated(answer), self._settings.error_bytes_max) or b""
        raise read_refusal(
            dispatch.target,
            answer.status,
            body=body,
            retry_after_seconds=read_retry_after(answer.headers, self._clock.now()),
            credential=dispatch.credential,
        )


def _request_id(answer: Answer) -> str | None:
    return bounded_id(answer.headers.get("x-request-id"))
