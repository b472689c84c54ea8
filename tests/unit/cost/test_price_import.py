"""Prices out of litellm's map: by component, exact, and never too low for what they leave out."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cost.price_import import Found, LeftOut, Wanted, read_prices
from cost.wire import PriceBody
from kernel import Component

CHAT = {"mode": "chat", "litellm_provider": "anthropic"}
PLAIN = CHAT | {"input_cost_per_token": Decimal("3e-06"), "output_cost_per_token": Decimal("1.5e-05")}


def read(entry: dict, *, context_tokens: int = 100_000, name: str = "m") -> Found | LeftOut:
    (found,) = read_prices({name: entry}, [Wanted("model", ("m",), "", context_tokens)], source="map")
    return found


def rates(entry: dict, **how: int) -> dict[str, str]:
    found = read(entry, **how)
    assert isinstance(found, Found), found
    PriceBody.model_validate(found.body)
    return found.body["usd_per_million_tokens"]


def test_every_component_is_taken_over_in_dollars_per_million() -> None:
    entry = PLAIN | {
        "cache_read_input_token_cost": Decimal("3e-07"),
        "cache_creation_input_token_cost": Decimal("3.75e-06"),
        "cache_creation_input_token_cost_above_1hr": Decimal("6e-06"),
        "input_cost_per_audio_token": Decimal("1e-06"),
        "input_cost_per_image_token": Decimal("5e-06"),
        "output_cost_per_reasoning_token": Decimal("2e-05"),
        "output_cost_per_audio_token": Decimal("8e-05"),
    }
    assert rates(entry) == {
        "input": "3",
        "cached_input": "0.3",
        "cache_write": "3.75",
        "cache_write_1h": "6",
        "audio_input": "1",
        "image_input": "5",
        "output": "15",
        "reasoning": "20",
        "audio_output": "80",
    }


def test_a_document_says_where_its_price_is_from() -> None:
    found = read(PLAIN)
    assert found.body["model"] == "model"
    assert found.body["source"] == "map: m"


def test_what_is_finer_than_a_price_may_be_is_rounded_up() -> None:
    assert rates(PLAIN | {"input_cost_per_token": Decimal("1.00000000001e-07")})["input"] == "0.100001"


def test_numbers_that_came_as_floats_do_no_harm() -> None:
    assert rates(PLAIN | {"input_cost_per_token": 3e-07, "output_cost_per_token": 0})["input"] == "0.3"


def test_an_embedding_costs_nothing_for_what_it_does_not_say() -> None:
    entry = {"mode": "embedding", "input_cost_per_token": Decimal("2e-08")}
    assert rates(entry) == {"input": "0.02", "output": "0"}


@pytest.mark.parametrize(
    ("extra", "word"),
    [
        ({"mode": "image_generation"}, "image_generation"),
        ({"mode": None}, "None"),
        ({"input_cost_per_request": Decimal("0.01")}, "input_cost_per_request"),
        ({"input_cost_per_image": Decimal("0.01")}, "input_cost_per_image"),
        ({"output_cost_per_second": Decimal("0.01")}, "output_cost_per_second"),
        ({"input_cost_per_video_token": Decimal("0.01")}, "input_cost_per_video_token"),
        ({"tiered_pricing": [{"range": [0, 1]}]}, "tiered_pricing"),
        ({"off_peak_pricing": {"start": "16:30"}}, "off_peak_pricing"),
        ({"a_cost_nobody_knows": 1}, "a_cost_nobody_knows"),
        ({"output_cost_per_token": None}, "no price"),
        ({"input_cost_per_token": None}, "no price"),
        ({"input_cost_per_token": 0, "output_cost_per_token": 0}, "costs nothing"),
        ({"input_cost_per_token_above_32k_tokens": Decimal("9e-06")}, "from 32,000 tokens"),
        ({"input_cost_per_token": "free"}, "no price"),
    ],
    ids=str,
)
def test_what_tokens_alone_do_not_price_is_left_out_and_says_why(extra: dict, word: str) -> None:
    found = read(PLAIN | extra)
    assert isinstance(found, LeftOut)
    assert word in found.reason


def test_a_dearer_tier_that_a_prompt_cannot_reach_is_no_reason() -> None:
    entry = PLAIN | {"input_cost_per_token_above_200k_tokens": Decimal("6e-06")}
    assert rates(entry, context_tokens=200_000)["input"] == "3"
    assert isinstance(read(entry, context_tokens=200_001), LeftOut)


def test_other_ways_to_buy_the_same_are_passed_over() -> None:
    others = ("_batches", "_flex", "_priority", "_above_272k_tokens_priority", "_balanced")
    entry = PLAIN | {f"input_cost_per_token{each}": Decimal("9e-06") for each in others}
    assert rates(entry | {"input_dbu_cost_per_token": Decimal("4e-05")})["input"] == "3"


def test_what_is_charged_for_tools_that_are_refused_anyway_is_said() -> None:
    found = read(PLAIN | {"search_context_cost_per_query": {"search_context_size_low": Decimal("0.01")}})
    assert isinstance(found, Found)
    assert found.remarks == ("web search is charged by the query",)
    assert read(PLAIN | {"search_context_cost_per_query": 0}).remarks == ()


def test_the_first_name_that_the_map_knows_and_this_provider_serves_counts() -> None:
    other = PLAIN | {"litellm_provider": "groq", "input_cost_per_token": Decimal("1e-06")}
    wanted = [
        Wanted("a", ("anthropic/m", "m"), "anthropic"),
        Wanted("b", ("m",), "groq"),
        Wanted("c", ("nobody",)),
        Wanted("d", ()),
    ]
    first, second, third, fourth = read_prices({"m": PLAIN, "anthropic/m": other}, wanted, source="map")
    assert first.body["usd_per_million_tokens"]["input"] == "3"
    assert (second, third, fourth) == (
        LeftOut("b", "the map has no m"),
        LeftOut("c", "the map has no nobody"),
        LeftOut("d", "the map has no name for it"),
    )


@given(
    st.decimals(min_value="0", max_value="0.9", places=14), st.decimals(min_value="1e-12", max_value="0.9", places=14)
)
def test_no_price_is_below_the_maps(into: Decimal, out: Decimal) -> None:
    found = rates(CHAT | {"input_cost_per_token": into, "output_cost_per_token": out})
    for part, exact in ((Component.INPUT, into), (Component.OUTPUT, out)):
        price = Decimal(found[part.value])
        assert exact * 1_000_000 <= price < exact * 1_000_000 + Decimal("0.000001")
