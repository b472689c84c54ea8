"""Spans on their way to a collector that answers, hangs or is gone: that costs spans, and never anything else."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import pytest

from gateway.telemetry import Span

pytest.importorskip("opentelemetry.sdk.trace", reason="not run: the extra `telemetry` is not installed")

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from gateway.otlp import Otlp

TURNS_MAX = 2_000


class Collector(SpanExporter):
    """Does with each batch what it is told to."""

    def __init__(self) -> None:
        self.taken: list[ReadableSpan] = []
        self.does: Callable[[], SpanExportResult] = lambda: SpanExportResult.SUCCESS
        self.let_go = threading.Event()
        self.is_shut = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self.does()
        if result is SpanExportResult.SUCCESS:
            self.taken.extend(spans)
        return result

    def shutdown(self) -> None:
        self.is_shut = True

    def hang(self) -> SpanExportResult:
        self.let_go.wait(30)
        return SpanExportResult.FAILURE


def turn(number: int) -> list[Span]:
    root = Span("chat m", 5, number + 1, 9, 1_000, 3_000, "server", {"penstock.turn_id": f"t{number}"}, is_remote=True)
    return [root, Span("do", 5, number + 2, root.span_id, 1_500, 2_000, error="cut")]


@pytest.fixture
def collector() -> Collector:
    return Collector()


@pytest.fixture
def counts() -> Counter[str]:
    return Counter()


@pytest.fixture
def otlp(collector: Collector, counts: Counter[str]) -> Iterator[Otlp]:
    def told(end: str, turns: int) -> None:
        counts[end] += turns

    made = Otlp(collector, process="proc_1", told=told)
    made.start()
    yield made
    collector.let_go.set()
    made.stop()


def test_spans_arrive_whole_and_in_order(otlp: Otlp, collector: Collector, counts: Counter[str]) -> None:
    for number in range(250):
        otlp.add(turn(number))
    otlp.stop()
    assert counts == {"sent": 250}
    assert [span.attributes["penstock.turn_id"] for span in collector.taken[::2]] == [f"t{n}" for n in range(250)]
    root, do = collector.taken[:2]
    assert (root.context.trace_id, root.parent.span_id, root.parent.is_remote) == (5, 9, True)
    assert (do.parent.span_id, do.parent.is_remote, do.status.is_ok) == (root.context.span_id, False, False)
    assert (root.start_time, root.end_time, root.kind.name, root.status.is_unset) == (1_000, 3_000, "SERVER", True)
    assert root.resource.attributes["service.name"] == "penstock"
    assert root.resource.attributes["service.instance.id"] == "proc_1"
    assert collector.is_shut


def test_a_collector_that_hangs_costs_spans_and_never_memory_or_time(
    otlp: Otlp, collector: Collector, counts: Counter[str]
) -> None:
    collector.does = collector.hang
    began = time.monotonic()
    for number in range(5 * TURNS_MAX):
        otlp.add(turn(number))
    assert time.monotonic() - began < 2
    assert len(otlp._waiting) <= TURNS_MAX
    assert counts["dropped"] >= 3 * TURNS_MAX


def test_a_collector_that_hangs_does_not_hold_up_the_end(otlp: Otlp, collector: Collector) -> None:
    collector.does = collector.hang
    otlp.add(turn(1))
    began = time.monotonic()
    otlp.stop()
    assert time.monotonic() - began < 4


def test_a_collector_that_refuses_is_said_once_and_so_is_its_return(
    otlp: Otlp, collector: Collector, counts: Counter[str], caplog: pytest.LogCaptureFixture
) -> None:
    collector.does = lambda: SpanExportResult.FAILURE
    for number in range(400):
        otlp.add(turn(number))
    _until(lambda: counts["failed"] == 400)
    collector.does = lambda: SpanExportResult.SUCCESS
    otlp.add(turn(1))
    _until(lambda: counts["sent"] == 1)
    said = [record.message for record in caplog.records if record.name == "penstock.otlp"]
    assert said == ["the collector takes no spans; they are dropped", "spans are delivered again"]


def test_an_exporter_that_breaks_is_survived(otlp: Otlp, collector: Collector, counts: Counter[str]) -> None:
    def breaks() -> SpanExportResult:
        raise ConnectionResetError

    collector.does = breaks
    otlp.add(turn(1))
    _until(lambda: counts["failed"] == 1)
    collector.does = lambda: SpanExportResult.SUCCESS
    otlp.add(turn(2))
    _until(lambda: counts["sent"] == 1)


def _until(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + 5
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.01)
