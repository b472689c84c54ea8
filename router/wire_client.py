"""Providers that speak OpenAI's or Anthropic's wire, over whichever carrier reaches them. It tries nothing twice.

What is not a provider's own wire goes to the translator, which speaks both and is told where to go with each call.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import NoReturn

import msgspec
from msgspec import Struct

from kernel import Chunk, Clock, ModelReply, Operation
from router import anthropic, openai
from router.carrier import Answer, Carrier, Head, read_whole
from router.catalogue import Provider
from router.dispatch import Dispatch, UpstreamSettings
from router.errors import UpstreamError, UpstreamOverlong
from router.inflate import inflated
from router.journey import Journey
from router.openai import bounded_id, read_refusal, read_retry_after
from router.operations import is_native
from router.sse import EventParser
from router.tls import Terms

_OK = 200
_DONE = b"[DONE]"
_REFERENCE = "X-Client-Request-Id"
_WAYS_MAX = 1024
_PATHS: Mapping[Operation, str] = MappingProxyType(
    {
        Operation.CHAT: "/chat/completions",
        Operation.COMPLETIONS: "/completions",
        Operation.EMBEDDINGS: "/embeddings",
        Operation.MESSAGES: "/messages",
        Operation.COUNT_TOKENS: "/messages/count_tokens",
    }
)
_OF_ANTHROPIC = frozenset({Operation.MESSAGES, Operation.COUNT_TOKENS})


class Address(Struct, frozen=True):
    """Where the translator listens, up to and including /v1, and what it asks for."""

    url: str
    token: str


Translator = Callable[[], Awaitable[Address]]
"""Says where the translator is, once it is there. Raises UpstreamUnreachable, naming the cure."""


class _Way(Struct, eq=False):
    """To a provider as it was declared then, with the secrets that were opened then."""

    provider: Provider
    credential: str | None
    client_certificate: str | None
    translator: Address | None
    head: Head


class WireClient:
    """Talks to any provider in the wire of what is asked, by itself or through the translator."""

    def __init__(self, clock: Clock, settings: UpstreamSettings, carrier: Carrier, *, translator: Translator) -> None:
        self._clock = clock
        self._settings = settings
        self._carrier = carrier
        self._translator = translator
        self._ways: dict[tuple[str, Operation, bool], _Way] = {}

    async def complete(self, dispatch: Dispatch) -> ModelReply:
        """The whole answer. Raises UpstreamError."""
        answer = await self._begin(Journey(dispatch))
        try:
            body = await read_whole(answer, self._settings.reply_bytes_max)
        finally:
            answer.close()
        if body is None:
            raise UpstreamOverlong(f"The provider sent a reply of more than {self._settings.reply_bytes_max} bytes.")
        operation = dispatch.request.operation
        read = anthropic.read_reply if operation in _OF_ANTHROPIC else openai.read_reply
        return read(body, _request_id(answer), operation)

    async def stream(self, dispatch: Dispatch) -> AsyncGenerator[Chunk, None]:
        """The answer by events; it ends after the last one, or without it where nothing can be missing."""
        journey = Journey(dispatch)
        answer = await self._begin(journey)
        try:
            reader = _reader(dispatch, _request_id(answer))
            parser = EventParser(self._settings.event_bytes_max)
            while True:
                try:
                    block = await answer.block()
                except UpstreamError:
                    if not reader.whole:
                        raise
                    block = b""
                if not block:
                    reader.require_whole()
                    if (last := reader.missing()) is not None:
                        yield last
                    return
                for number, data in enumerate(parser.feed(block), start=1):
                    if data == _DONE:
                        reader.require_finished()
                        answer.keep()
                        return
                    yield reader.read(data, more=number < parser.together)
                    if reader.ended:
                        answer.keep()
                        return
                    journey.progress()
        finally:
            answer.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._carrier.close()

    async def _begin(self, journey: Journey) -> Answer:
        """An answer whose status is 200, to be left by whoever asked. Raises UpstreamError."""
        dispatch = journey.dispatch
        request, provider = dispatch.request, dispatch.provider
        is_translated = not is_native(provider, request.operation)
        head = self._head(dispatch, await self._translator() if is_translated else None)
        own: dict[str, str] = {_REFERENCE: dispatch.call.reference}
        if request.operation in _OF_ANTHROPIC:
            own |= anthropic.headers_for(request, provider)
            body = anthropic.encode(request, dispatch.target, provider)
        else:
            body = openai.encode(request, dispatch.target, provider)
        answer = await self._carrier.post(journey, head, own, body)
        try:
            if answer.status != _OK:
                await self._refuse(journey, answer)
            return inflated(answer)
        except BaseException:
            answer.close()
            raise

    def _head(self, dispatch: Dispatch, translator: Address | None) -> Head:
        """The same as long as the provider's declaration and its secrets are."""
        provider, credential, certificate = dispatch.provider, dispatch.credential, dispatch.client_certificate
        key = provider.name, dispatch.request.operation, dispatch.request.stream
        way = self._ways.get(key)
        if (
            way is not None
            and way.provider is provider
            and way.credential == credential
            and way.client_certificate == certificate
            and way.translator == translator
        ):
            return way.head
        if translator is None:
            base, own, terms = provider.base_url, _own_headers(dispatch), Terms(provider.ca_certificates, certificate)
        else:
            base, own, terms = translator.url, _order(dispatch, translator), Terms(None, None)
        headers = {
            **own,
            "User-Agent": "penstock",
            "Content-Type": "application/json",
            "Accept": "text/event-stream" if dispatch.request.stream else "application/json",
            "Accept-Encoding": "identity",  # a compressor on the way would hold events back
        }
        headers.pop(_REFERENCE, None)
        head = Head(f"{base}{_PATHS[dispatch.request.operation]}", headers, terms)
        if len(self._ways) >= _WAYS_MAX:
            self._ways.clear()
        self._ways[key] = _Way(provider, credential, certificate, translator, head)
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


def _reader(dispatch: Dispatch, provider_request_id: str | None) -> openai.AnswerReader | anthropic.AnswerReader:
    if dispatch.request.operation is Operation.MESSAGES:
        return anthropic.AnswerReader(provider_request_id)
    return openai.AnswerReader(provider_request_id, choices=dispatch.request.choices)


def _own_headers(dispatch: Dispatch) -> dict[str, str]:
    """What the provider declares, and its credential where it looks for it."""
    headers, credential = dict(dispatch.provider.headers), dispatch.credential
    if credential is not None and dispatch.provider.dialect == "anthropic":
        headers["x-api-key"] = credential
    elif credential is not None:
        headers["Authorization"] = f"Bearer {credential}"
    return headers


def _order(dispatch: Dispatch, translator: Address) -> dict[str, str]:
    """What the translator is told of one call: whom to ask, and with what."""
    provider = dispatch.provider
    told = {
        "Authorization": f"Bearer {translator.token}",
        "X-Penstock-Provider": provider.translate_as or provider.dialect,
        "X-Penstock-Credential": dispatch.credential,
        "X-Penstock-Base-Url": provider.base_url,
        "X-Penstock-Api-Version": provider.api_version,
        "X-Penstock-Headers": msgspec.json.encode(dict(provider.headers)).decode() if provider.headers else None,
        "X-Penstock-Seconds": f"{provider.total_seconds:g}",
    }
    return {name: value for name, value in told.items() if value is not None}


def _request_id(answer: Answer) -> str | None:
    return bounded_id(answer.headers.get("x-request-id") or answer.headers.get("request-id"))
