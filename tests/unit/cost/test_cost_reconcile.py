"""An invoice makes the books equal to itself, once, by corrections that name it."""

from datetime import UTC, datetime

import pytest

from cost import Book, InvalidInvoice, InvalidReport, InvoiceLine, read_csv, read_jsonl
from kernel import Component
from tests.fakes.ledgers import HELD, SPARE, TARGET, Firm, UpstreamFault, budget, price, used

SINCE, UNTIL = datetime(2026, 11, 1, tzinfo=UTC), datetime(2026, 12, 1, tzinfo=UTC)


@pytest.fixture
async def firm(books, clock):
    async with Firm(books, [budget("dept", "sales", 100 * HELD)], clock=clock).opened() as opened:
        yield opened


def line(turn, tokens_in: int, tokens_out: int, provider_id: str | None = None) -> InvoiceLine:
    return InvoiceLine(provider_id, f"{turn.id}/1", used(tokens_in, tokens_out).tokens)


async def apply(firm: Firm, *lines: InvoiceLine, provider: str | None = None, complete: bool = False, until=UNTIL):
    made = firm.reconciliation()
    return await made.run(lines, since=SINCE, until=until, provider=provider, complete=complete, by="ada")


async def total(firm: Firm) -> int:
    return (await firm.rows("SELECT sum(amount_nano_usd) FROM entries WHERE step >= 1"))[0][0]


async def voided(firm: Firm, provider_id: str | None = None):
    async with firm.turn() as turn, turn.attempt(TARGET) as attempt:
        attempt.sent()
        attempt.replied(provider_id)
        raise UpstreamFault(unbilled=True)
    await turn.settled()
    return turn


async def test_an_estimate_becomes_what_was_billed_and_twice_changes_nothing(firm: Firm) -> None:
    turn = await firm.answer(None)
    report = await apply(firm, line(turn, 40, 2))
    assert (report.corrected, report.difference_nano_usd) == (1, 42_000 - HELD)
    assert (await firm.entries(turn.id))[2] == (2, "correction", 42_000 - HELD, False)
    assert await firm.balance("dept") == (42_000, 0)
    again = await apply(firm, line(turn, 40, 2))
    assert (again.corrected, again.unchanged, again.difference_nano_usd) == (0, 1, 0)
    told = await firm.ledger.request(turn.id)
    assert (told.entries[2].tokens, told.entries[2].reason) == (used(40 - 100, 2 - 100).tokens, "invoice")


async def test_what_equals_the_invoice_is_left_alone(firm: Firm) -> None:
    turn = await firm.answer(used(40, 2))
    assert (await apply(firm, line(turn, 40, 2))).unchanged == 1
    assert len(await firm.entries(turn.id)) == 2


async def test_a_call_that_was_voided_but_billed_is_posted_in_full(firm: Firm) -> None:
    turn = await voided(firm)
    await apply(firm, line(turn, 10, 1))
    assert (await firm.entries(turn.id))[1:] == [(1, "void", 0, False), (2, "correction", 11_000, False)]
    assert await firm.balance("dept") == (11_000, 0)


async def test_corrections_use_the_price_the_call_was_held_at(firm: Firm) -> None:
    turn = await firm.answer(None)
    firm.book = Book.of([price(usd="9")])
    await apply(firm, line(turn, 40, 2))
    assert await total(firm) == 42_000


async def test_a_second_invoice_corrects_the_first(firm: Firm) -> None:
    turn = await firm.answer(used(40, 2))
    await apply(firm, line(turn, 41, 2))
    await apply(firm, line(turn, 39, 2))
    assert [amount for _, _, amount, _ in await firm.entries(turn.id)] == [HELD, 42_000, 1_000, -2_000]
    assert await firm.balance("dept") == (41_000, 0)


async def test_an_estimate_that_a_complete_invoice_does_not_list_goes_to_zero(firm: Firm) -> None:
    absent, exact, listed = await firm.answer(None), await firm.answer(used(5, 5)), await firm.answer(None)
    assert (await apply(firm, line(listed, 1, 1))).withdrawn == 0
    firm.clock.at = UNTIL
    report = await apply(firm, line(listed, 1, 1), provider="sim", complete=True)
    assert (report.withdrawn, report.corrected) == (1, 0)
    assert sum(amount for _, _, amount, _ in (await firm.entries(absent.id))[1:]) == 0
    assert len(await firm.entries(exact.id)) == 2
    assert (await apply(firm, line(listed, 1, 1), provider="sim", complete=True)).withdrawn == 0
    assert await firm.balance("dept") == (12_000, 0)


async def test_a_complete_invoice_of_one_provider_leaves_the_estimates_of_others_alone(firm: Firm) -> None:
    async with firm.turn() as other, other.attempt(SPARE) as attempt:
        attempt.sent()
    await other.settled()
    firm.clock.at = UNTIL
    report = await apply(firm, line(other, 1, 1), provider="sim", complete=True)
    assert (report.withdrawn, report.corrected, report.unknown) == (0, 0, 1)
    assert await firm.entries(other.id) == [(0, "hold", HELD, False), (1, "post", HELD, True)]
    assert (await apply(firm, provider="sim2", complete=True)).withdrawn == 1


async def test_an_id_of_one_provider_is_not_looked_for_among_the_calls_to_another(firm: Firm) -> None:
    await voided(firm, "chatcmpl-7")
    assert (await apply(firm, InvoiceLine("chatcmpl-7", None, used(3, 3).tokens), provider="sim2")).unknown == 1
    assert (await apply(firm, InvoiceLine("chatcmpl-7", None, used(3, 3).tokens), provider="sim")).corrected == 1


