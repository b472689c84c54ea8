"""What operators see of turns, under the names the mission gives them. Labels hold declared names and codes of ours.

Turns are counted, and what was counted is gathered, on the event loop alone, so nothing here locks: the counters of
prometheus_client, which threads may share, cost several times as much a turn.
"""

import asyncio
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from gateway.trace import Trace
from kernel import NANO_PER_USD, Component, PlatformError
from router import Catalogue

_LAGS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 5)
_LOOKS_EVERY_SECONDS = 0.05  # whatever holds the loop for longer is certainly seen
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_DOLLARS = (0.00001, 0.0001, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)


class Metrics:
    """Everything this process shows, on the registry it is given."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._turns = TurnMetrics()
        registry.register(self._turns)
        self.turn = self._turns.turn
        ProcessCollector(registry=registry)
        self._lag = Histogram(
            "penstock_loop_lag_seconds",
            "How late the event loop came back to a timer: everybody waits for so long",
            buckets=_LAGS,
            registry=registry,
        )
        self._refused = Counter(
            "penstock_overload_refusals", "Requests refused because this process had too much to do", registry=registry
        )
        self._round = Gauge("penstock_loop_round_seconds", "The event loop's last measured round", registry=registry)
        self._tasks = Gauge("penstock_tasks", "Tasks of the event loop", registry=registry)
        self._traces = Counter(
            "penstock_traces", "Turns whose spans left, by how that ended", ["end"], registry=registry
        )

    async def watch_loop(self) -> None:
        """For ever: look twenty times a second how late the event loop is. A timer of the loop is up to 1 ms late."""
        while True:
            due = time.monotonic() + _LOOKS_EVERY_SECONDS
            await asyncio.sleep(_LOOKS_EVERY_SECONDS)
            self._lag.observe(max(0.0, time.monotonic() - due))

    def refused(self, requests: int) -> None:
        """So many were refused because there was too much to do."""
        self._refused.inc(requests)

    def traced(self, end: str, turns: int) -> None:
        """The spans of so many turns were `sent`, `failed` to be, or were `dropped`; any thread may say so."""
        self._traces.labels(end).inc(turns)

    def watch_rounds(self, seconds: Callable[[], float]) -> None:
        """Read the length of the event loop's rounds from here."""
        self._round.set_function(seconds)

    async def page(self) -> tuple[str, bytes]:
        """Content type and text of everything in the registry.

        It is written by a thread, which takes tens of milliseconds for a hundred models, from what the loop gathered.
        """
        self._tasks.set(len(asyncio.all_tasks()))
        gathered = _Gathered()
        for family in self._registry.collect():
            gathered.families.append(family)
            await asyncio.sleep(0)
        return CONTENT_TYPE_LATEST, await asyncio.to_thread(generate_latest, gathered)


class _Gathered(Collector):
    def __init__(self) -> None:
        self.families: list[Metric] = []

    def collect(self) -> list[Metric]:
        return self.families


class Spread:
    """Values counted by bucket, and their sum."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        """Count one."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def buckets(self) -> list[tuple[str, float]]:
        """How many were at most each bound, as Prometheus writes bounds."""
        bounds = (*(str(float(bound)) for bound in self.bounds), "+Inf")
        return list(zip(bounds, accumulate(self.counts), strict=True))


class _Model:
    """What was counted of one model."""

    __slots__ = ("answer", "cost", "latency", "statuses", "tokens", "upstream")

    def __init__(self) -> None:
        self.statuses: dict[int, int] = {}
        self.tokens: dict[Component, int] = {}
        self.latency, self.answer, self.upstream = Spread(_SECONDS), Spread(_SECONDS), Spread(_SECONDS)
        self.cost = Spread(_DOLLARS)


class TurnMetrics(Collector):
    """What the turns of this process came to."""

    def __init__(self) -> None:
        self._models: dict[str, _Model] = {}
        self._refusals: dict[str, int] = {}

    def turn(
        self, trace: Trace, status: int, seconds: float, catalogue: Catalogue, *, failure: PlatformError | None = None
    ) -> None:
        """Count one ended turn. A name that nobody declared counts as `unknown`, so callers cannot make labels."""
        turn = trace.turn
        if turn is not None and turn.target is not None:
            name = turn.target.name
        else:
            requested = str(trace.facts.get("requested", ""))
            name = requested if catalogue.knows(requested) else "unknown"
        model = self._model(name)
        model.statuses[status] = model.statuses.get(status, 0) + 1
        model.latency.add(seconds)
        if failure is not None:
            code = type(failure).code  # not the provider's own, which it may have made up
            self._refusals[code] = self._refusals.get(code, 0) + 1
        if turn is None or not turn.attempts:
            return
        model.cost.add(turn.cost_nano_usd / NANO_PER_USD)
        if trace.answered is not None:
            model.answer.add(trace.answered - trace.started)
        for attempt in turn.attempts:
            asked = self._model(attempt.target.name)
            asked.upstream.add(attempt.ended - attempt.began)
            if attempt.usage is not None:
                for part, tokens in attempt.usage.tokens.items():
                    asked.tokens[part] = asked.tokens.get(part, 0) + tokens

    def collect(self) -> Iterator[Metric]:
        """Everything as of now."""
        requests = CounterMetricFamily(
            "ai_requests", "Turns ended, by HTTP status and model", labels=["status", "model"]
        )
        tokens = CounterMetricFamily(
            "penstock_tokens", "Tokens as providers reported them", labels=["model", "component"]
        )
        for name, model in self._models.items():
            for status, count in model.statuses.items():
                requests.add_metric([str(status), name], count)
            for part, count in model.tokens.items():
                tokens.add_metric([name, part], count)
        yield from (requests, tokens)
        yield self._spread("ai_latency_seconds", "First byte in to last byte out", "model", lambda of: of.latency)
        yield self._spread(
            "penstock_answer_seconds", "First byte in to first content out", "model", lambda of: of.answer
        )
        yield self._spread("penstock_turn_cost_dollars", "What a turn cost", "model", lambda of: of.cost)
        yield self._spread(
            "penstock_upstream_seconds", "One attempt, from its hold to its end", "target", lambda of: of.upstream
        )
        refusals = CounterMetricFamily("penstock_refusals", "Turns that ended with an error, by code", labels=["code"])
        for code, count in self._refusals.items():
            refusals.add_metric([code], count)
        yield refusals

    def _spread(self, name: str, told: str, label: str, of: Callable[[_Model], Spread]) -> HistogramMetricFamily:
        family = HistogramMetricFamily(name, told, labels=[label])
        for model, counted in self._models.items():
            spread = of(counted)
            if any(spread.counts):
                family.add_metric([model], spread.buckets(), spread.sum)
        return family

    def _model(self, name: str) -> _Model:
        model = self._models.get(name)
        if model is None:
            model = self._models[name] = _Model()
        return model
