"""Prices: integers only, a bound that no split can break, and its tight inverse."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cost import Price
from kernel import Component, Usage

AT = datetime(2026, 1, 1, tzinfo=UTC)
RATE = st.integers(0, 10**8)
INPUTS = [part for part in Component if not part.is_output]
OUTPUTS = [part for part in Component if part.is_output]


@st.composite
def prices(draw: st.DrawFn) -> Price:
    rates = draw(st.dictionaries(st.sampled_from(list(Component)), RATE))
    return Price("p@1", {Component.INPUT: draw(RATE), Component.OUTPUT: draw(RATE)} | rates, AT)


@st.composite
def splits(draw: st.DrawFn, parts: list[Component]) -> dict[Component, int]:
    return draw(st.dictionaries(st.sampled_from(parts), st.integers(0, 10**6)))


def flat(**pico: int) -> Price:
    return Price("p@1", {Component(name): rate for name, rate in pico.items()}, AT)


@given(prices(), splits(INPUTS), splits(OUTPUTS))
def test_no_split_over_components_costs_more_than_the_worst_case(price: Price, inputs, outputs) -> None:
    usage = Usage(inputs | outputs)
    assert price.cost(usage).nano_usd <= price.worst_case(usage.input_tokens, usage.output_tokens)


@given(prices(), st.integers(0, 10**10), st.integers(0, 10**5), st.integers(1, 8))
def test_the_output_that_fits_is_the_most_that_fits(price: Price, nano: int, tokens: int, choices: int) -> None:
    fits = price.output_tokens_within(nano, tokens, choices)
    if fits:
        assert price.worst_case(tokens, fits * choices) <= nano
    assert price.worst_case(tokens, (fits + 1) * choices) > nano or fits == 10**9


def test_each_component_is_rounded_up_once() -> None:
    cost = flat(input=1, output=1).cost(Usage({Component.INPUT: 1, Component.OUTPUT: 1001}))
    assert cost.components == {Component.INPUT: 1, Component.OUTPUT: 2}
    assert cost.nano_usd == 3


@pytest.mark.parametrize(
    ("part", "nano", "estimated"),
    [("cached_input", 2, False), ("reasoning", 4, False), ("cache_write", 3, True), ("audio_output", 4, True)],
)
def test_a_component_without_a_price_is_billed_at_the_next_best(part: str, nano: int, *, estimated: bool) -> None:
    price = flat(input=2000, output=4000, audio_input=3000)
    cost = price.cost(Usage({Component(part): 1}))
    assert (cost.nano_usd, cost.estimated) == (nano, estimated)


def test_what_is_free_is_free_in_the_worst_case_too() -> None:
    assert flat(input=0, output=0).worst_case(10**6, 10**6) == 0