async def test_an_attempt_too_young_to_be_on_a_complete_invoice_keeps_its_estimate(firm: Firm) -> None:
    old = await firm.answer(None)
    firm.clock.advance(86_400)
    until = firm.clock.now()
    young = await firm.answer(None)
    assert (await apply(firm, provider="sim", complete=True, until=until)).withdrawn == 1
    assert len(await firm.entries(young.id)) == 2
    assert len(await firm.entries(old.id)) == 3


@pytest.mark.parametrize(("provider", "field"), [(None, "provider"), ("sim", "until")])
async def test_a_complete_invoice_names_its_provider_and_a_time_that_has_passed(firm: Firm, provider, field) -> None:
    with pytest.raises(InvalidReport) as refused:
        await apply(firm, provider=provider, complete=True)
    assert refused.value.param == field
    assert f"`{field}`" in refused.value.message
    assert "admin.reconciled" not in firm.trail.events()


async def test_a_correction_reaches_a_budget_that_was_declared_after_the_call_had_ended(firm: Firm) -> None:
    estimated = await firm.answer(None)
    firm.clock.advance(1)
    firm.declare(budget("dept", "sales", 100 * HELD), budget("late", "mail", 100 * HELD, "app"))
    await firm.answer(used(1, 1))
    assert await firm.balance("late") == (HELD + 2_000, 0)
    await apply(firm, line(estimated, 40, 2))
    await apply(firm, line(estimated, 40, 1))
    assert await firm.balance("dept") == await firm.balance("late") == (41_000 + 2_000, 0)
    told = await firm.ledger.request(estimated.id)
    assert [period.budget_id for period in told.entries[2].periods] == ["dept@1", "late@1"]


async def test_a_correction_leaves_a_budget_alone_that_did_not_count_the_call(firm: Firm) -> None:
    firm.declare(budget("late", "mail", 100 * HELD, "app"))
    await firm.answer(used(1, 1))
    late = firm.book
    firm.clock.advance(1)
    firm.declare(budget("dept", "sales", 100 * HELD))  # as in a process that has not heard of the other yet
    unseen = await firm.answer(None)
    firm.book = late
    await apply(firm, line(unseen, 40, 2))
    assert await firm.balance("late") == (2_000, 0)


async def test_lines_are_found_by_the_providers_id_where_ours_is_missing(firm: Firm) -> None:
    await voided(firm, "chatcmpl-7")
    report = await apply(firm, InvoiceLine("chatcmpl-7", None, used(3, 3).tokens))
    assert (report.corrected, report.unknown) == (1, 0)
    assert await total(firm) == 6_000


async def test_two_lines_for_one_attempt_are_one_bill(firm: Firm) -> None:
    turn = await firm.answer(None)
    await apply(firm, line(turn, 10, 0, "a"), line(turn, 5, 5, "b"))
    assert await total(firm) == 20_000


async def test_lines_of_nobody_are_counted_and_named(firm: Firm) -> None:
    report = await apply(firm, *(InvoiceLine(f"x{n}", "req_none/1", {Component.INPUT: 1}) for n in range(30)))
    assert report.unknown == 30
    assert report.unknown_ids == tuple(f"x{n}" for n in range(20))


async def test_a_call_that_is_still_open_is_left_for_later(firm: Firm) -> None:
    async with firm.turn() as turn, turn.attempt(TARGET) as attempt:
        attempt.sent()
        assert (await apply(firm, line(turn, 1, 1))).still_open == 1
    await turn.settled()
    assert (await apply(firm, line(turn, 1, 1))).corrected == 1


async def test_an_invoice_is_in_the_trail_with_who_applied_it(firm: Firm) -> None:
    await apply(firm)
    record = firm.trail.records[-1]
    assert (record.event, record.body["by"], record.body["lines"]) == ("admin.reconciled", "ada", 0)


async def test_a_window_that_ends_before_it_begins_is_refused(firm: Firm) -> None:
    with pytest.raises(InvalidReport, match="before"):
        await firm.reconciliation().run([], since=UNTIL, until=SINCE, provider=None, complete=False, by="ada")


def test_json_lines_and_csv_say_the_same() -> None:
    as_json = '{"provider_request_id": "p1", "client_request_id": "t/1", "tokens": {"input": 3, "output": 4}}\n\n'
    as_csv = "provider_request_id,client_request_id,input,output\np1,t/1,3,4\n"
    assert read_jsonl(as_json) == read_csv(as_csv) == [InvoiceLine("p1", "t/1", used(3, 4).tokens)]


@pytest.mark.parametrize(
    ("read", "text", "line"),
    [
        (read_jsonl, '{"provider_request_id": "a", "tokens": {}}\n{"tokens": {"input": 1}}', "line 2"),
        (read_jsonl, '{"provider_request_id": "a", "tokens": {"input": -1}}', "line 1"),
        (read_jsonl, '{"provider_request_id": "a", "tokens": {"inputs": 1}}', "line 1"),
        (read_jsonl, '{"provider_request_id": "a", "tokens": {"input": 1.5}}', "line 1"),
        (read_jsonl, '{"provider_request_id": "a", "tokens": {}}\n' * 2, "line 2: a second line"),
        (read_jsonl, "nonsense", "line 1"),
        (read_csv, "provider_request_id,input\na,1\nb,x\n", "line 3"),
        (read_csv, "provider_request_id,input\na\n", "line 2"),
        (read_csv, "provider_request_id,input\na,1,2\n", "line 2"),
        (read_csv, "provider_request_id,colour\na,red\n", "Line 1: colour"),
        (read_csv, "", "Line 1"),
        (read_csv, 'provider_request_id,input\n"a"b,1\n', "Line 2"),
    ],
)
def test_rows_that_cannot_be_read_are_named_by_line(read, text: str, line: str) -> None:
    with pytest.raises(InvalidInvoice, match=line):
        read(text)
