"""How attempts and turns end, and what the trail says of it."""

import asyncio

import msgspec
import pytest

from cost import BudgetExhausted, BudgetHeld, ModelUnpriced, Overloaded
from kernel import AuditRecord, Component, ModelRequest, StoreUnavailable, Usage
from tests.fakes.ledgers import (
    CALLER,
    HELD,
    SPARE,
    TARGET,
    UNKNOWN,
    Fault,
    FaultyStore,
    Firm,
    UpstreamFault,
    budget,
    by,
    price,
    used,
)

HOLD = (0, "hold", HELD, False)
POSTED_AT_HOLD = (1, "post", HELD, True)
VOIDED = (1, "void", 0, False)


@pytest.fixture
async def firm(books, clock):
    async with Firm(books, [budget("dept", "sales", 10 * HELD)], clock=clock).opened() as opened:
        yield opened


async def _ends(firm: Firm, error: BaseException | None, *, sent: bool, usage: Usage | None = None) -> list:
    turn = await firm.turn().__aenter__()
    attempt = await turn.attempt(TARGET).__aenter__()
    if sent:
        attempt.sent()
    attempt.use(usage)
    is_cured = await attempt.__aexit__(type(error), error, None)
    assert is_cured is getattr(error, "curable", False)
    await turn.__aexit__(None, None, None) if is_cured else await turn.__aexit__(type(error), error, None)
    await turn.settled()
    assert await firm.open_holds() == 0
    return await firm.entries(turn.id)


@pytest.mark.parametrize(
    ("error", "sent", "ending"),
    [
        (None, True, POSTED_AT_HOLD),
        (None, False, VOIDED),
        (UpstreamFault(), True, POSTED_AT_HOLD),
        (UpstreamFault(), False, VOIDED),
        (UpstreamFault(unbilled=True), True, VOIDED),
        (asyncio.CancelledError(), True, POSTED_AT_HOLD),
        (asyncio.CancelledError(), False, VOIDED),
        (GeneratorExit(), True, POSTED_AT_HOLD),
        (KeyError("bug"), True, POSTED_AT_HOLD),
        (KeyError("bug"), False, VOIDED),
    ],
)
async def test_without_usage_what_was_sent_is_posted_at_the_hold(firm: Firm, error, sent, ending) -> None:
    assert await _ends(firm, error, sent=sent) == [HOLD, ending]


@pytest.mark.parametrize("error", [UpstreamFault(), asyncio.CancelledError(), GeneratorExit(), KeyError("bug")])
@pytest.mark.parametrize("is_last_final", [False, True])
async def test_a_running_count_is_the_whole_only_once_the_answer_has_ended(firm: Firm, error, is_last_final) -> None:
    async def ends(error: BaseException | None) -> tuple:
        turn = await firm.turn().__aenter__()
        attempt = await turn.attempt(TARGET).__aenter__()
        attempt.sent()
        attempt.answered()
        attempt.use(used(7, 2), final=False)
        attempt.use(used(7, 3), final=is_last_final)
        await attempt.__aexit__(type(error), error, None)
        await turn.__aexit__(type(error), error, None)
        await turn.settled()
        entry = (await firm.ledger.request(turn.id)).entries[1]
        assert turn.cost_nano_usd == entry.amount_nano_usd
        return entry.amount_nano_usd, entry.estimated, entry.tokens

    exact = (10_000, False, used(7, 3).tokens)
    assert await ends(None) == exact
    assert await ends(error) == (exact if is_last_final else (HELD, True, used(100, 100).tokens))


async def test_a_cut_answer_that_had_already_used_more_than_was_held_is_posted_at_no_less(firm: Firm) -> None:
    running = {Component.INPUT: 5, Component.CACHED_INPUT: 200, Component.OUTPUT: 150, Component.REASONING: 1}
    async with firm.turn() as turn, turn.attempt(TARGET) as attempt:
        attempt.sent()
        attempt.use(Usage(running), final=False)
        raise UpstreamFault
    await turn.settled()
    entry = (await firm.ledger.request(turn.id)).entries[1]
    assert (entry.amount_nano_usd, entry.estimated, entry.reason) == (356_000, True, "upstream_error")
    assert entry.tokens == {**running, Component.INPUT: 100}


@pytest.mark.parametrize("error", [None, UpstreamFault(), asyncio.CancelledError(), KeyError("bug")])
async def test_usage_that_arrived_is_posted_however_the_attempt_ended(firm: Firm, error) -> None:
    assert await _ends(firm, error, sent=True, usage=used(7, 3)) == [HOLD, (1, "post", 10_000, False)]


