"""The upstreams under contract, and what each must be told in order to behave in the same way."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass

from kernel import Chunk, ModelReply, ModelRequest
from router import UpstreamError, Upstreams, UpstreamSettings
from router.aiohttp_carrier import AiohttpCarrier
from router.carrier import Carrier
from router.http1 import Http1
from tests.fakes.routing import TARGET, Sent, chat
from tests.fakes.scripted_upstream import (
    CUT,
    EVENTS,
    HOLD,
    LAST_CHUNK,
    REPLY,
    STREAM_HEAD,
    ScriptedUpstream,
    Step,
    chunked,
    event,
    whole,
)

CARRIERS: dict[str, Callable[[UpstreamSettings], Carrier]] = {"http1": Http1, "aiohttp": AiohttpCarrier}
TOO_LONG = 10.0  # a test that waits for this has failed
SECRET = "sk-very-secret"
IN_BAND = {"error": {"message": "x"}}
PATIENT = {"answer_seconds": 5, "event_seconds": 5, "total_seconds": 10}
SHORT = {"answer_seconds": 0.2, "event_seconds": 0.2}
WHOLE_STREAM = STREAM_HEAD + chunked(*EVENTS) + LAST_CHUNK


def provider_says(status: str, message: str = "no", *headers: str) -> bytes:
    error = {"message": message, "type": "invalid_request_error", "param": "messages", "code": "bad"}
    return whole({"error": error}, *headers, status=status)


SANDBOX = {
    "answers": '{"tokens": 2}',
    "500": '{"fail": "500"}',
    "429": '{"fail": "429"}',
    "400": '{"fail": "400"}',
    "cut first": '{"fail": "cut"}',
    "cut later": '{"tokens": 9, "fail": "cut", "fail_after": 2}',
    "500 later": '{"tokens": 9, "fail": "500", "fail_after": 2}',
    "hang": '{"fail": "hang"}',
    "hang later": '{"tokens": 9, "fail": "hang", "fail_after": 2}',
}
SCRIPTS: dict[str, tuple[tuple[Step, ...], tuple[Step, ...]]] = {  # of complete(), of stream()
    "answers": ((whole(REPLY),), (WHOLE_STREAM,)),
    "500": ((provider_says("500 Oops"),), (provider_says("500 Oops"),)),
    "429": ((provider_says("429 Slow", "no", "Retry-After: 1"),),) * 2,
    "400": ((provider_says("400 Bad Request"),),) * 2,
    "cut first": ((CUT,), (CUT,)),
    "cut later": ((whole(REPLY)[:-20], CUT), (STREAM_HEAD + chunked(*EVENTS[:3]), CUT)),
    "500 later": ((whole(IN_BAND),), (STREAM_HEAD + chunked(*EVENTS[:3], event(IN_BAND)) + LAST_CHUNK,)),
    "hang": ((HOLD,), (HOLD,)),
    "hang later": ((whole(REPLY)[:-20], HOLD), (STREAM_HEAD + chunked(*EVENTS[:3]), HOLD)),
}


@dataclass
class Subject:
    """An upstream that can be told how to behave, and how often something was sent to it."""

    name: str
    make: Callable[..., Upstreams]
    server: ScriptedUpstream
    sent: Sent

    def told(self, behaviour: str, *, stream: bool = False) -> tuple[Upstreams, ModelRequest]:
        self.server.will(*SCRIPTS[behaviour][stream])
        limits = SHORT if "hang" in behaviour else {}
        if self.name == "sandbox":
            upstreams = self.make("http1", dialect="sandbox", base_url=None, credential=None, **limits)
            return upstreams, chat("sandbox: " + SANDBOX[behaviour], stream=stream)
        return self.make(self.name, **limits), chat(stream=stream)

    async def complete(self, behaviour: str) -> ModelReply:
        upstreams, request = self.told(behaviour)
        return await upstreams.complete(TARGET, request, self.sent.call())

    def stream(self, behaviour: str) -> AsyncGenerator[Chunk, None]:
        upstreams, request = self.told(behaviour, stream=True)
        return upstreams.stream(TARGET, request, self.sent.call())


async def taken(
    stream: AsyncGenerator[Chunk, None], *, pause_seconds: float | None = None
) -> tuple[list[Chunk], UpstreamError | None]:
    """What a stream gave, and the error it ended with."""
    chunks: list[Chunk] = []
    try:
        async with aclosing(stream), asyncio.timeout(TOO_LONG):
            async for chunk in stream:
                chunks.append(chunk)
                if pause_seconds is not None:
                    await asyncio.sleep(pause_seconds)
    except UpstreamError as error:
        return chunks, error
    return chunks, None
