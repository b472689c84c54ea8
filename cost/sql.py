"""The ledger's store for real, on SQLite and PostgreSQL alike: what turns wait for. It decides nothing.

Losing the database means refusing. What reports and invoices ask is in sql_reports.py, what rows hold in sql_rows.py.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import asyncpg
from sqlalchemy import (
    ColumnElement,
    Insert,
    Row,
    Select,
    and_,
    bindparam,
    delete,
    exists,
    func,
    insert,
    select,
    text,
    tuple_,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from cost.budgets import Budget, Period
from cost.entries import Entry
from cost.metrics import LedgerMetrics
from cost.sql_postgres import PostgresBooks, PostgresLine
from cost.sql_rows import as_json, padded, read_entry, read_periods
from cost.sql_sqlite import SqliteBooks, SqliteLine
from cost.store import Balance
from cost.tables import BudgetPeriodRow, EntryRow, OpenHoldRow, ProcessRow
from kernel import Clock, StoreUnavailable, SystemClock
from kernel.db import Base, reading

SPENT = ("post", "correction")
_FORGOTTEN = timedelta(hours=1)

_join = (
    update(OpenHoldRow)
    .where(OpenHoldRow.turn_id == bindparam("turn"), OpenHoldRow.attempt == bindparam("number"))
    .values(periods=bindparam("now_within"))
    .execution_options(synchronize_session=False)
)
_count = (
    update(BudgetPeriodRow)
    .where(BudgetPeriodRow.budget_id == bindparam("of"), BudgetPeriodRow.period == bindparam("within"))
    .where(~BudgetPeriodRow.is_counted)
    .values(posted_nano_usd=BudgetPeriodRow.posted_nano_usd + bindparam("before"), is_counted=True)
    .execution_options(synchronize_session=False)
)
_its_hold = and_(EntryRow.turn_id == OpenHoldRow.turn_id, EntryRow.attempt == OpenHoldRow.attempt, EntryRow.step == 0)


class SqlLedgerStore:
    """The ledger's rows on one engine. reads: the engine of those who ask about a turn, so that they delay no commit.

    timeout_seconds bounds every question and the lease; whoever commits or opens periods bounds that.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        clock: Clock | None = None,
        *,
        metrics: LedgerMetrics | None = None,
        reads: AsyncEngine | None = None,
        timeout_seconds: float = 5.0,
    ) -> None:
        self._engine = engine
        self._reader = reading(engine)
        self._asked = reading(reads or engine)
        self._clock = clock or SystemClock()
        self._metrics = metrics
        self._timeout_seconds = timeout_seconds
        path = None if engine.dialect.name == "postgresql" else engine.url.database
        self._line = PostgresLine(engine) if path is None else SqliteLine(path)

    def transaction(self) -> PostgresBooks | SqliteBooks:
        """A transaction that commits on a clean exit and is rolled back on any other; one at a time."""
        if isinstance(self._line, SqliteLine):
            return SqliteBooks(self._line, self._clock)
        return PostgresBooks(self._line)

    def committed(self, entries: Sequence[Entry], seconds: float) -> None:
        """These entries became durable in one transaction that took so long."""
        if self._metrics is not None:
            self._metrics.committed(entries, seconds)

    async def close(self) -> None:
        """Give back what transactions used."""
        await self._line.close()

    async def open_periods(self, budgets: Mapping[Period, Budget]) -> None:
        """Make rows for periods without one, and count what their scope had spent before. Idempotent.

        From the moment a period has its row, whatever is held, posted or corrected in it names it and moves the row.
        What was written before does not, and is summed afterwards, however long that takes: nobody is locked out, and
        only new holds wait until the row `is_counted`.
        """
        for period in await self._make_rows(budgets):
            async with self._reader.connect() as connection:
                spent = spent_in(budgets[period], period).where(_does_not_name(connection, period))
                before = (await connection.execute(spent)).scalar_one()
            async with self._engine.begin() as connection:
                await connection.execute(_count, {"of": period.budget_id, "within": period.key, "before": int(before)})

    async def _make_rows(self, budgets: Mapping[Period, Budget]) -> list[Period]:
        """Rows for those without one, with what is held open in them; returns all that are not counted yet."""
        async with self._engine.begin() as connection:
            # No hold may come or go meanwhile, and nobody else may open. SQLite is locked whole by now.
            await lock_holds(connection, "SHARE ROW EXCLUSIVE")
            opened_at = await _now(connection, self._clock)
            there = await period_rows(connection, budgets, locked=False)
            for period, budget in ((period, budget) for period, budget in budgets.items() if period not in there):
                holds = (await connection.execute(open_in(budget, period))).all()
                row = {
                    "budget_id": period.budget_id,
                    "period": period.key,
                    "posted_nano_usd": 0,
                    "held_nano_usd": sum(hold.amount_nano_usd for hold in holds),
                    "opened_at": opened_at,
                    "is_counted": False,
                }
                await connection.execute(insert(BudgetPeriodRow).values(row))
                if holds:
                    await connection.execute(_join, [_joined(hold, period) for hold in holds])
        return [period for period in budgets if not (period in there and there[period].is_counted)]

    async def beat(self, process: str) -> None:
        """Take or renew the lease of a process. A lease that ran out long ago is removed: it says what none would."""
        async with self._engine.begin() as connection:
            now = await _now(connection, self._clock)
            lease = {"id": process, "kind": "ledger", "started_at": now, "heartbeat_at": now}
            await connection.execute(insert_missing(connection, ProcessRow).values(lease))
            await connection.execute(update(ProcessRow).where(ProcessRow.id == process).values(heartbeat_at=now))
            await connection.execute(delete(ProcessRow).where(ProcessRow.heartbeat_at < now - _FORGOTTEN))

    async def end_lease(self, process: str) -> None:
        """The process has nothing open any more. Raises StoreUnavailable."""
        async with _answering(self._timeout_seconds), self._engine.begin() as connection:
            await connection.execute(delete(ProcessRow).where(ProcessRow.id == process))

    async def orphans(self, process: str, lease_seconds: float | None, limit: int) -> list[Entry]:
        """Hold entries that are open though their process has no lease; None: though it is not `process`.

        Raises StoreUnavailable.
        """
        async with _answering(self._timeout_seconds), self._reader.connect() as connection:
            lost: ColumnElement[bool] = OpenHoldRow.process != process
            if lease_seconds is not None:
                since = await _now(connection, self._clock) - timedelta(seconds=lease_seconds)
                leased = select(ProcessRow.id).where(ProcessRow.heartbeat_at >= since)
                lost = and_(lost, OpenHoldRow.process.not_in(leased))
            # Not a join: SQLite would read the whole ledger to look for each of its entries among the few open holds.
            holds = select(OpenHoldRow.turn_id, OpenHoldRow.attempt).where(lost).limit(limit)
            its_own = tuple_(EntryRow.turn_id, EntryRow.attempt).in_(holds)
            found = select(EntryRow.__table__).where(its_own, EntryRow.step == 0)
            return [read_entry(row) for row in await connection.execute(found)]

    async def entries_of(self, turn_ids: Collection[str]) -> list[Entry]:
        """All entries of these turns, by turn, attempt and step. Raises StoreUnavailable."""
        async with _answering(self._timeout_seconds):
            return await entries_of(self._asked, turn_ids)


