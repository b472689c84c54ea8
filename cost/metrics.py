"""What the ledger and the budgets show. Labels hold names that operators declared, nothing that callers can make up."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, UntypedMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from cost.book import Book
from cost.budgets import Period
from cost.entries import Entry
from cost.spend import BudgetState
from cost.store import SpendStore
from kernel import NANO_PER_USD, Clock, StoreUnavailable

_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0)
_LOOK_SECONDS = 30.0
_BUDGETS_MAX = 500


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

    @property
    def is_writing(self) -> bool:
        """Whether the last thing that was tried could be written."""
        ...


class LedgerMetrics(Collector):
    """What the ledger shows to operators, on the registry it is given.

    moved: periods that some entry of this process has moved; `BudgetMetrics` forgets those that are over.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.moved: set[Period] = set()
        self._posted_nano_usd: dict[str, int] = {}
        registry.register(self)
        self._open = Gauge("penstock_holds_open", "Holds of this process that are not closed.", registry=registry)
        self._queue = Gauge("penstock_ledger_queue", "Steps that wait to be committed.", registry=registry)
        self._writing = Gauge(
            "penstock_ledger_writing", "1: books and trail can be written; 0: turns are refused.", registry=registry
        )
        self._seconds = Histogram(
            "penstock_ledger_commit_seconds", "One transaction of the ledger.", buckets=_BUCKETS, registry=registry
        )
        self._swept = Counter("penstock_holds_swept", "Holds that a dead process left, posted here.", registry=registry)
        self._estimated = Counter(
            "penstock_estimates", "Attempts posted without the provider's word.", ["target"], registry=registry
        )

    def watch(self, ledger: Watched) -> None:
        """Read the gauges from this ledger."""
        self._open.set_function(lambda: ledger.open_holds)
        self._queue.set_function(lambda: ledger.waiting)
        self._writing.set_function(lambda: ledger.is_writing)

    def committed(self, entries: Sequence[Entry], seconds: float) -> None:
        """These entries are durable."""
        self._seconds.observe(seconds)
        posted = self._posted_nano_usd
        for entry in entries:
            self.moved.update(entry.periods)
            if entry.kind == "post":
                department = entry.department or "none"
                if entry.amount_nano_usd:
                    posted[department] = posted.get(department, 0) + entry.amount_nano_usd
                if entry.estimated:
                    self._estimated.labels(entry.target).inc()
                if entry.reason == "swept":
                    self._swept.inc()

    def collect(self) -> Iterator[Metric]:
        """Money by department: as Prometheus names counters, and without its suffix."""
        dollars = CounterMetricFamily("ai_cost_dollars", "Money posted, in US dollars.", labels=["department"])
        bare = UntypedMetricFamily("ai_cost_dollars", "The same as ai_cost_dollars_total.", labels=["department"])
        for department, nano_usd in self._posted_nano_usd.items():
            dollars.add_metric([department], nano_usd / NANO_PER_USD)
            bare.add_metric([department], nano_usd / NANO_PER_USD)
        yield from (dollars, bare)


class BudgetMetrics(Collector):
    """How the departments' budgets stand in their present period: those that this process has moved, at most 500.

    Those of apps and keys are too many for labels; one that nobody moved would have to be summed from its entries.
    Where the store cannot say, nothing is shown.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        store: SpendStore,
        *,
        moved: set[Period],
        book: Callable[[], Book],
        clock: Clock,
    ) -> None:
        self._store = store
        self._moved = moved
        self._book = book
        self._clock = clock
        self._states: tuple[BudgetState, ...] = ()
        registry.register(self)

    async def watch(self, seconds: float = _LOOK_SECONDS) -> None:
        """For ever: ask how they stand."""
        while True:
            try:
                await self.look()
            except StoreUnavailable:
                self._states = ()
            await asyncio.sleep(seconds)

    async def look(self) -> None:
        """Ask how they stand. Raises StoreUnavailable."""
        now = self._clock.now()
        present = {budget.at(now): budget for budget in self._book().every_budget() if budget.scope == "department"}
        self._moved.intersection_update(present)
        periods = {period: present[period] for period in sorted(self._moved)[:_BUDGETS_MAX]}
        balances = await self._store.balances(periods) if periods else {}
        self._states = tuple(
            BudgetState(budget, period.key, *balances[period], budget.period_bounds(period.key)[1])
            for period, budget in periods.items()
        )

    def collect(self) -> Iterator[Metric]:
        """The gauges as of the last look."""
        limit = _gauge("penstock_budget_limit_dollars", "What a department's budget allows in its period.", "hard")
        posted = _gauge("penstock_budget_posted_dollars", "What was spent of it.")
        held = _gauge("penstock_budget_held_dollars", "What open turns hold of it.")
        resets = _gauge("penstock_budget_resets_timestamp_seconds", "When its next period begins.")
        for state in self._states:
            budget = state.budget
            limit.add_metric([budget.id, "yes" if budget.hard else "no"], budget.limit_nano_usd / NANO_PER_USD)
            posted.add_metric([budget.id], state.posted_nano_usd / NANO_PER_USD)
            held.add_metric([budget.id], state.held_nano_usd / NANO_PER_USD)
            resets.add_metric([budget.id], state.resets_at.timestamp())
        yield from (limit, posted, held, resets)


def _gauge(name: str, told: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, told, labels=["budget", *labels])
