"""What operators see: of turns, and of the process itself."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from gateway.metrics import Metrics
from gateway.wiring import Platform
from governance import NewKey
from kernel import Component, Usage
from router import UpstreamRefused, UpstreamUnreachable
from tests.fakes.chats import ROLE, TAIL, WORD, RawCaller, Scripted, chat_with, company


@pytest.fixture
async def platform(tmp_path: Path) -> AsyncIterator[Platform]:
    async with company(tmp_path) as made:
        yield made


async def _turn(platform: Platform, model: str, scripts: dict[str, list], **members: object) -> RawCaller:
    platform.edge.chat = chat_with(platform, Scripted(**scripts))
    key = await platform.keys.create(NewKey(name="k", app="a"), by="test")
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], **members}
    return await RawCaller(platform, key.key, msgspec.json.encode(body)).start().ended()


async def _page(platform: Platform) -> dict[tuple[str, ...], float]:
    """Every sample by its name and its labels' values."""
    _, text = await platform.edge.metrics.page()
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


async def test_a_turn_counts_under_the_names_of_the_mission(platform: Platform) -> None:
    await _turn(platform, "one", {"one": [ROLE, WORD, TAIL]}, stream=True)
    await asyncio.sleep(0.05)  # its books
    page = await _page(platform)
    assert page["ai_requests_total", "one", "200"] == 1
    assert page["ai_latency_seconds_count", "one"] == 1
    assert page["ai_latency_seconds_bucket", "+Inf", "one"] == 1
    assert page["ai_cost_dollars", "d"] == page["ai_cost_dollars_total", "d"] == pytest.approx(19e-6)


async def test_a_turn_tells_its_tokens_its_cost_its_first_content_and_its_upstream(platform: Platform) -> None:
    await _turn(platform, "one", {"one": [ROLE, WORD, TAIL]}, stream=True)
    page = await _page(platform)
    assert page["penstock_tokens_total", "input", "one"] == 5
    assert page["penstock_tokens_total", "output", "one"] == 7
    assert page["penstock_turn_cost_dollars_sum", "one"] == pytest.approx(19e-6)
    assert page["penstock_turn_cost_dollars_bucket", "0.0001", "one"] == 1
    assert page["penstock_turn_cost_dollars_bucket", "1e-05", "one"] == 0
    assert page["penstock_answer_seconds_count", "one"] == page["penstock_upstream_seconds_count", "one"] == 1
    assert 0 < page["penstock_answer_seconds_sum", "one"] <= page["ai_latency_seconds_sum", "one"]


async def test_each_attempt_of_a_turn_counts_at_its_own_target(platform: Platform) -> None:
    await _turn(platform, "both", {"one": [UpstreamUnreachable("x")], "two": [WORD, TAIL]})
    page = await _page(platform)
    assert page["penstock_upstream_seconds_count", "one"] == page["penstock_upstream_seconds_count", "two"] == 1
    assert page["ai_requests_total", "two", "200"] == 1
    assert ("penstock_tokens_total", "input", "one") not in page
    assert ("penstock_answer_seconds_count", "one") not in page


async def test_what_callers_and_providers_make_up_is_no_label(platform: Platform) -> None:
    await _turn(platform, "made-up-by-a-caller", {})
    said = UpstreamRefused("no", status=400, code="made_up_by_a_provider")
    await _turn(platform, "one", {"one": [said]})
    odd = Usage({Component.INPUT: 1})
    await _turn(platform, "one", {"one": [msgspec.structs.replace(TAIL, usage=odd)]})
    page = await _page(platform)
    assert page["ai_requests_total", "unknown", "404"] == 1
    assert page["penstock_refusals_total", "model_not_found"] == page["penstock_refusals_total", "invalid_request"] == 1
    assert not any("made" in part for key in page for part in key)


async def test_a_wrong_key_is_a_refusal_too(platform: Platform) -> None:
    await RawCaller(platform, "sk-wrong", b"{}").start().ended()
    page = await _page(platform)
    assert page["ai_requests_total", "unknown", "401"] == page["penstock_refusals_total", "invalid_api_key"] == 1


async def test_the_page_shows_books_trail_and_process(platform: Platform) -> None:
    await _turn(platform, "one", {"one": [WORD, TAIL]})
    await asyncio.sleep(0.05)
    page = await _page(platform)
    assert page["penstock_ledger_writing",] == 1
    assert page["penstock_audit_records_total",] == 2, "its admission and its outcome"
    assert page["penstock_holds_open",] == page["penstock_holds_swept_total",] == 0
    assert page["process_resident_memory_bytes",] > 10_000_000


async def test_estimates_are_counted_by_target(platform: Platform) -> None:
    await _turn(platform, "one", {"one": [WORD]})
    await asyncio.sleep(0.05)
    assert (await _page(platform))["penstock_estimates_total", "one"] == 1


def _late(registry: CollectorRegistry, than_seconds: str) -> float:
    """How many looks at the loop were later than that."""
    every = registry.get_sample_value("penstock_loop_lag_seconds_count") or 0
    return every - (registry.get_sample_value("penstock_loop_lag_seconds_bucket", {"le": than_seconds}) or 0)


async def test_a_loop_that_is_held_is_seen_as_late() -> None:
    registry = CollectorRegistry()
    watching = asyncio.create_task(Metrics(registry).watch_loop())
    await asyncio.sleep(0)
    time.sleep(0.3)  # noqa: ASYNC251 - this is what nobody may do
    await asyncio.sleep(0.01)
    watching.cancel()
    with suppress(asyncio.CancelledError):
        await watching
    assert _late(registry, "0.2") == 1
