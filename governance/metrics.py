"""What limits and the trail show to operators. Nothing here is named by callers."""

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector


class LimitMetrics:
    """Whether limits are counted for all processes together, and what could not be told to Redis."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._shared = Gauge(
            "penstock_limits_shared", "1: limits are counted in Redis; 0: by this process's share.", registry=registry
        )
        self._dropped = Counter(
            "penstock_limits_dropped", "Settlements and releases that Redis was never told.", registry=registry
        )

    def shared(self, *, now: bool) -> None:
        """Who counts from now on: Redis, or this process alone."""
        self._shared.set(int(now))

    def dropped(self) -> None:
        """One step had no room in the queue; Redis goes on counting what it would have taken back."""
        self._dropped.inc()


class TrailMetrics(Collector):
    """How many records of turns this process has put in the trail, on the registry it is given."""

    def __init__(self, registry: CollectorRegistry, records: Callable[[], int]) -> None:
        self._records = records
        registry.register(self)

    def collect(self) -> Iterator[CounterMetricFamily]:
        """The counter as of now."""
        counted = CounterMetricFamily("penstock_audit_records", "Records of turns that are durable in the trail.")
        counted.add_metric((), self._records())
        yield counted