async def entries_of(reader: AsyncEngine, turn_ids: Collection[str]) -> list[Entry]:
    """All entries of these turns, by turn, attempt and step."""
    if not turn_ids:
        return []
    found = select(EntryRow.__table__).where(EntryRow.turn_id.in_(padded(turn_ids)))
    ordered = found.order_by(EntryRow.turn_id, EntryRow.attempt, EntryRow.step)
    async with reader.connect() as connection:
        return [read_entry(row) for row in await connection.execute(ordered)]


async def _now(connection: AsyncConnection, clock: Clock) -> datetime:
    if connection.dialect.name != "postgresql":
        return clock.now()
    instant: datetime = (await connection.execute(select(func.clock_timestamp()))).scalar_one()
    return instant


class PeriodRow(NamedTuple):
    """A period's row: what it holds, and whether what was spent before it was made is part of that."""

    balance: Balance
    is_counted: bool


async def period_rows(
    connection: AsyncConnection, periods: Collection[Period], *, locked: bool
) -> dict[Period, PeriodRow]:
    """The rows of these periods, if locked in id order."""
    if not periods:
        return {}
    row = BudgetPeriodRow
    found = (
        select(row.budget_id, row.period, row.posted_nano_usd, row.held_nano_usd, row.is_counted)
        .where(tuple_(row.budget_id, row.period).in_(padded(periods)))
        .order_by(row.budget_id, row.period)
    )
    rows = await connection.execute(found.with_for_update() if locked else found)
    return {
        Period(budget_id, key): PeriodRow(Balance(posted, held), is_counted)
        for budget_id, key, posted, held, is_counted in rows
    }


async def lock_holds(connection: AsyncConnection, mode: str) -> None:
    """Lock the table of open holds in this mode of PostgreSQL's until the transaction's end."""
    if connection.dialect.name == "postgresql":
        await connection.execute(text(f"LOCK TABLE {OpenHoldRow.__tablename__} IN {mode} MODE"))


def spent_in(budget: Budget, period: Period) -> Select[int]:
    """What the budget's scope has posted in the period, as its entries say."""
    spent = func.coalesce(func.sum(EntryRow.amount_nano_usd), 0)
    return select(spent).where(_counts(budget, period), EntryRow.kind.in_(SPENT))


def open_in(budget: Budget, period: Period) -> Select[str, int, int, str]:
    """The open holds of the budget's scope in the period."""
    row = OpenHoldRow
    # Not a join: SQLite would begin with the entries of the whole period, and hold its lock for as long.
    counted = exists().where(_its_hold, _counts(budget, period))
    return select(row.turn_id, row.attempt, row.amount_nano_usd, row.periods).where(counted)


def _counts(budget: Budget, period: Period) -> ColumnElement[bool]:
    """Whether an entry is of the budget's scope and of the period."""
    since, until = budget.period_bounds(period.key)
    column = {"department": EntryRow.department, "app": EntryRow.app, "key": EntryRow.key_id}[budget.scope]
    return and_(EntryRow.held_at >= since, EntryRow.held_at < until, column == budget.of)


def _does_not_name(connection: AsyncConnection, period: Period) -> ColumnElement[bool]:
    position = func.strpos if connection.dialect.name == "postgresql" else func.instr
    return position(EntryRow.budgets, as_json(period)) == 0


def _joined(hold: Row[str, int, int, str], period: Period) -> dict[str, Any]:
    within = as_json((*read_periods(hold.periods), period))
    return {"turn": hold.turn_id, "number": hold.attempt, "now_within": within}


def insert_missing(connection: AsyncConnection, table: type[Base]) -> Insert:
    """An INSERT that passes over rows whose key is taken."""
    make = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    return make(table).on_conflict_do_nothing()


@contextlib.asynccontextmanager
async def _answering(seconds: float) -> AsyncIterator[None]:
    with refusing():
        async with asyncio.timeout(seconds):
            yield


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    """Raises StoreUnavailable for whatever goes wrong around the store."""
    try:
        yield
    except (SQLAlchemyError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as lost:
        raise StoreUnavailable("The books cannot be read or written; try again in a moment.") from lost
