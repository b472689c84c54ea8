"""Providers that speak OpenAI's chat wire, over whichever carrier reaches them. It tries nothing twice."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress

from kernel import ChatReply, Chunk, Clock
from router.carrier import Answer, Carrier, read_whole
from router.dispatch import Dispatch, UpstreamSettings
from router.errors import UpstreamError, UpstreamOverlong
from router.inflate import inflated
from router.journey import Journey
from router.openai import AnswerReader, bounded_id, encode, read_refusal, read_reply, read_retry_after
from router.sse import EventParser

_OK = 200
_DONE = b"[DONE]"


class WireClient:
    """Talks OpenAI's chat wire to any provider that speaks it."""

    def __init__(self, clock: Clock, settings: UpstreamSettings, carrier: Carrier) -> None:
        self._clock = clock
        self._settings = settings
        self._carrier = carrier

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
                for data in parser.feed(block):
                    if data == _DONE:
                        reader.require_finished()
                        answer.keep()
                        return
                    yield reader.read(data)
                    journey.progress()
        finally:
            answer.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._carrier.close()

    async def _begin(self, journey: Journey, accept: str) -> Answer:
        """An answer whose status is 200, to be left by whoever asked. Raises UpstreamError."""
        dispatch = journey.dispatch
        headers = {
            **dispatch.provider.headers,
            "User-Agent": "penstock",
            "Content-Type": "application/json",
            "Accept": accept,
            "Accept-Encoding": "identity",  # a compressor on the way would hold events back
            "X-Client-Request-Id": dispatch.call.reference,
        }
        if dispatch.credential is not None:
            headers["Authorization"] = f"Bearer {dispatch.credential}"
        body = encode(dispatch.request, dispatch.target, dispatch.provider)
        answer = await self._carrier.post(journey, f"{dispatch.provider.base_url}/chat/completions", headers, body)
        try:
            await self._require_ok(journey, answer)
            return inflated(answer)
        except BaseException:
            answer.close()
            raise

    async def _require_ok(self, journey: Journey, answer: Answer) -> None:
        if answer.status == _OK:
            return
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
