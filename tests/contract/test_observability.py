"""What operators see, through real stores and real sockets."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.settings import Settings
from gateway.telemetry import Span, TelemetryUnusable, otlp
from gateway.wiring import Platform, build, first_start
from governance import NewKey
from tests.fakes.chats import COMPANY, TAIL, WORD, RawCaller, Scripted, chat_with
from tests.prove.wide_observe import Collector

BUDGETS = """
budgets:
  - {name: none, scope: app, of: poor, period: day, limit_usd: "0"}
  - {name: d-month, scope: department, of: d, period: month, limit_usd: "10"}
  - {name: d-soft, scope: department, of: d, period: day, limit_usd: "1", hard: false}
  - {name: a-day, scope: app, of: a, period: day, limit_usd: "10"}
"""


@pytest.fixture
async def platform(store_url: str, tmp_path: Path) -> AsyncIterator[Platform]:
    secrets = {"key_pepper": "p" * 32, "master_key": "ab" * 32}
    made = build(Settings(data_dir=tmp_path, database_url=store_url, demo=False, **secrets))
    await first_start(made)
    async with made:
        await made.register.apply(made.register.parse(COMPANY[: COMPANY.index("budgets:")] + BUDGETS), by="test")
        await made.feed.catch_up()
        yield made


async def _turn(platform: Platform) -> None:
    platform.edge.chat = chat_with(platform, Scripted(one=[WORD, TAIL]))
    key = await platform.keys.create(NewKey(name="k", app="a"), by="test")
    body = {"model": "one", "messages": [{"role": "user", "content": "hi"}]}
    caller = await RawCaller(platform, key.key, msgspec.json.encode(body)).start().ended()
    assert caller.status == 200
    if caller.rests_until is not None:
        await caller.rests_until


async def _gauges(platform: Platform) -> dict[str, dict[str, float]]:
    """The budgets' gauges, by metric and budget."""
    _, text = await platform.edge.metrics.page()
    return {
        family.name.removeprefix("penstock_budget_"): {
            sample.labels["budget"]: sample.value for sample in family.samples
        }
        for family in text_string_to_metric_families(text.decode())
        if family.name.startswith("penstock_budget_")
    }


async def test_budgets_of_departments_are_shown_once_somebody_moved_them(platform: Platform) -> None:
    await platform.budgets.look()
    assert (await _gauges(platform))["posted_dollars"] == {}
    await _turn(platform)
    await platform.budgets.look()
    shown = await _gauges(platform)
    assert shown["limit_dollars"] == {"d-month": 10, "d-soft": 1}
    assert shown["posted_dollars"] == pytest.approx({"d-month": 19e-6, "d-soft": 19e-6})
    assert shown["held_dollars"] == {"d-month": 0, "d-soft": 0}
    now = platform.edge.clock.now().timestamp()
    assert now < shown["resets_timestamp_seconds"]["d-soft"] <= now + 86_400


async def test_a_budget_that_is_withdrawn_is_shown_no_longer(platform: Platform) -> None:
    await _turn(platform)
    await platform.register.remove("budget", "d-soft", by="test")
    await platform.feed.catch_up()
    await platform.budgets.look()
    assert set((await _gauges(platform))["limit_dollars"]) == {"d-month"}


async def test_budgets_are_not_shown_while_the_store_cannot_say(platform: Platform) -> None:
    await _turn(platform)
    await platform.budgets.look()
    for engine in platform.engines:
        await engine.dispose()
    platform.budgets._store = _Away()
    watching = asyncio.create_task(platform.budgets.watch(0.01))
    await asyncio.sleep(0.05)
    assert not watching.done(), "it goes on"
    watching.cancel()
    assert (await _gauges(platform))["limit_dollars"] == {}


class _Away:
    async def balances(self, _budgets: object) -> dict:
        from kernel import StoreUnavailable  # noqa: PLC0415

        raise StoreUnavailable("away")


async def test_spans_arrive_at_a_collector_by_otlp() -> None:
    pytest.importorskip("opentelemetry.sdk", reason="not run: the extra `telemetry` is not installed")
    ends: list[tuple[str, int]] = []
    async with Collector() as collector:
        sink = otlp(collector.url, {"x-key": "k"}, process="proc_1", told=lambda end, turns: ends.append((end, turns)))
        sink.start()
        sink.add([Span("chat m", 0xA, 0xB, 0xC, 1_000, 2_000, "client", {"gen_ai.usage.input_tokens": 3})])
        await asyncio.to_thread(sink.stop)
    assert ends == [("sent", 1)]
    [span] = collector.spans
    assert (span["name"], span["trace"], span["parent"]) == ("chat m", f"{0xA:032x}", f"{0xC:016x}")
    assert span["attributes"] == {"gen_ai.usage.input_tokens": 3}
    [headers] = collector.headers
    assert headers["x-key"] == "k"


async def test_a_collector_that_is_gone_is_counted_and_no_more() -> None:
    pytest.importorskip("opentelemetry.sdk", reason="not run: the extra `telemetry` is not installed")
    ends: list[tuple[str, int]] = []
    sink = otlp("http://127.0.0.1:9", {}, process="p", told=lambda end, turns: ends.append((end, turns)))
    sink.start()
    sink.add([Span("chat m", 1, 2, None, 1_000, 2_000)])
    began = asyncio.get_running_loop().time()
    await asyncio.to_thread(sink.stop)
    assert asyncio.get_running_loop().time() - began < 4


async def test_traces_without_the_extra_name_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gateway.otlp", None)
    with pytest.raises(TelemetryUnusable, match=r"penstock\[telemetry\]"):
        otlp("http://127.0.0.1:9", {}, process="p", told=lambda _end, _turns: None)


@pytest.mark.parametrize("endpoint", ["collector:4318", "http://user:pass@collector", "ftp://x", "http://x/?key=1"])
def test_an_address_that_is_none_or_holds_a_secret_is_refused(tmp_path: Path, endpoint: str) -> None:
    with pytest.raises(ValueError, match="PENSTOCK_OTLP_ENDPOINT"):
        Settings(data_dir=tmp_path, otlp_endpoint=endpoint)


def test_headers_of_the_collector_are_read_and_never_printed(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, otlp_headers="authorization=Bearer abc=, x-team = 7")
    assert settings.otlp_header_fields == {"authorization": "Bearer abc=", "x-team": "7"}
    assert "abc" not in repr(settings)
    for wrong in ("secret-without-a-name", "=value", "a=\u00fc", "a=b\nc"):
        with pytest.raises(ValueError, match="PENSTOCK_OTLP_HEADERS"):
            Settings(data_dir=tmp_path, otlp_headers=wrong)
