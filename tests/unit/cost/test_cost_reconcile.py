"""An invoice makes the books equal to itself, once, by corrections that name it."""

from datetime import UTC, datetime

import pytest

from cost import Book, InvalidInvoice, InvalidReport, InvoiceLine, Reconciliation, read_csv, read_jsonl
from kernel import Component
from tests.fakes.ledgers import HELD, TARGET, Firm, UpstreamFault, budget, price, used

SINCE, UNTIL = datetime(2026, 11, 1, tzinfo=UTC), datetime(2026, 12, 1, tzinfo=UTC)


@pytest.fixture
async def firm(books, clock):
    async with Firm(books, [budget("dept", "sales", 100 * HELD)], clock=clock).opened() as opened:
        yield opened


def line(turn, tokens_in: int, tokens_out: int, provider_id: str | None = None) -> InvoiceLine:
    return InvoiceLine(provider_id, f"{turn.id}/1", used(tokens_in, tokens_out).tokens)


async def apply(firm: Firm, *lines: InvoiceLine, complete: bool = False):
    made = Reconciliation(firm.store, record=firm.ledger.record, clock=firm.clock, process=firm.process)
    return await made.run(lines, since=SINCE, until=UNTIL, complete=complete, by="ada")


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
    report = await apply(firm, line(listed, 1, 1), complete=True)
    assert (report.withdrawn, report.corrected) == (1, 0)
    assert sum(amount for _, _, amount, _ in (await firm.entries(absent.id))[1:]) == 0
    assert len(await firm.entries(exact.id)) == 2
    assert (await apply(firm, line(listed, 1, 1), complete=True)).withdrawn == 0
    assert await firm.balance("dept") == (12_000, 0)


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
    made = Reconciliation(firm.store, record=firm.ledger.record, clock=firm.clock, process=firm.process)
    with pytest.raises(InvalidReport):
        await made.run([], since=UNTIL, until=SINCE, complete=False, by="ada")


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