async def test_usage_of_nothing_is_not_the_same_as_no_usage(firm: Firm) -> None:
    assert await _ends(firm, None, sent=True, usage=used(0, 0)) == [HOLD, (1, "post", 0, False)]


@pytest.mark.parametrize("tokens", [{Component.INPUT: 10**30}, {Component.INPUT: -1}])
async def test_usage_that_cannot_be_meant_counts_as_none(firm: Firm, tokens) -> None:
    assert await _ends(firm, None, sent=True, usage=Usage(tokens)) == [HOLD, POSTED_AT_HOLD]


async def test_the_last_usage_counts_and_is_never_added_up(firm: Firm) -> None:
    async with firm.turn() as turn, turn.attempt(TARGET) as attempt:
        attempt.use(used(5, 1))
        attempt.use(used(5, 9), "chatcmpl-1")
        attempt.use(None)
        assert turn.cost_nano_usd == 14_000
    await turn.settled()
    told = await firm.ledger.request(turn.id)
    assert told.entries[1].amount_nano_usd == 14_000
    assert told.entries[1].tokens == used(5, 9).tokens
    assert told.entries[1].provider_request_id == "chatcmpl-1"
    assert turn.usage == used(5, 9)


async def test_a_curable_failure_is_swallowed_until_something_was_answered(firm: Firm) -> None:
    async with firm.turn() as turn:
        async with turn.attempt(TARGET) as attempt:
            attempt.sent()
            raise UpstreamFault
        assert turn.failure().code == "upstream_error"
        for fault, is_answered in ((UpstreamFault(), True), (UpstreamFault(curable=False), False)):
            attempt = await turn.attempt(SPARE).__aenter__()
            if is_answered:
                attempt.answered()
            assert not await attempt.__aexit__(UpstreamFault, fault, None)
    await turn.settled()
    assert [attempt.number for attempt in turn.attempts] == [1, 2, 3]


async def test_the_trail_says_how_an_answered_turn_ended(firm: Firm) -> None:
    turn = firm.turn()
    turn.notes["cache"] = "miss"
    async with turn, turn.attempt(TARGET) as attempt:
        firm.clock.advance(0.25)
        attempt.use(used(1, 1))
    await turn.settled()
    assert firm.trail.events(turn.id) == ["turn.admitted", "turn.ended"]
    body = firm.trail.last(turn.id).body
    assert {name: body[name] for name in ("outcome", "status", "code", "cost_nano_usd", "estimated", "cache")} == {
        "outcome": "answered", "status": 200, "code": None, "cost_nano_usd": 2_000, "estimated": False, "cache": "miss",
    }  # fmt: skip
    assert body["milliseconds"] == {"hold": 0.0, "do": 250.0}
    assert body["attempts"] == [{"target": "small", "cost_nano_usd": 2_000, "end": "post", "reason": None}]
    assert turn.target == TARGET


@pytest.mark.parametrize(
    ("error", "outcome", "status"),
    [
        (UpstreamFault(curable=False), "failed", 502),
        (UpstreamFault(), "failed", 502),
        (KeyError("bug"), "failed", 500),
    ],
)
async def test_the_trail_says_how_other_turns_ended(firm: Firm, error, outcome: str, status: int) -> None:
    await _ends(firm, error, sent=True)
    body = firm.trail.records[-1].body
    assert (body["outcome"], body["status"], body["estimated"]) == (outcome, status, True)


@pytest.mark.parametrize("error", [asyncio.CancelledError(), GeneratorExit()])
@pytest.mark.parametrize(
    ("said", "ending"),
    [
        ({"gone": True}, ("caller_gone", 499, "caller_gone")),
        ({"ended_by": UpstreamFault(), "gone": True}, ("cut", 502, "upstream_error")),
        ({}, ("cut", 503, "shutting_down")),
    ],
)
async def test_a_cancelled_turn_ends_for_the_reason_that_whoever_cancelled_it_gave(
    firm: Firm, error, said: dict, ending: tuple
) -> None:
    turn = await firm.turn().__aenter__()
    attempt = await turn.attempt(TARGET).__aenter__()
    attempt.sent()
    for name, value in said.items():
        setattr(turn, name, value)
    await attempt.__aexit__(type(error), error, None)
    await turn.__aexit__(type(error), error, None)
    await turn.settled()
    body = firm.trail.last(turn.id).body
    assert (body["outcome"], body["status"], body["code"]) == ending
    assert body["attempts"][0]["reason"] == ending[2]
    assert (await firm.ledger.request(turn.id)).entries[1].reason == ending[2]


