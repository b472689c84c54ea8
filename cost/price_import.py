"""Prices out of litellm's map, as the price documents an operator would write. It reads a map; it fetches none.

What a token costs is taken over. What else a provider charges is not: a model that cannot be priced by the components
of its tokens is left out, with the reason, because a price that is too low lets through what nobody allowed.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import ROUND_UP, Decimal, InvalidOperation
from types import MappingProxyType
from typing import Any

from kernel import Component

_RATES: Mapping[str, Component] = MappingProxyType(
    {
        "input_cost_per_token": Component.INPUT,
        "cache_read_input_token_cost": Component.CACHED_INPUT,
        "cache_creation_input_token_cost": Component.CACHE_WRITE,
        "cache_creation_input_token_cost_above_1hr": Component.CACHE_WRITE_1H,
        "input_cost_per_audio_token": Component.AUDIO_INPUT,
        "input_cost_per_image_token": Component.IMAGE_INPUT,
        "output_cost_per_token": Component.OUTPUT,
        "output_cost_per_reasoning_token": Component.REASONING,
        "output_cost_per_audio_token": Component.AUDIO_OUTPUT,
    }
)
_MODES = frozenset({"chat", "completion", "embedding", "responses"})
_A_PRICE = re.compile("cost|pricing|uplift")
_TIER = re.compile(r"_above_(\d+)k_tokens")
# Other ways to buy the same, which nobody here asks for; and what litellm tells twice.
_PASSED_OVER = re.compile(
    r"_(batches|flex|priority|balanced|ultrafast)(_|$)|^(input|output)_dbu_|^original_pricing_|_token_cache_hit$"
)
# Charged for what is refused by name before it is sent, or by region: worth saying, no reason to leave a model out.
_SAID = MappingProxyType(
    {
        "search_context_cost_per_query": "web search is charged by the query",
        "google_maps_grounding_cost_per_query": "grounding in maps is charged by the query",
        "code_interpreter_cost_per_session": "the code interpreter is charged by the session",
        "file_search_cost_per_1k_calls": "file search is charged by the call",
        "cache_read_input_audio_token_cost": "cached audio has a price of its own, and is counted as cached text",
        "cache_read_input_image_token_cost": "cached images have a price of their own, and are counted as cached text",
        "cache_creation_input_audio_token_cost": "audio written to a cache is counted as text written to it",
        "output_cost_per_image_token": "images that are made have a price of their own, and are counted as text",
        "regional_endpoint_uplift_multiplier": "regional endpoints cost more",
        "regional_processing_uplift_multiplier_us": "processing kept in the US costs more",
        "regional_processing_uplift_multiplier_eu": "processing kept in the EU costs more",
    }
)
_MILLION = 1_000_000
_FINEST = Decimal("0.000001")
_TOKENS_IN_A_K = 1000


@dataclass(frozen=True, slots=True)
class Wanted:
    """A model whose price is looked for. names: what litellm may call it, the likeliest first.

    provider: how litellm's word for whoever serves it begins. context_tokens: the most that the provider lets prompt
    and answer have together, as it was declared.
    """

    model: str
    names: tuple[str, ...]
    provider: str = ""
    context_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Found:
    """A price, as the body of its document, and in words what it leaves open."""

    model: str
    body: Mapping[str, Any]
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A model that has no price here, and why."""

    model: str
    reason: str


def read_prices(listed: Mapping[str, Any], wanted: Iterable[Wanted], *, source: str) -> list[Found | LeftOut]:
    """For each model its price or the reason why not, in the order in which they were asked for.

    listed: litellm's map, its numbers as Decimal or int where they came as JSON. source: stands in each document.
    """
    return [_read(listed, each, source) for each in wanted]


def _read(listed: Mapping[str, Any], wanted: Wanted, source: str) -> Found | LeftOut:
    name = next((name for name in wanted.names if _is_of(listed.get(name), wanted.provider)), None)
    if name is None:
        return LeftOut(wanted.model, f"the map has no {' and no '.join(wanted.names) or 'name for it'}")
    entry = listed[name]
    reason = _unpriceable(entry, wanted.context_tokens)
    rates = {part: rate for member, part in _RATES.items() if (rate := _per_million(entry.get(member))) is not None}
    if entry.get("mode") == "embedding":
        rates.setdefault(Component.OUTPUT, Decimal(0))
    if reason is None and not {Component.INPUT, Component.OUTPUT} <= rates.keys():
        reason = "has no price for a token of input and one of output"
    elif reason is None and not any(rates.values()):
        reason = "costs nothing, says the map; declare that price by hand if it is so"
    if reason is not None:
        return LeftOut(wanted.model, f"{name} {reason}")
    body = {
        "model": wanted.model,
        "usd_per_million_tokens": {part.value: f"{rate.normalize():f}" for part, rate in rates.items()},
        "source": f"{source}: {name}"[:500],
    }
    return Found(wanted.model, body, tuple(_SAID[member] for member in sorted(_SAID.keys() & _charged(entry))))


def _is_of(entry: object, provider: str) -> bool:
    return isinstance(entry, dict) and str(entry.get("litellm_provider", "")).startswith(provider)


def _unpriceable(entry: Mapping[str, Any], context_tokens: int) -> str | None:
    if entry.get("mode") not in _MODES:
        return f"is for {entry.get('mode')}, not for chat, completions or embeddings"
    for member in sorted(_charged(entry) - _RATES.keys() - _SAID.keys()):
        tier = _TIER.search(member)
        if _PASSED_OVER.search(member):
            continue
        if tier is None:
            return f"is also charged by {member}, which is no price of a token"
        if context_tokens > int(tier[1]) * _TOKENS_IN_A_K:
            return (
                f"costs more from {tier[1]},000 tokens of prompt on; declare context_tokens of at most that for a "
                "deployment that takes no more, or write the dearer price by hand"
            )
    return None


def _charged(entry: Mapping[str, Any]) -> set[str]:
    """The members that say what something costs, and not nothing."""
    return {name for name, value in entry.items() if _A_PRICE.search(name) and value not in (None, 0, {}, [])}


def _per_million(per_token: object) -> Decimal | None:
    """Rounded up to what a price may have, six decimals; None for what is no price."""
    try:
        return (Decimal(str(per_token)) * _MILLION).quantize(_FINEST, rounding=ROUND_UP)
    except InvalidOperation:
        return None
