"""What limits show to operators. Nothing here is named by callers."""

from prometheus_client import CollectorRegistry, Counter, Gauge


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