async def test_a_refused_first_hold_is_one_record_and_no_entry(firm: Firm) -> None:
    turn = firm.turn(request=ModelRequest("small", {}, input_tokens_max=10**7, output_tokens_max=10))
    with pytest.raises(BudgetExhausted, match="Budget `dept`"):
        async with turn, turn.attempt(TARGET):
            raise AssertionError
    await turn.settled()
    assert firm.trail.events(turn.id) == ["turn.refused"]
    body = firm.trail.last(turn.id).body
    assert (body["requested"], body["status"], body["code"]) == ("small", 402, "budget_exhausted")
    assert await firm.entries(turn.id) == []


async def test_money_that_open_turns_hold_is_429_and_comes_back(books, clock) -> None:
    async with Firm(books, [budget("dept", "sales", HELD)], clock=clock).opened() as firm:
        async with firm.turn() as turn, turn.attempt(TARGET):
            with pytest.raises(BudgetHeld) as held:
                await firm.answer(used(1, 1))
        assert (held.value.status, held.value.retryable, held.value.retry_after_seconds) == (429, True, 1.0)
        await turn.settled()
        await firm.answer(used(1, 1))


async def test_a_fallback_that_cannot_be_held_leaves_the_first_failure_standing(books, clock) -> None:
    async with Firm(books, [budget("dept", "sales", HELD)], clock=clock).opened() as firm:
        turn = firm.turn()

        async def call() -> None:
            async with turn:
                async with turn.attempt(TARGET) as attempt:
                    attempt.sent()
                    raise UpstreamFault
                async with turn.attempt(SPARE):
                    raise AssertionError("the budget is spent by the estimate of the first")

        with pytest.raises(UpstreamFault) as standing:
            await call()
        assert isinstance(standing.value.__cause__, BudgetExhausted)
        await turn.settled()
        assert await firm.entries(turn.id) == [HOLD, POSTED_AT_HOLD]
        assert firm.trail.events(turn.id) == ["turn.admitted", "turn.ended"]
        assert firm.trail.last(turn.id).body["status"] == 502


async def test_a_model_without_a_price_is_refused_unless_it_may_go_unpriced(firm: Firm) -> None:
    turn = firm.turn()
    with pytest.raises(ModelUnpriced):
        async with turn, turn.attempt(UNKNOWN):
            raise AssertionError
    assert firm.trail.last(turn.id).body["code"] == "model_unpriced"
    async with firm.turn() as turn, turn.attempt(msgspec.structs.replace(UNKNOWN, unpriced=True)) as attempt:
        attempt.use(used(5, 5))
    await turn.settled()
    told = await firm.ledger.request(turn.id)
    assert [(e.price_id, e.amount_nano_usd, e.reason) for e in told.entries] == [(None, 0, "unpriced")] * 2
    assert told.entries[1].tokens == used(5, 5).tokens


@pytest.mark.parametrize(("limit", "granted"), [(100_000 + 7 + 16_000, 16), (100_000 + 7 + 15_999, None)])
async def test_an_answer_is_shortened_down_to_sixteen_tokens_and_no_further(books, clock, limit, granted) -> None:
    async with Firm(books, [budget("dept", "sales", limit)], clock=clock).opened() as firm:
        if granted is None:
            with pytest.raises(BudgetExhausted):
                await firm.answer(used(1, 1))
            return
        async with firm.turn() as turn, turn.attempt(TARGET) as attempt:
            assert (attempt.output_tokens_max, attempt.was_lowered, attempt.held_nano_usd) == (granted, True, limit)


async def test_who_asks_for_less_than_sixteen_tokens_needs_no_more(books, clock) -> None:
    async with Firm(books, [budget("dept", "sales", 100_012)], clock=clock).opened() as firm:
        request = ModelRequest("small", {}, input_tokens_max=100, output_tokens_max=5)
        with pytest.raises(BudgetExhausted):
            async with firm.turn(request=request) as turn, turn.attempt(TARGET):
                pass
        firm.book = type(firm.book).of([*_documents(100_012 + 5_000)])
        async with firm.turn(request=request) as turn, turn.attempt(TARGET) as attempt:
            assert attempt.output_tokens_max == 5


def _documents(limit: int):
    return [price(), budget("dept", "sales", limit)]


async def test_a_soft_budget_counts_and_never_refuses(books, clock) -> None:
    async with Firm(books, [budget("dept", "sales", 1, hard=False)], clock=clock).opened() as firm:
        await firm.answer(used(100, 100))
        await firm.answer(used(100, 100))
        assert await firm.balance("dept") == (400_000, 0)


async def test_content_that_is_not_text_is_held_at_the_whole_context(firm: Firm) -> None:
    request = ModelRequest("small", {}, input_tokens_max=None, output_tokens_max=1)
    with pytest.raises(BudgetExhausted):
        async with firm.turn(request=request) as turn, turn.attempt(TARGET):
            pass
    async with firm.turn(by(CALLER, department="ops"), request) as turn, turn.attempt(TARGET) as attempt:
        assert attempt.held_nano_usd == 8_000 * 1000 + 1000 + 7


