"""The property that money rests on: a request that a provider has taken is never sent to it again, whatever it does."""

import asyncio
import os
import random
from collections import Counter
from contextlib import aclosing, suppress

import pytest

from router import Provider, UpstreamCall, UpstreamError, UpstreamSettings
from router.dispatch import Dispatch
from router.wire_client import WireClient
from tests.fakes.routing import TARGET, Sent, catalogue, chat
from tests.fakes.scripted_upstream import (
    CUT,
    EVENTS,
    HALF_CLOSE,
    HOLD,
    LAST_CHUNK,
    REPLY,
    RESET,
    STREAM_HEAD,
    Drip,
    Step,
    Wait,
    chunked,
    whole,
)
from tests.fakes.upstream_subjects import CARRIERS, provider_says

RUNS = 300
SEED = int(os.environ.get("PENSTOCK_TEST_SEED", "7"))
STREAM = STREAM_HEAD + chunked(*EVENTS) + LAST_CHUNK
LEAVES_AFTER_SECONDS = 0.02


def fault(dice: random.Random) -> tuple[Step, ...]:
    """What a provider does with one request."""
    answer = dice.choice((whole(REPLY), STREAM, provider_says("503 X"), provider_says("429 X"), provider_says("413 X")))
    at = dice.randrange(len(answer))
    end = dice.choice((CUT, RESET, HALF_CLOSE, HOLD))
    return dice.choice(
        (
            (answer,),
            (answer,),
            (answer, end),
            (answer, Wait(0.005), end),
            (end,),
            (Wait(0.005), end),
            (answer[:at], end),
            (answer[:at], Wait(0.005), end),
            (answer[:at], Wait(0.005), answer[at:]),
            (Drip(answer, 90),),
            (answer + answer,),
            (b"HTTP/1.1 100 Continue\r\n\r\n", answer),
            (b"garbage\r\n\r\n",),
        )
    )


async def ask(wire: WireClient, provider: Provider, call: UpstreamCall, dice: random.Random) -> None:
    """One call that ends as it may: answered, failed, or left."""
    streamed = dice.random() < 0.5
    request = chat("x" * dice.choice((10, 10, 300_000)), stream=streamed)
    dispatch = Dispatch(provider, None, TARGET, request, call)
    with suppress(UpstreamError, TimeoutError):
        async with asyncio.timeout(LEAVES_AFTER_SECONDS if dice.random() < 0.2 else None):
            if not streamed:
                await wire.complete(dispatch)
                return
            async with aclosing(wire.stream(dispatch)) as stream:
                async for _ in stream:
                    if dice.random() < 0.05:
                        return


@pytest.mark.parametrize("carrier", CARRIERS)
async def test_an_accepted_post_is_never_sent_twice(server, clock, carrier, record_property):
    dice, settings = random.Random(SEED), UpstreamSettings()
    server.answer = lambda: fault(dice)
    limits = {"answer_seconds": 0.05, "event_seconds": 0.05, "connect_seconds": 1}
    provider = catalogue(dialect="openai", base_url=server.url, **limits).provider("p")
    # No circuit, which would spare a target that fails, and no translator, which none of this needs.
    wire = WireClient(clock, settings, CARRIERS[carrier](settings), translator=asyncio.Event().wait)
    sents = {f"turn_{number}/1": Sent() for number in range(RUNS)}
    waiting = list(sents.items())
    while waiting:
        crowd, waiting = waiting[:5], waiting[5:]
        if dice.random() < 0.2:
            server.drop()  # just as others are about to be sent over what is idle
        server.greeting = (dice.choice((CUT, RESET)),) if dice.random() < 0.05 else ()
        await asyncio.gather(*(ask(wire, provider, UpstreamCall(name, sent.mark), dice) for name, sent in crowd))
    await wire.close()
    accepted = Counter(head["x-client-request-id"] for head in server.heads)
    assert max(accepted.values()) == 1
    assert all(sent.times <= 1 for sent in sents.values())
    assert not [name for name in accepted if not sents[name].times]
    assert RUNS * 0.8 < len(accepted) <= RUNS
    record_property("runs", RUNS)
