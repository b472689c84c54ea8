"""The ledger's counters and gauges. Labels hold names that operators declared, nothing that callers can make up."""

from collections.abc import Sequence
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from cost.entries import Entry
from kernel import NANO_PER_USD

_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0)


class Watched(Protocol):
    """What the gauges look at whenever they are read."""

    @property
    def open_holds(self) -> int:
        """Holds of this process without a durable closing."""
        ...

    @property
    def waiting(self) -> int:
        """Steps that wait to be committed."""
        ...


class LedgerMetrics:
    """What the ledger shows to operators, on the registry it is given."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._dollars = Counter("ai_cost_dollars", "Money posted, in US dollars.", ["department"], registry=registry)
        self._open = Gauge("penstock_holds_open", "Holds of this process that are not closed.", registry=registry)
        self._queue = Gauge("penstock_ledger_queue", "Steps that wait to be committed.", registry=registry)
        self._seconds = Histogram(
            "penstock_ledger_commit_seconds", "One transaction of the ledger.", buckets=_BUCKETS, registry=registry
        )
        self._by_department: dict[str | None, Counter] = {}

    def watch(self, ledger: Watched) -> None:
        """Read the gauges from this ledger."""
        self._open.set_function(lambda: ledger.open_holds)
        self._queue.set_function(lambda: ledger.waiting)

    def committed(self, entries: Sequence[Entry], seconds: float) -> None:
        """These entries are durable."""
        self._seconds.observe(seconds)
        for entry in entries:
            if entry.kind == "post" and entry.amount_nano_usd:
                self._counter(entry.department).inc(entry.amount_nano_usd / NANO_PER_USD)

    def _counter(self, department: str | None) -> Counter:
        counter = self._by_department.get(department)
        if counter is None:
            counter = self._by_department[department] = self._dollars.labels(department or "none")
        return counter