async def test_what_sends_no_prompt_is_free_whatever_the_provider_would_add_to_one(firm: Firm) -> None:
    request = ModelRequest("small", {}, input_tokens_max=0, output_tokens_max=0)
    target = msgspec.structs.replace(TARGET, prompt_overhead_tokens=500)
    async with firm.turn(request=request) as turn, turn.attempt(target) as attempt:
        assert attempt.held_nano_usd == 0


async def test_a_caller_that_leaves_while_its_hold_is_made_leaves_nothing_open(firm: Firm) -> None:
    turn = firm.turn()

    async def call() -> None:
        async with turn, turn.attempt(TARGET):
            raise AssertionError

    for ticks in range(12):
        turn = firm.turn()
        task = asyncio.create_task(call())
        for _ in range(ticks):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await turn.settled()
        assert await firm.open_holds() == 0
        assert (await firm.entries(turn.id))[1:] in ([], [VOIDED])
        events = firm.trail.events(turn.id)
        assert events in ([], ["turn.refused"], ["turn.admitted", "turn.ended"])
    assert (await firm.balance("dept"))[1] == 0


async def test_a_full_queue_refuses_new_holds_but_no_closing(books, clock) -> None:
    firm, fault = Firm(books, [budget("dept", "sales", 10**12)], clock=clock, queue_max=3), Fault()
    firm.store = FaultyStore(firm.store, fault)
    async with firm.opened():
        async with firm.turn() as turn, turn.attempt(TARGET) as attempt:
            attempt.sent()
            tasks = [asyncio.create_task(firm.answer(used(1, 1))) for _ in range(20)]
            told = await asyncio.gather(*tasks, return_exceptions=True)
            assert any(isinstance(one, Overloaded) for one in told)
            assert all(isinstance(one, Overloaded) and one.status == 503 for one in told if isinstance(one, Exception))
        await turn.settled()
        assert await firm.open_holds() == 0


async def test_a_full_queue_that_refuses_a_second_attempt_loses_no_closing_of_the_first(books, clock) -> None:
    async with Firm(books, [budget("dept", "sales", 10**12)], clock=clock, queue_max=1).opened() as firm:
        async with firm.turn() as turn:
            async with turn.attempt(TARGET):
                raise UpstreamFault
            others = [asyncio.create_task(firm.answer(used(1, 1))) for _ in range(3)]
            await asyncio.sleep(0)
            with pytest.raises(UpstreamFault):
                await turn.attempt(SPARE).__aenter__()
        await asyncio.gather(*others, return_exceptions=True)
        await turn.settled()
        assert await firm.open_holds() == 0
        assert (await firm.entries(turn.id))[1:] == [VOIDED]


async def test_a_record_of_its_own_is_durable_on_return_or_refused(books, clock) -> None:
    firm, fault = Firm(books, [], clock=clock), Fault()
    firm.store = FaultyStore(firm.store, fault)
    async with firm.opened():
        await firm.ledger.record(AuditRecord("turn.refused", {"code": "policy_denied"}))
        assert firm.trail.events() == ["turn.refused"]
        fault.down = True
        with pytest.raises(StoreUnavailable):
            await firm.ledger.record(AuditRecord("turn.refused"))
        fault.down = False
        assert firm.trail.events() == ["turn.refused"]


async def test_a_trail_that_cannot_be_written_refuses_turns_and_leaves_nothing_behind(firm: Firm) -> None:
    firm.trail.is_full = True
    with pytest.raises(StoreUnavailable):
        await firm.answer(used(1, 1))
    assert firm.ledger.waiting == 0
    firm.trail.is_full = False
    await firm.answer(used(1, 1))
    assert await firm.balance("dept") == (2_000, 0)


async def test_one_step_that_cannot_be_written_holds_up_no_other_for_good(books, clock) -> None:
    documents = [budget("dept", "sales", 10**9)]
    async with Firm(books, documents, clock=clock, close_seconds=0.2).opened() as firm:
        async with firm.turn() as poisoned, poisoned.attempt(TARGET) as attempt:
            attempt.sent()
            attempt._hold.entry = msgspec.structs.replace(attempt._hold.entry, target=object())
        told = []
        for _ in range(30):
            told += await asyncio.gather(firm.answer(used(1, 1)), return_exceptions=True)
        refused = [one for one in told if isinstance(one, Exception)]
        assert all(isinstance(one, StoreUnavailable) for one in refused)
        assert len(refused) <= 3
        assert firm.ledger.waiting <= 1
