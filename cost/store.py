"""What the thinking needs from storage, and nothing more. sql.py is the store for real."""

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple, Protocol

from cost.budgets import Budget, Period
from cost.entries import AttemptKey, Correction, Entry
from kernel import AuditRecord, AuditSink, ChainHead


class Balance(NamedTuple):
    """What a period's budget has posted, and what open holds have set aside of it."""

    posted_nano_usd: int = 0
    held_nano_usd: int = 0


class PeriodsMissing(Exception):
    """Some periods are not open yet; nothing was written. They are opened outside the transaction."""

    def __init__(self, budgets: Mapping[Period, Budget]) -> None:
        super().__init__(f"{len(budgets)} periods are not open yet")
        self.budgets = budgets


class Released(NamedTuple):
    """Open holds that were taken out, with the periods that hold them.

    at: the instant that decides periods: the database's where it is shared, else the clock's.
    """

    at: datetime
    periods: dict[AttemptKey, tuple[Period, ...]]


def require_open(
    wanted: Mapping[Period, Budget | None], rows: Mapping[Period, tuple[Balance, bool]]
) -> dict[Period, Balance]:
    """The balances of the rows found. Raises PeriodsMissing where a period with a budget has none that is counted.

    A closing needs no more than the row.
    """
    missing = {
        period: budget
        for period, budget in wanted.items()
        if budget is not None and not (period in rows and rows[period][1])
    }
    if missing:
        raise PeriodsMissing(missing)
    return {period: balance for period, (balance, _) in rows.items()}


class BooksTransaction(Protocol):
    """One open transaction on the books."""

    async def release(self, keys: Collection[AttemptKey], doubtful: Collection[AttemptKey] = ()) -> Released:
        """Take these holds out of the open ones, and say what time it is. It comes first, whatever there is to release.

        Nobody else can close them then. It comes before `lock`, because what it returns is to be locked too.
        doubtful: those of them whose commit was given up and may be under way still: it is waited for.
        """
        ...

    async def lock(self, wanted: Mapping[Period, Budget | None]) -> dict[Period, Balance]:
        """The rows of these periods, locked in id order. Raises PeriodsMissing where one with a budget is not open."""
        ...

    async def write(self, entries: Sequence[Entry], changes: Mapping[Period, Balance]) -> None:
        """Add the entries, open the holds among them, and add the changes to the periods' balances."""
        ...

    async def record(self, audit: AuditSink, records: Sequence[AuditRecord]) -> ChainHead:
        """Append to the trail within this transaction."""
        ...


class LedgerStore(Protocol):
    """The ledger's rows."""

    def transaction(self) -> AbstractAsyncContextManager[BooksTransaction]:
        """A transaction that commits on a clean exit and is rolled back on any other."""
        ...

    def committed(self, entries: Sequence[Entry], seconds: float) -> None:
        """These entries became durable in one transaction that took so long."""
        ...

    async def close(self) -> None:
        """Give back what transactions used."""
        ...

    async def open_periods(self, budgets: Mapping[Period, Budget]) -> None:
        """Open periods with what their scope has spent and holds open in them. Idempotent; may take long."""
        ...

    async def beat(self, process: str) -> None:
        """Take or renew the lease of a process."""
        ...

    async def end_lease(self, process: str) -> None:
        """The process has nothing open any more. Raises StoreUnavailable."""
        ...

    async def orphans(self, process: str, lease_seconds: float | None, limit: int) -> list[Entry]:
        """Hold entries that are open though their process has no lease; None: though it is not `process`.

        Raises StoreUnavailable.
        """
        ...

    async def entries_of(self, turn_ids: Collection[str]) -> list[Entry]:
        """All entries of these turns, by turn, attempt and step. Raises StoreUnavailable."""
        ...


@dataclass(frozen=True, slots=True)
class Question:
    """What a report of spend is asked for: grouped by columns, held in [since, until), where columns equal values."""

    by: tuple[str, ...]
    since: datetime
    until: datetime
    where: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class SpendRow:
    """One group of a report. `estimated_nano_usd` is the part of the cost that no provider has confirmed."""

    group: Mapping[str, str | None]
    calls: int
    input_tokens: int
    output_tokens: int
    cost_nano_usd: int
    estimated_nano_usd: int


class SpendStore(Protocol):
    """The books, read."""

    async def spent(self, question: Question, rows_max: int) -> list[SpendRow]:
        """Posted and corrected money by group, dearest first. Raises StoreUnavailable."""
        ...

    async def balances(self, budgets: Mapping[Period, Budget]) -> dict[Period, Balance]:
        """Balances of these periods, also of those that nobody has opened yet. Raises StoreUnavailable."""
        ...


class CorrectionStore(Protocol):
    """The books, corrected by invoices."""

    async def entries_of(self, turn_ids: Collection[str]) -> list[Entry]:
        """All entries of these turns, by turn, attempt and step. Raises StoreUnavailable."""
        ...

    async def by_provider_id(
        self, provider_request_ids: Collection[str], provider: str | None
    ) -> dict[str, set[AttemptKey]]:
        """The provider's attempts (None: anybody's) that these ids of its own belong to. Raises StoreUnavailable."""
        ...

    async def unconfirmed(self, provider: str, since: datetime, until: datetime) -> list[AttemptKey]:
        """The provider's attempts held in [since, until) that stand estimated, uncorrected. Raises StoreUnavailable."""
        ...

    async def correct(self, corrections: Sequence[Correction]) -> set[AttemptKey]:
        """Add those corrections whose step is free, and move the periods that count them; returns what was added."""
        ...
