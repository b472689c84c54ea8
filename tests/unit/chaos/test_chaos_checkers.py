"""The checkers behind the proofs find what is planted: a proof that could not fail would prove nothing."""

import asyncio

import pytest

from tests.chaos.proxy import Rule
from tests.prove.books import Attempt, compare
from tests.prove.company import Answer
from tests.prove.replicas_load import phantoms
from tests.prove.replicas_routes import Wish, wishes
from tests.prove.replicas_streams import _terminal, cases
from tests.sim.invoice import Finish, Line, Tokens

LINE = Line("req_1", "turn_1/1", Tokens(input=10, output=5), Finish.STOP, "sim-small", stream=True)


def booked(reference: str = "turn_1/1", *, estimated: bool = False, output: int = 5, cost: int = 100) -> Attempt:
    return Attempt(
        reference,
        "post",
        estimated,
        corrected=False,
        tokens={"input": 10, "output": output},
        held_nano_usd=100,
        cost_nano_usd=cost,
    )


def against(*attempts: Attempt, reconciled: bool = False):
    return compare([LINE], {each.reference: each for each in attempts}, reconciled=reconciled)


def test_books_that_agree_are_exact() -> None:
    assert against(booked()).exact
    assert against(booked(estimated=True, output=256)).exact


@pytest.mark.parametrize(
    ("attempt", "found"),
    [
        (booked("turn_2/1"), "without_attempt"),
        (booked(output=6), "inexact"),
        (booked(estimated=True, output=4), "understated"),
    ],
)
def test_a_planted_difference_is_found(attempt: Attempt, found: str) -> None:
    assert getattr(against(attempt), found)


def test_an_estimate_may_not_stand_once_the_invoice_is_imported() -> None:
    assert against(booked(estimated=True, output=256), reconciled=True).inexact


def test_an_attempt_that_costs_what_nobody_billed_is_a_phantom() -> None:
    books = {each.reference: each for each in (booked(), booked("turn_2/1"), booked("turn_3/1", cost=0))}
    assert phantoms([LINE], books) == ["turn_2/1"]


def answer(*events: str) -> Answer:
    return Answer(200, {}, {}, events)


@pytest.mark.parametrize(
    ("given", "right"),
    [
        (answer("{}", "[DONE]"), True),
        (answer("{}", '{"error":{"code":"upstream_broken"}}'), True),
        (answer("{}"), False),
        (answer("[DONE]", "[DONE]"), False),
        (answer('{"error":{}}', "[DONE]"), False),
        (answer("[DONE]", "{}"), False),
    ],
)
def test_a_stream_has_exactly_one_terminal_event_and_it_is_the_last(given: Answer, *, right: bool) -> None:
    assert (_terminal(given, stream=True)[1] == "") is right


def test_there_are_forty_cases_with_names_of_their_own() -> None:
    assert len({case.name for case in cases()}) == 40


@pytest.mark.parametrize(
    ("tokens", "task", "milliseconds", "quality", "expected"),
    [
        (100_001, "code", 1, "critical", "long_context"),
        (100_000, "code", 1, "critical", "code"),
        (5, "chat", 999, "critical", "fast"),
        (5, None, 1000, "critical", "quality"),
        (5, None, None, "high", "cheap"),
    ],
)
def test_the_reference_reads_the_rules_in_the_missions_order(
    tokens: int, task: str | None, milliseconds: int | None, quality: str | None, expected: str
) -> None:
    assert Wish("auto", tokens, task, milliseconds, quality, "body").expected == expected


def test_wishes_are_the_same_for_the_same_seed() -> None:
    assert wishes(7) == wishes(7) != wishes(8)


async def test_a_black_hole_holds_back_until_it_may_pass_again() -> None:
    rule = Rule()
    rule.become("black_hole", 0)
    held = asyncio.create_task(rule.let_through(5))
    await asyncio.sleep(0)
    assert not held.done()
    rule.become("pass", 0)
    await held


async def test_a_throttle_reads_little_at_a_time() -> None:
    rule = Rule()
    assert rule.block_bytes == 65_536
    rule.become("throttle", 1_000)
    assert rule.block_bytes == 50
