"""The hot path with real nouns and a scripted upstream: what is tried, what is told, and what the books then say."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

from cost import BudgetExhausted
from gateway.trace import Trace
from gateway.wiring import Platform
from governance import ModelNotAllowed, PolicyDenied
from kernel import Chunk, PlatformError, SystemClock
from router import ModelNotFound, TargetsResting, UpstreamBroken, UpstreamFailed, UpstreamRefused, UpstreamUnreachable
from tests.fakes.chats import ROLE, TAIL, WORD, Scripted, asking, caller_of, chat_with, company


@pytest.fixture
async def platform(tmp_path: Path) -> AsyncIterator[Platform]:
    async with company(tmp_path) as made:
        yield made


async def run(platform: Platform, upstreams: Scripted, model: str, *, stream: bool) -> tuple[Trace, list[Chunk]]:
    """One whole turn, settled; a PlatformError comes out as it is."""
    chat, trace, told = chat_with(platform, upstreams), Trace(SystemClock()), list[Chunk]()
    caller = await caller_of(platform)
    try:
        if stream:
            async with aclosing(chat.stream(caller, asking(model, stream=True), trace)) as chunks:
                async for chunk in chunks:
                    told.append(chunk)
        else:
            await chat.complete(caller, asking(model), trace)
    finally:
        if trace.turn is not None:
            await trace.turn.settled()
    return trace, told


async def states(platform: Platform, trace: Trace) -> list[tuple[str, str, bool]]:
    entries = await platform.ledger.request(trace.turn_id)
    assert entries is not None
    return [(entry.target, entry.kind, entry.estimated) for entry in entries.entries if entry.step == 1]


@pytest.mark.parametrize("stream", [False, True])
async def test_the_first_target_that_answers_is_posted_at_its_usage(platform: Platform, *, stream: bool) -> None:
    trace, _ = await run(platform, Scripted(one=[ROLE, WORD, TAIL]), "both", stream=stream)
    assert await states(platform, trace) == [("one", "post", False)]
    assert trace.turn is not None
    assert trace.turn.cost_nano_usd == 5 * 1000 + 7 * 2000


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("failure", "state"),
    [(UpstreamUnreachable("x"), ("one", "void", False)), (UpstreamFailed("one", 503), ("one", "void", False)),
     (UpstreamBroken("x"), ("one", "post", True))],
)  # fmt: skip
async def test_a_curable_failure_before_content_goes_to_the_next_target(
    platform: Platform, failure: PlatformError, state: tuple[str, str, bool], *, stream: bool
) -> None:
    upstreams = Scripted(one=[failure], two=[ROLE, WORD, TAIL])
    trace, _ = await run(platform, upstreams, "both", stream=stream)
    assert upstreams.asked == ["one", "two"]
    assert await states(platform, trace) == [state, ("two", "post", False)]


async def test_a_target_that_fails_before_content_leaves_no_trace_in_the_answer(platform: Platform) -> None:
    upstreams = Scripted(one=[ROLE, UpstreamBroken("x")], two=[ROLE, WORD, TAIL])
    _, told = await run(platform, upstreams, "both", stream=True)
    assert told == [ROLE, WORD, TAIL]


async def test_after_content_no_other_target_answers(platform: Platform) -> None:
    upstreams = Scripted(one=[ROLE, WORD, UpstreamBroken("x")], two=[ROLE, WORD, TAIL])
    with pytest.raises(UpstreamBroken):
        await run(platform, upstreams, "both", stream=True)
    assert upstreams.asked == ["one"]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_refusal_that_no_target_would_cure_is_passed_on(platform: Platform, *, stream: bool) -> None:
    upstreams = Scripted(one=[UpstreamRefused("no")], two=[WORD, TAIL])
    with pytest.raises(UpstreamRefused):
        await run(platform, upstreams, "both", stream=stream)
    assert upstreams.asked == ["one"]


@pytest.mark.parametrize("stream", [False, True])
async def test_when_every_target_fails_the_last_failure_is_told(platform: Platform, *, stream: bool) -> None:
    upstreams = Scripted(one=[UpstreamFailed("one", 500)], two=[UpstreamUnreachable("x")])
    with pytest.raises(UpstreamUnreachable):
        await run(platform, upstreams, "both", stream=stream)


async def test_a_stream_without_content_is_told_to_its_end(platform: Platform) -> None:
    _, told = await run(platform, Scripted(one=[ROLE, TAIL]), "one", stream=True)
    assert told == [ROLE, TAIL]


async def test_a_target_that_only_hums_is_told_after_a_while(platform: Platform) -> None:
    _, told = await run(platform, Scripted(one=[ROLE] * 70 + [TAIL]), "one", stream=True)
    assert len(told) == 71


@pytest.mark.parametrize("stream", [False, True])
async def test_a_caller_who_leaves_is_booked_at_the_hold(platform: Platform, *, stream: bool) -> None:
    upstreams, trace = Scripted(one=[ROLE, WORD, "hang"]), Trace(SystemClock())
    chat = chat_with(platform, upstreams)
    caller = await caller_of(platform)
    if stream:
        chunks = chat.stream(caller, asking("one", stream=True), trace)
        await anext(chunks)
        await chunks.aclose()
    else:
        work = asyncio.create_task(chat.complete(caller, asking("one"), trace))
        while not upstreams.hanging:
            await asyncio.sleep(0)
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
    assert trace.turn is not None
    await trace.turn.settled()
    assert await states(platform, trace) == [("one", "post", True)]


async def test_what_a_caller_may_not_know_of_is_left_out_of_the_plan(platform: Platform) -> None:
    upstreams = Scripted(two=[WORD, TAIL])
    trace, _ = await run(platform, upstreams, "mixed", stream=False)
    assert upstreams.asked == ["two"]
    assert trace.facts["plan"] == ["two"]
    with pytest.raises(ModelNotFound):
        await run(platform, upstreams, "secret", stream=False)
    with pytest.raises(ModelNotAllowed):
        await run(platform, upstreams, "shut", stream=False)


@pytest.mark.parametrize("stream", [False, True])
async def test_without_money_nothing_is_asked(platform: Platform, *, stream: bool) -> None:
    upstreams, trace = Scripted(one=[WORD, TAIL]), Trace(SystemClock())
    chat, caller = chat_with(platform, upstreams), await caller_of(platform, "poor")
    asked = anext(chat.stream(caller, asking("one"), trace)) if stream else chat.complete(caller, asking("one"), trace)
    with pytest.raises(BudgetExhausted):
        await asked
    assert upstreams.asked == []


async def test_what_drains_is_503_for_those_who_may_use_it_and_404_for_those_who_may_not_know_of_it(
    platform: Platform,
) -> None:
    drained = (
        "models: [{name: two, provider: s, draining: true}, {name: secret, provider: s, hidden: true, draining: true}]"
    )
    await platform.register.apply(platform.register.parse(drained), by="test")
    await platform.feed.catch_up()
    upstreams = Scripted(one=[WORD, TAIL])
    with pytest.raises(TargetsResting, match="draining"):
        await run(platform, upstreams, "two", stream=False)
    with pytest.raises(ModelNotFound):
        await run(platform, upstreams, "secret", stream=False)
    trace, _ = await run(platform, upstreams, "both", stream=False)
    assert upstreams.asked == ["one"]
    assert trace.facts["why"] == ["both: as declared, in order", "what is draining comes last and is passed over"]


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_could_only_be_paid_in_part_is_asked_for_with_that_ceiling(
    platform: Platform, *, stream: bool
) -> None:
    budget = 'budgets: [{name: none, scope: app, of: poor, period: day, limit_usd: "0.002"}]'
    await platform.register.apply(platform.register.parse(budget), by="test")
    await platform.feed.catch_up()
    upstreams, trace = Scripted(one=[WORD, TAIL]), Trace(SystemClock())
    chat, caller = chat_with(platform, upstreams), await caller_of(platform, "poor")
    if stream:
        assert [chunk async for chunk in chat.stream(caller, asking("one", stream=True), trace)]
    else:
        await chat.complete(caller, asking("one"), trace)
    assert trace.turn is not None
    (attempt,) = trace.turn.attempts
    assert attempt.was_lowered
    assert upstreams.limits == [attempt.output_tokens_max]


async def test_what_comes_after_content_is_told_at_once_though_it_has_none(platform: Platform) -> None:
    upstreams = Scripted(one=[WORD, ROLE, "hang"])
    told, chat, caller = list[Chunk](), chat_with(platform, upstreams), await caller_of(platform)
    async with aclosing(chat.stream(caller, asking("one", stream=True), Trace(SystemClock()))) as chunks:
        told += [await anext(chunks), await asyncio.wait_for(anext(chunks), 1)]
    assert told == [WORD, ROLE]


async def test_the_estimate_for_limits_is_no_more_than_the_target_can_answer(platform: Platform) -> None:
    models = "models: [{name: one, provider: s, output_tokens_max: 100}]"
    limited = "apps: [{name: a, department: d, use_cases: [u], tokens_per_minute: 500}]"
    await platform.register.apply(platform.register.parse(f"{models}\n{limited}"), by="test")
    await platform.feed.catch_up()
    trace, _ = await run(platform, Scripted(one=[WORD, TAIL]), "one", stream=False)
    assert trace.permit is not None
    assert 350 <= int(trace.permit.headers()["x-ratelimit-remaining-tokens"]) < 500


CARD = "charge 4111 1111 1111 1111 please"


async def test_content_raises_the_data_class_before_policy_is_asked(platform: Platform) -> None:
    trace, upstreams = Trace(SystemClock()), Scripted(one=[WORD, TAIL])
    request = asking("one", messages=[{"role": "user", "content": CARD}])
    with pytest.raises(PolicyDenied, match="confidential"):
        await chat_with(platform, upstreams).complete(await caller_of(platform), request, trace)
    assert trace.facts["scan"] == {"found": {"card": 1}, "raised_to": "confidential"}
    assert upstreams.asked == []


async def test_what_is_only_observed_in_content_is_told_and_raises_nothing(platform: Platform) -> None:
    observed = "apps: [{name: a, department: d, use_cases: [u], observe: {scan: 9999-12-31}}]"
    await platform.register.apply(platform.register.parse(observed), by="test")
    await platform.feed.catch_up()
    trace, request = Trace(SystemClock()), asking("one", messages=[{"role": "user", "content": CARD}])
    await chat_with(platform, Scripted(one=[WORD, TAIL])).complete(await caller_of(platform), request, trace)
    assert trace.observed == ["scan"]


async def test_a_long_text_is_looked_through_as_well(platform: Platform) -> None:
    long = "word " * 300_000 + CARD
    request = asking("one", messages=[{"role": "user", "content": long}])
    with pytest.raises(PolicyDenied, match="confidential"):
        await chat_with(platform, Scripted(one=[WORD, TAIL])).complete(
            await caller_of(platform), request, Trace(SystemClock())
        )


async def test_a_turn_that_is_open_when_its_target_starts_to_drain_ends_in_peace(platform: Platform) -> None:
    upstreams, trace = Scripted(two=[WORD, WORD, TAIL]), Trace(SystemClock())
    chat, caller = chat_with(platform, upstreams), await caller_of(platform)
    async with aclosing(chat.stream(caller, asking("two", stream=True), trace)) as chunks:
        told = [await anext(chunks)]
        drained = "models: [{name: two, provider: s, draining: true}]"
        await platform.register.apply(platform.register.parse(drained), by="test")
        await platform.feed.catch_up()
        told += [chunk async for chunk in chunks]
    assert told == [WORD, WORD, TAIL]
    assert trace.turn is not None
    await trace.turn.settled()
    assert await states(platform, trace) == [("two", "post", False)]


async def test_where_every_target_rests_nothing_is_held(platform: Platform) -> None:
    drained = "models: [{name: one, provider: s, draining: true}, {name: two, provider: s, draining: true}]"
    await platform.register.apply(platform.register.parse(drained), by="test")
    await platform.feed.catch_up()
    trace = Trace(SystemClock())
    with pytest.raises(TargetsResting):
        await chat_with(platform, Scripted()).complete(await caller_of(platform), asking("both"), trace)
    assert trace.turn is not None
    await trace.turn.settled()
    assert await platform.ledger.request(trace.turn_id) is None
    assert platform.ledger.open_holds == 0
