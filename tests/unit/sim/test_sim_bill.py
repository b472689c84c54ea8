"""A request's bill: one line, once, by whoever closes it first."""

import json
from pathlib import Path

import pytest

from tests.sim.bill import Bill, Stats
from tests.sim.invoice import Finish, Invoice, read_invoice
from tests.sim.openai import Chat
from tests.sim.openai_ask import read_chat


def bill(invoice: Invoice, stats: Stats) -> Bill:
    body = {"model": "sim-small", "messages": [{"role": "user", "content": 'sim: {"tokens": 5, "reasoning": 2}'}]}
    answer = Chat(read_chat(json.dumps(body).encode()), "1", 1)
    return Bill(invoice, stats, answer, ("req_1", "turn/1"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "invoice.jsonl"


def test_a_bill_is_written_once(path):
    with Invoice(path) as invoice, bill(invoice, Stats()) as open_bill:
        open_bill.generate(5)
        open_bill.close(Finish.STOP)
        open_bill.close(Finish.CUT)
    lines = read_invoice(path)
    assert [line.finish for line in lines] == [Finish.STOP]
    assert (lines[0].provider_request_id, lines[0].client_request_id) == ("req_1", "turn/1")
    assert (lines[0].tokens.output, lines[0].tokens.reasoning) == (5, 2)


def test_a_bill_left_open_is_cancelled_at_what_was_generated(path):
    stats = Stats()
    with Invoice(path) as invoice, bill(invoice, stats) as open_bill:
        open_bill.generate(3)
    assert [(line.finish, line.tokens.output) for line in read_invoice(path)] == [(Finish.CANCELLED, 3)]
    assert (stats.cancelled, stats.billed, stats.answering) == (1, 1, 0)


def test_before_the_first_event_nothing_but_the_prompt_is_billed(path):
    with Invoice(path) as invoice, bill(invoice, Stats()):
        pass
    tokens = read_invoice(path)[0].tokens
    assert (tokens.output, tokens.reasoning) == (0, 0)
    assert tokens.input > 0


def test_a_waived_bill_leaves_no_line(path):
    with Invoice(path) as invoice, bill(invoice, Stats()) as open_bill:
        open_bill.waive()
    assert read_invoice(path) == []


def test_a_line_is_in_the_file_before_the_invoice_is_closed(path):
    with Invoice(path, fsync=True) as invoice, bill(invoice, Stats()) as open_bill:
        open_bill.close(Finish.STOP)
        assert len(read_invoice(path)) == 1


def test_a_reset_counts_anew_but_for_what_is_open(path):
    stats = Stats()
    with Invoice(path) as invoice, bill(invoice, stats):
        stats.requests = 9
        stats.reset()
        assert (stats.requests, stats.max_concurrent, stats.answering) == (0, 1, 1)
