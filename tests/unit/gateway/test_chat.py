"""The hot path with real nouns and a scripted upstream: what is tried, what is told, and what the books then say."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from pathlib import Path

import msgspec
import pytest

from cost import BudgetExhausted
from gateway.chat import Chat
from gateway.dialect import read_chat
from gateway.settings import Settings
from gateway.trace import Trace
from gateway.wiring import Platform, build, first_start
from governance import ModelNotAllowed, NewKey
from kernel import Caller, ChatReply, ChatRequest, Chunk, Component, PlatformError, SystemClock, Target, Usage
from router import (
    ModelNotFound,
    TargetsResting,
    UpstreamBroken,
    UpstreamCall,
    UpstreamFailed,
    UpstreamRefused,
    UpstreamUnreachable,
)

USAGE = Usage({Component.INPUT: 5, Component.OUTPUT: 7})
ROLE = Chunk(b'{"role":1}', content=False)
WORD = Chunk(b'{"word":1}')
TAIL = Chunk(b'{"usage":1}', usage=USAGE, content=False, usage_only=True, provider_request_id="up-1")

COMPANY = """
departments: [{name: d}]
use_cases: [{name: u, purpose: p}]
apps: [{name: a, department: d, use_cases: [u]}, {name: poor, department: d, use_cases: [u]}]
providers: [{name: s, dialect: sandbox}]
models: [{name: one, provider: s}, {name: two, provider: s}, {name: shut, provider: s},
         {name: secret, provider: s, hidden: true}]
aliases: [{name: both, targets: [one, two]}, {name: mixed, targets: [shut, secret, two]}]
prices:
  - {name: one, model: one, usd_per_million_tokens: {input: "1", output: "2"}}
  - {name: two, model: two, usd_per_million_tokens: {input: "3", output: "4"}}
policies: [{name: p, models: [one, two], departments: [d], use_cases: ["*"], data_class: internal}]
budgets: [{name: none, scope: app, of: poor, period: day, limit_usd: "0"}]
"""


class Scripted:
    """Upstreams that do what they are told: per target a list of chunks, ended or replaced by an error."""

    def __init__(self, **scripts: Sequence[Chunk | PlatformError | str]) -> None:
        self.scripts = scripts
        self.asked: list[str] = []
        self.hanging = False

    async def complete(self, target: Target, request: ChatRequest, call: UpstreamCall) -> ChatReply:
        chunks = [chunk async for chunk in self.stream(target, request, call)]
        return ChatReply(b"{}", chunks[-1].usage if chunks else None, "up-1")

    async def stream(self, target: Target, request: ChatRequest, call: UpstreamCall) -> AsyncGenerator[Chunk, None]:
        self.asked.append(target.name)
        for step in self.scripts[target.name]:
            if isinstance(step, UpstreamUnreachable):
                raise step
            call.sent()
            if isinstance(step, PlatformError):
                raise step
            if step == "hang":
                self.hanging = True
                await asyncio.Event().wait()
            assert isinstance(step, Chunk)
            yield step


@pytest.fixture
async def platform(tmp_path: Path) -> AsyncIterator[Platform]:
    made = build(Settings(data_dir=tmp_path, demo=False))
    await first_start(made)
    async with made:
        await made.register.apply(made.register.parse(COMPANY), by="test")
        await made.feed.catch_up()
        yield made


async def caller_of(platform: Platform, app: str = "a") -> Caller:
    made = await platform.keys.create(NewKey(name="k", app=app), by="test")
    return platform.keys.identify(made.key)


def chat_with(platform: Platform, upstreams: Scripted) -> Chat:
    own = platform.edge.chat
    return Chat(router=own.router, policy=own.policy, limits=own.limits, ledger=own.ledger, upstreams=upstreams)


def asking(model: str, **members: object) -> ChatRequest:
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], **members}
    return read_chat(msgspec.json.encode(body), {})


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
