"""What was spent, by whom and on what, and how the budgets stand. It only reads."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from cost.book import Book
from cost.budgets import Budget
from cost.errors import InvalidReport
from cost.store import Question, SpendRow, SpendStore
from cost.windows import require_window
from kernel import Clock

COLUMNS = ("department", "app", "key", "user", "model", "provider", "use_case", "day", "month")

_ROWS_MAX = 10_000


@dataclass(frozen=True, slots=True)
class BudgetState:
    """A budget in its present period. alerts: the percentages of `alert_at_percent` that were reached."""

    budget: Budget
    period: str
    posted_nano_usd: int
    held_nano_usd: int
    resets_at: datetime

    @property
    def remaining_nano_usd(self) -> int:
        """What neither was spent nor is held; below zero only for soft budgets and after corrections."""
        return self.budget.limit_nano_usd - self.posted_nano_usd - self.held_nano_usd

    @property
    def percent(self) -> int:
        """How much of the limit was spent, rounded down; a limit of nothing is always spent."""
        limit = self.budget.limit_nano_usd
        return self.posted_nano_usd * 100 // limit if limit else 100

    @property
    def alerts(self) -> tuple[int, ...]:
        """Which of the budget's alerts are due."""
        return tuple(percent for percent in self.budget.alert_at_percent if percent <= self.percent)


class Spend:
    """Reports over the books. Days and months are those of the hold, in UTC."""

    def __init__(self, store: SpendStore, *, book: Callable[[], Book], clock: Clock) -> None:
        self._store = store
        self._book = book
        self._clock = clock

    async def report(
        self, by: Sequence[str], *, since: datetime, until: datetime, where: Mapping[str, str] | None = None
    ) -> list[SpendRow]:
        """Posted and corrected money by group, dearest first, at most 10,000 rows.

        since, until: from the first, up to and without the second. Raises InvalidReport, StoreUnavailable.
        """
        unknown = sorted({*by, *(where or {})} - set(COLUMNS))
        if unknown:
            raise InvalidReport(f"There is no column `{unknown[0][:64]}`; take {', '.join(COLUMNS)}.", param="by")
        require_window(since, until)
        return await self._store.spent(Question(tuple(dict.fromkeys(by)), since, until, where or {}), _ROWS_MAX)

    async def budget_states(self, at: datetime | None = None) -> list[BudgetState]:
        """All budgets in force, by id, in the period of `at` (None: now). Raises StoreUnavailable."""
        instant = at or self._clock.now()
        periods = {budget.at(instant): budget for budget in self._book().every_budget()}
        balances = await self._store.balances(periods)
        return [
            BudgetState(budget, period.key, *balances[period], budget.period_bounds(period.key)[1])
            for period, budget in periods.items()
        ]
