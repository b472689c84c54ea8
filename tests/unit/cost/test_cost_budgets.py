"""The book of prices and budgets, and the calendar of a budget's own time zone."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cost import KINDS, Book, Budget
from kernel import Caller, Component, InvalidDeclaration
from tests.fakes.ledgers import budget, by, price

ZONES = ("UTC", "Europe/Berlin", "America/Sao_Paulo", "Asia/Kathmandu", "Pacific/Apia", "Australia/Lord_Howe")
CALLER = Caller("key_1", "one", department="sales", app="mail")


@given(
    st.integers(0, 35 * 366 * 86_400).map(
        lambda seconds: datetime(2005, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)
    ),
    st.sampled_from(ZONES),
    st.sampled_from(["month", "day"]),
)
def test_every_instant_lies_in_exactly_the_period_it_names(at: datetime, zone: str, period) -> None:
    ours = Budget("b", "app", "mail", period, 1, timezone=zone)
    first, end = ours.period_bounds(ours.period_key(at))
    assert first <= at < end
    assert ours.period_key(end) != ours.period_key(at)
    assert ours.period_key(first) == ours.period_key(at) != ours.period_key(first - timedelta(microseconds=1))


def test_a_month_is_a_calendar_month_where_the_budget_lives() -> None:
    berlin = Budget("b", "app", "mail", "month", 1, timezone="Europe/Berlin")
    assert berlin.period_key(datetime(2026, 10, 31, 23, 30, tzinfo=UTC)) == "2026-11"
    assert berlin.period_bounds("2026-10")[1] == datetime(2026, 10, 31, 23, 0, tzinfo=UTC)
    assert berlin.period_bounds("2026-12") == (
        datetime(2026, 11, 30, 23, tzinfo=UTC),
        datetime(2026, 12, 31, 23, tzinfo=UTC),
    )


def test_the_price_in_force_is_the_latest_that_is_already_valid() -> None:
    book = Book.of([price(name="old"), price(usd="2", name="new", valid_from="2026-06-01T00:00:00Z")])
    assert book.price("small", datetime(2026, 5, 31, tzinfo=UTC)).id == "old@1"
    newer = book.price("small", datetime(2026, 6, 1, tzinfo=UTC))
    assert (newer.id, newer.pico_usd_per_token[Component.INPUT]) == ("new@1", 2_000_000)
    assert book.price("other", datetime(2026, 6, 1, tzinfo=UTC)) is None


def test_a_callers_budgets_are_those_of_its_department_app_and_key_by_id() -> None:
    book = Book.of(
        [
            budget("z", "sales", 1),
            budget("a", "key_1", 1, "key"),
            budget("m", "mail", 1, "app"),
            budget("n", "ops", 1),
            budget("o", "mail", 1, "department"),
        ]
    )
    assert [found.id for found in book.budgets(CALLER)] == ["a", "m", "z"]
    assert book.budgets(by(CALLER, department=None, app=None, key_id="key_2")) == ()


@pytest.mark.parametrize(
    ("document", "field", "cure"),
    [
        (price(usd="0.0000001"), "usd_per_million_tokens.input", "at most 6"),
        (price(usd="-1"), "usd_per_million_tokens.input", "greater than or equal to 0"),
        (price(usd_per_million_tokens={"input": "1"}), "usd_per_million_tokens", "output is missing"),
        (price(usd_per_million_tokens={"inputs": "1"}), "usd_per_million_tokens.inputs", "'input'"),
        (price(valid_from="2026-06-01T00:00:00"), "valid_from", "timezone"),
        (budget("b", "x", 1, timezone="Mars/Base"), "timezone", "Europe/Berlin"),
        (budget("b", "x", 1, limit_usd="0.0000000001"), "limit_usd", "at most 9"),
        (budget("b", "x", 1, limit_usd="NaN"), "limit_usd", "finite"),
        (budget("b", "x", 1, colour="red"), "colour", "not permitted"),
    ],
)
def test_a_wrong_declaration_is_named_with_its_field_and_its_cure(document, field: str, cure: str) -> None:
    with pytest.raises(InvalidDeclaration) as refused:
        Book.of([document])
    assert refused.value.message.startswith(f"{document.kind} {document.name}: {field}")
    assert cure in refused.value.message


def test_two_prices_of_a_model_from_the_same_instant_are_refused() -> None:
    with pytest.raises(InvalidDeclaration, match="price one and two: valid_from"):
        Book.of([price(name="one"), price(name="two")])


def test_a_price_may_be_written_as_a_number_or_as_text() -> None:
    body = KINDS["price"].model_validate({"model": "m", "usd_per_million_tokens": {"input": 0.15, "output": "0.6"}})
    assert [str(rate) for rate in body.usd_per_million_tokens.values()] == ["0.15", "0.6"]
