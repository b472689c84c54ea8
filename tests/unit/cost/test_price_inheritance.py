"""What a model costs that was made from another: its base's price, under that price's name, until it has its own."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.ext.asyncio import AsyncEngine

from cost import Book
from kernel import Component, Document, Target, Usage
from tests.fakes.ledgers import Firm, price, used

NOW = datetime(2026, 6, 1, tzinfo=UTC)
DAYS = st.one_of(st.none(), st.integers(-50, 50))


def dated(model: str, name: str, usd: str, days: int | None) -> Document:
    valid_from = {} if days is None else {"valid_from": (NOW + timedelta(days=days)).isoformat()}
    return price(model, usd, name, **valid_from)


def named(prices: list[Document], model: str) -> list[Document]:
    """The same prices, as the model's own."""
    return [
        Document("price", each.name, each.version, {**each.body, "model": model}, each.author, each.at)
        for each in prices
    ]


@st.composite
def prices(draw: st.DrawFn, model: str) -> list[Document]:
    days = draw(st.lists(DAYS, unique=True, max_size=4))
    return [dated(model, f"{model}-{n}", str(draw(st.integers(0, 9))), day) for n, day in enumerate(days)]


@given(prices("base"), st.integers(-60, 60), st.dictionaries(st.sampled_from(list(Component)), st.integers(0, 10**6)))
def test_an_inherited_price_equals_an_own_one_with_the_same_rates(inherited, days, tokens) -> None:
    at, usage = NOW + timedelta(days=days), Usage(tokens)
    by_base = Book.of(inherited, {"tuned": "base"}).price("tuned", at)
    own = Book.of(named(inherited, "tuned")).price("tuned", at)
    assert by_base == own
    if by_base is not None and own is not None:
        assert by_base.cost(usage) == own.cost(usage)
        assert by_base.worst_case(1_000, 1_000) == own.worst_case(1_000, 1_000)


@given(prices("base"), prices("tuned"), st.integers(-60, 60))
def test_an_own_price_in_force_goes_before_any_of_the_base(of_base, own, days) -> None:
    at = NOW + timedelta(days=days)
    alone = Book.of(own).price("tuned", at)
    expected = Book.of(of_base).price("base", at) if alone is None else alone
    assert Book.of([*of_base, *own], {"tuned": "base"}).price("tuned", at) == expected


@given(prices("base"), prices("tuned"), st.integers(-60, 60))
def test_what_was_made_from_a_model_changes_nothing_of_its_price(of_base, own, days) -> None:
    at = NOW + timedelta(days=days)
    book = Book.of([*of_base, *own], {"tuned": "base"})
    assert book.price("base", at) == Book.of(of_base).price("base", at)
    assert book.price("other", at) is None


def test_a_base_without_a_price_lends_none() -> None:
    assert Book.of([price("other")], {"tuned": "base"}).price("tuned", NOW) is None


def test_an_own_price_of_the_future_leaves_the_bases_in_force_until_then() -> None:
    book = Book.of([price("base"), dated("tuned", "own", "9", 10)], {"tuned": "base"})
    found = [book.price("tuned", NOW + timedelta(days=days)) for days in (9, 10)]
    assert [each.id for each in found if each is not None] == ["base@1", "own@1"]


async def test_the_entry_names_the_price_that_was_used_and_the_model_that_was_called(books: AsyncEngine) -> None:
    tuned = Target("tuned", "sim", "ft:small:corp::1", context_tokens=8_000, output_tokens_max=1_000)
    firm = Firm(books, [])
    firm.book = Book.of([price()], {"tuned": "small"})
    async with firm.opened():
        async with firm.turn() as turn, turn.attempt(tuned) as attempt:
            attempt.sent()
            attempt.use(used(10, 20))
        await turn.settled()
        told = await firm.ledger.request(turn.id)
    assert told is not None
    hold, post = told.entries
    assert (hold.price_id, hold.target, post.target) == ("small@1", "tuned", "tuned")
    assert post.amount_nano_usd == 30_000
