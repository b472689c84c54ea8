"""A budget and its periods in the calendar of its own time zone. Which budgets are in force, book.Book says."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Literal, NamedTuple
from zoneinfo import ZoneInfo

Scope = Literal["department", "app", "key"]


class Period(NamedTuple):
    """One budget, by its key, in one of its periods."""

    budget_id: str
    key: str


@dataclass(frozen=True, slots=True)
class Budget:
    """How much may be spent within a scope in a calendar month or day of `timezone`.

    id: its document's name. since: the version with which it began to count what it counts. key: `name@since`: another
    one wherever it was withdrawn in between, or came to count something else.
    """

    id: str
    scope: Scope
    of: str
    period: Literal["month", "day"]
    limit_nano_usd: int
    hard: bool = True
    timezone: str = "UTC"
    alert_at_percent: tuple[int, ...] = ()
    since: int = 1
    key: str = field(init=False)

    def __post_init__(self) -> None:
        """Write the key once; every hold asks for it."""
        object.__setattr__(self, "key", f"{self.id}@{self.since}")

    def period_key(self, at: datetime) -> str:
        """The period that `at` falls in: `2026-11`, or `2026-11-21` for a daily budget."""
        local = at.astimezone(ZoneInfo(self.timezone))
        return f"{local:%Y-%m}" if self.period == "month" else f"{local:%Y-%m-%d}"

    def period_bounds(self, key: str) -> tuple[datetime, datetime]:
        """First instant of the period and first instant after it, in UTC."""
        first = datetime.fromisoformat(f"{key}-01" if self.period == "month" else key)
        following = first + timedelta(days=32 if self.period == "month" else 1)
        if self.period == "month":
            following = following.replace(day=1)
        zone = ZoneInfo(self.timezone)
        return first.replace(tzinfo=zone).astimezone(UTC), following.replace(tzinfo=zone).astimezone(UTC)

    def at(self, at: datetime) -> Period:
        """The budget in the period that `at` falls in."""
        return Period(self.key, self.period_key(at))
