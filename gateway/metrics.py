"""The counters of the edge, under the names the mission gives them. Labels hold declared names only."""

import asyncio
import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from gateway.trace import Trace
from router import Catalogue

_LAGS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 5)
_LOOKS_EVERY_SECONDS = 0.05  # whatever holds the loop for longer is certainly seen
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """Requests by status and model, and their latency."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._requests = Counter(
            "ai_requests", "Turns ended, by HTTP status and model", ["status", "model"], registry=registry
        )
        self._latency = Histogram(
            "ai_latency_seconds", "First byte in to last byte out", ["model"], buckets=_SECONDS, registry=registry
        )
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
        tasks = Gauge("penstock_tasks", "Tasks of the event loop", registry=registry)
        tasks.set_function(lambda: len(asyncio.all_tasks()))
        # Looking a child up by its labels costs more than counting.
        self._children: dict[tuple[int, str], tuple[Counter, Histogram]] = {}

    def turn(self, trace: Trace, status: int, seconds: float, catalogue: Catalogue) -> None:
        """Count one ended turn. A name that nobody declared counts as `unknown`, so callers cannot make labels."""
        turn = trace.turn
        if turn is not None and turn.target is not None:
            model = turn.target.name
        else:
            requested = str(trace.facts.get("requested", ""))
            model = requested if catalogue.knows(requested) else "unknown"
        child = self._children.get((status, model))
        if child is None:
            child = (self._requests.labels(str(status), model), self._latency.labels(model))
            self._children[status, model] = child
        requests, latency = child
        requests.inc()
        latency.observe(seconds)

    async def watch_loop(self) -> None:
        """For ever: look twenty times a second how late the event loop is. A timer of the loop is up to 1 ms late."""
        while True:
            due = time.monotonic() + _LOOKS_EVERY_SECONDS
            await asyncio.sleep(_LOOKS_EVERY_SECONDS)
            self._lag.observe(max(0.0, time.monotonic() - due))

    def refused(self, requests: int) -> None:
        """So many were refused because there was too much to do."""
        self._refused.inc(requests)

    def watch_rounds(self, seconds: Callable[[], float]) -> None:
        """Read the length of the event loop's rounds from here."""
        self._round.set_function(seconds)

    def page(self) -> tuple[str, bytes]:
        """Content type and text of everything in the registry."""
        return CONTENT_TYPE_LATEST, generate_latest(self._registry)
