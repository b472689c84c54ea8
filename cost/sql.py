"""The ledger's store for real, on SQLite and PostgreSQL alike. The only file here with SQL; it decides nothing.

Losing the database means refusing. Reports read what was durable when they began and wait for no writer.
"""

import contextlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Self, TypeVar

import asyncpg
import msgspec
from sqlalchemy import (
    ColumnElement,
    Insert,
    Row,
    Select,
    and_,
    bindparam,
    case,
    delete,
    exists,
    false,
    func,
    insert,
    literal,
    select,
    text,
    tuple_,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.orm import aliased

from cost.budgets import Budget, Period
from cost.entries import AttemptKey, Correction, Entry
from cost.metrics import LedgerMetrics
from cost.store import Balance, PeriodsMissing, Question, SpendRow
from cost.tables import BudgetPeriodRow, EntryRow, OpenHoldRow, ProcessRow
from kernel import AuditRecord, AuditSink, ChainHead, Clock, Component, StoreUnavailable, SystemClock
from kernel.db import Base, as_arrays, insert_from_arrays, reading

_TEXT_MAX = 300
_JSON_FIELDS = ("periods", "tokens", "cost", "rates")
_PLAIN_FIELDS = tuple(field.name for field in fields(Entry) if field.name not in _JSON_FIELDS)
_SPENT = ("post", "correction")

Item = TypeVar("Item")

_move = (
    update(BudgetPeriodRow)
    .where(BudgetPeriodRow.budget_id == bindparam("of"), BudgetPeriodRow.period == bindparam("within"))
    .values(
        posted_nano_usd=BudgetPeriodRow.posted_nano_usd + bindparam("posted"),
        held_nano_usd=BudgetPeriodRow.held_nano_usd + bindparam("held"),
    )
    .execution_options(synchronize_session=False)
)
_join = (
    update(OpenHoldRow)
    .where(OpenHoldRow.turn_id == bindparam("turn"), OpenHoldRow.attempt == bindparam("number"))
    .values(periods=bindparam("now_within"))
    .execution_options(synchronize_session=False)
)
_its_hold = and_(EntryRow.turn_id == OpenHoldRow.turn_id, EntryRow.attempt == OpenHoldRow.attempt, EntryRow.step == 0)


class SqlBooks:
    """One transaction on the books."""

    def __init__(self, engine: AsyncEngine, clock: Clock, metrics: LedgerMetrics | None) -> None:
        self._engine = engine
        self._clock = clock
        self._metrics = metrics
        self._written: Sequence[Entry] = ()
        self._began = clock.monotonic()

    async def __aenter__(self) -> Self:
        self._connection: AsyncConnection = await self._engine.connect()
        try:
            await self._connection.begin()
        except BaseException:
            await self._abandon()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                await self._connection.commit()
            elif isinstance(error, Exception):
                await self._connection.rollback()
        except BaseException:
            await self._abandon()
            raise
        if isinstance(error, Exception | None):
            await self._connection.close()
        else:
            await self._abandon()
        if error is None and self._metrics is not None:
            self._metrics.committed(self._written, self._clock.monotonic() - self._began)

    async def _abandon(self) -> None:
        # Out of time or broken: a connection that does not answer would not answer a rollback either.
        await self._connection.invalidate()
        await self._connection.close()

    async def now(self) -> datetime:
        """The instant that decides periods: the database's where many processes share it, else the clock's.

        It is asked first: whoever opens a period waits for those who have asked, and lets nobody else ask.
        """
        return await _now(self._connection, self._clock, and_lock_holds=True)

    async def release(self, keys: Collection[AttemptKey]) -> dict[AttemptKey, tuple[Period, ...]]:
        """Delete these open holds; returns those that were there, with the periods that hold them.

        Whoever deletes the row closes the attempt.
        """
        row = OpenHoldRow
        gone = delete(row).where(tuple_(row.turn_id, row.attempt).in_(_padded(keys)))
        found = await self._connection.execute(gone.returning(row.turn_id, row.attempt, row.periods))
        return {AttemptKey(turn_id, attempt): _periods(periods) for turn_id, attempt, periods in found}

    async def lock(self, wanted: Mapping[Period, Budget | None]) -> dict[Period, Balance]:
        """The rows of these periods, locked in id order. Raises PeriodsMissing where one with a budget has none."""
        rows = await _balances(self._connection, wanted, locked=True)
        missing = {period: budget for period, budget in wanted.items() if budget is not None and period not in rows}
        if missing:
            raise PeriodsMissing(missing)
        return rows

    async def write(self, entries: Sequence[Entry], changes: Mapping[Period, Balance]) -> None:
        """Add the entries, open the holds among them, and add the changes to the periods' balances."""
        await _shift(self._connection, changes)
        if entries:
            await self._add(EntryRow, [_row(entry) for entry in entries])
        if held := [_open_hold(entry) for entry in entries if entry.kind == "hold"]:
            await self._add(OpenHoldRow, held)
        self._written = entries

    async def _add(self, table: type[Base], rows: list[dict[str, Any]]) -> None:
        if self._connection.dialect.name == "postgresql":
            await self._connection.execute(insert_from_arrays(table), as_arrays(table, rows))
        else:
            await self._connection.execute(insert(table), rows)

    async def record(self, audit: AuditSink, records: Sequence[AuditRecord]) -> ChainHead:
        """Append to the trail within this transaction."""
        return await audit.append(self._connection, records)


class SqlLedgerStore:
    """The ledger's rows on one engine; also what reports and corrections read and write."""

    def __init__(
        self, engine: AsyncEngine, clock: Clock | None = None, *, metrics: LedgerMetrics | None = None
    ) -> None:
        self._engine = engine
        self._reader = reading(engine)
        self._clock = clock or SystemClock()
        self._metrics = metrics

    def transaction(self) -> SqlBooks:
        """A transaction that commits on a clean exit and is rolled back on any other."""
        return SqlBooks(self._engine, self._clock, self._metrics)

    async def open_periods(self, budgets: Mapping[Period, Budget]) -> None:
        """Make rows for periods without one, with what their scope has spent and holds open in them. Idempotent."""
        async with self._engine.begin() as connection:
            # No hold may come or go while they are counted, and nobody else may open. SQLite is locked whole by now.
            await _lock_holds(connection, "SHARE ROW EXCLUSIVE")
            opened_at = await _now(connection, self._clock)
            there = await _balances(connection, budgets, locked=False)
            for period, budget in ((period, budget) for period, budget in budgets.items() if period not in there):
                posted = (await connection.execute(_spent_in(budget, period))).scalar_one()
                holds = (await connection.execute(_open_in(budget, period))).all()
                row = {
                    "budget_id": period.budget_id,
                    "period": period.key,
                    "posted_nano_usd": int(posted),
                    "held_nano_usd": sum(hold.amount_nano_usd for hold in holds),
                    "opened_at": opened_at,
                }
                await connection.execute(insert(BudgetPeriodRow).values(row))
                if holds:
                    await connection.execute(_join, [_joined(hold, period) for hold in holds])

    async def beat(self, process: str) -> None:
        """Take or renew the lease of a process."""
        async with self._engine.begin() as connection:
            now = await _now(connection, self._clock)
            lease = {"id": process, "kind": "ledger", "started_at": now, "heartbeat_at": now}
            await connection.execute(_insert_missing(connection, ProcessRow).values(lease))
            await connection.execute(update(ProcessRow).where(ProcessRow.id == process).values(heartbeat_at=now))

    async def end_lease(self, process: str) -> None:
        """The process has nothing open any more."""
        async with self._engine.begin() as connection:
            await connection.execute(delete(ProcessRow).where(ProcessRow.id == process))

    async def orphans(self, process: str, lease_seconds: float | None, limit: int) -> list[Entry]:
        """Hold entries that are open though their process has no lease; None: though it is not `process`."""
        async with self._reader.connect() as connection:
            lost: ColumnElement[bool] = OpenHoldRow.process != process
            if lease_seconds is not None:
                since = await _now(connection, self._clock) - timedelta(seconds=lease_seconds)
                leased = select(ProcessRow.id).where(ProcessRow.heartbeat_at >= since)
                lost = and_(lost, OpenHoldRow.process.not_in(leased))
            found = select(EntryRow.__table__).join(OpenHoldRow, _its_hold).where(lost).limit(limit)
            return [_entry(row) for row in await connection.execute(found)]

    async def entries_of(self, turn_ids: Collection[str]) -> list[Entry]:
        """All entries of these turns, by turn, attempt and step. Raises StoreUnavailable."""
        if not turn_ids:
            return []
        found = select(EntryRow.__table__).where(EntryRow.turn_id.in_(_padded(turn_ids)))
        ordered = found.order_by(EntryRow.turn_id, EntryRow.attempt, EntryRow.step)
        with _refusing():
            async with self._reader.connect() as connection:
                return [_entry(row) for row in await connection.execute(ordered)]

    async def by_provider_id(
        self, provider_request_ids: Collection[str], provider: str | None
    ) -> dict[str, set[AttemptKey]]:
        """The provider's attempts (None: anybody's) that these ids of its own belong to. Raises StoreUnavailable."""
        if not provider_request_ids:
            return {}
        found = select(EntryRow.provider_request_id, EntryRow.turn_id, EntryRow.attempt).where(
            EntryRow.provider_request_id.in_(_padded(provider_request_ids))
        )
        if provider is not None:
            found = found.where(EntryRow.provider == provider)
        attempts: dict[str, set[AttemptKey]] = {}
        with _refusing():
            async with self._reader.connect() as connection:
                for provider_id, turn_id, attempt in await connection.execute(found):
                    attempts.setdefault(provider_id or "", set()).add(AttemptKey(turn_id, attempt))
        return attempts

    async def unconfirmed(self, provider: str, since: datetime, until: datetime) -> list[AttemptKey]:
        """The provider's attempts held in [since, until) that stand estimated, uncorrected. Raises StoreUnavailable."""
        found = select(EntryRow.turn_id, EntryRow.attempt).where(
            EntryRow.provider == provider, EntryRow.held_at >= since, EntryRow.held_at < until, _unconfirmed()
        )
        with _refusing():
            async with self._reader.connect() as connection:
                return [AttemptKey(*row) for row in await connection.execute(found)]

    async def correct(self, corrections: Sequence[Correction]) -> set[AttemptKey]:
        """Add those corrections whose step is free, and move the periods that count them; returns what was added."""
        changes: dict[Period, Balance] = {}
        added: set[AttemptKey] = set()
        concerned = {period for each in corrections for period in (*each.entry.periods, *each.budgets)}
        with _refusing():
            async with self._engine.begin() as connection:
                await _lock_holds(connection, "ROW EXCLUSIVE")  # no period may be opened while it is corrected
                opened = await _opened(connection, concerned)
                for each in corrections:
                    entry = _counted(each, opened)
                    written = await connection.execute(_insert_missing(connection, EntryRow).values(_row(entry)))
                    if written.rowcount:
                        added.add(entry.key)
                        for period in entry.periods:
                            posted = changes.get(period, Balance()).posted_nano_usd
                            changes[period] = Balance(posted + entry.amount_nano_usd)
                await _shift(connection, changes)
        return added

    async def balances(self, budgets: Mapping[Period, Budget]) -> dict[Period, Balance]:
        """Balances of these periods, also of those that nobody has opened yet. Raises StoreUnavailable."""
        with _refusing():
            async with self._reader.connect() as connection:
                rows = await _balances(connection, budgets, locked=False)
                for period in budgets.keys() - rows.keys():
                    spent = (await connection.execute(_spent_in(budgets[period], period))).scalar_one()
                    holds = await connection.execute(_open_in(budgets[period], period))
                    rows[period] = Balance(int(spent), sum(hold.amount_nano_usd for hold in holds))
        return rows

    async def spent(self, question: Question, rows_max: int) -> list[SpendRow]:
        """Posted and corrected money by group, dearest first. Raises StoreUnavailable."""
        groups = [self._group(name) for name in question.by]
        cost = func.sum(EntryRow.amount_nano_usd)
        sums = (
            func.sum(case((EntryRow.kind == "post", 1), else_=0)),
            func.sum(EntryRow.input_tokens),
            func.sum(EntryRow.output_tokens),
            cost,
            func.sum(case((_unconfirmed(), EntryRow.amount_nano_usd), else_=0)),
        )
        asked = (
            select(*groups, *(func.coalesce(total, 0) for total in sums))
            .where(EntryRow.kind.in_(_SPENT), EntryRow.held_at >= question.since, EntryRow.held_at < question.until)
            .where(*(self._group(name) == value for name, value in sorted(question.where.items())))
            .group_by(*groups)
            .order_by(cost.desc(), *groups)
            .limit(rows_max)
        )
        with _refusing():
            async with self._reader.connect() as connection:
                rows = (await connection.execute(asked)).all()
        size = len(groups)
        found = [SpendRow(dict(zip(question.by, row, strict=False)), *map(int, row[size:])) for row in rows]
        return found if groups or rows[0][0] else []

    def _group(self, name: str) -> ColumnElement[Any]:
        if name not in {"day", "month"}:
            column: ColumnElement[Any] = EntryRow.__table__.columns[_COLUMN_OF.get(name, name)]
            return column
        if self._engine.dialect.name == "sqlite":
            return func.strftime(
                literal("%Y-%m-%d" if name == "day" else "%Y-%m", literal_execute=True), EntryRow.held_at
            )
        local = func.timezone(literal("UTC", literal_execute=True), EntryRow.held_at)
        return func.to_char(local, literal("YYYY-MM-DD" if name == "day" else "YYYY-MM", literal_execute=True))


_COLUMN_OF = {"model": "target", "key": "key_id"}


async def _now(connection: AsyncConnection, clock: Clock, *, and_lock_holds: bool = False) -> datetime:
    if connection.dialect.name != "postgresql":
        return clock.now()
    asked = select(func.clock_timestamp())
    if and_lock_holds:
        # Deleting nothing takes ROW EXCLUSIVE in the same round trip. Taken later, behind locks on budget rows, it
        # could wait for an opener that waits for somebody who waits for those rows.
        asked = asked.add_cte(delete(OpenHoldRow).where(false()).cte("nothing"))
    instant: datetime = (await connection.execute(asked)).scalar_one()
    return instant


async def _balances(connection: AsyncConnection, periods: Collection[Period], *, locked: bool) -> dict[Period, Balance]:
    if not periods:
        return {}
    row = BudgetPeriodRow
    found = (
        select(row.budget_id, row.period, row.posted_nano_usd, row.held_nano_usd)
        .where(tuple_(row.budget_id, row.period).in_(_padded(periods)))
        .order_by(row.budget_id, row.period)
    )
    rows = await connection.execute(found.with_for_update() if locked else found)
    return {Period(budget_id, key): Balance(posted, held) for budget_id, key, posted, held in rows}


async def _lock_holds(connection: AsyncConnection, mode: str) -> None:
    if connection.dialect.name == "postgresql":
        await connection.execute(text(f"LOCK TABLE {OpenHoldRow.__tablename__} IN {mode} MODE"))


async def _opened(connection: AsyncConnection, periods: Collection[Period]) -> dict[Period, datetime]:
    """When these periods were opened; their rows are locked, in id order."""
    if not periods:
        return {}
    row = BudgetPeriodRow
    found = (
        select(row.budget_id, row.period, row.opened_at)
        .where(tuple_(row.budget_id, row.period).in_(_padded(periods)))
        .order_by(row.budget_id, row.period)
        .with_for_update()
    )
    return {Period(budget_id, key): opened_at for budget_id, key, opened_at in await connection.execute(found)}


def _counted(correction: Correction, opened: Mapping[Period, datetime]) -> Entry:
    """The correction with the periods that count its attempt: those it was closed in, and those opened afterwards."""
    entry = correction.entry
    later = [p for p in correction.budgets if p in opened and opened[p] > correction.closed_at]
    return replace(entry, periods=tuple(dict.fromkeys((*entry.periods, *later))))


async def _shift(connection: AsyncConnection, changes: Mapping[Period, Balance]) -> None:
    moved = [
        {"of": period.budget_id, "within": period.key, "posted": change.posted_nano_usd, "held": change.held_nano_usd}
        for period, change in sorted(changes.items())
    ]
    if moved:
        await connection.execute(_move, moved)


def _spent_in(budget: Budget, period: Period) -> Select[int]:
    spent = func.coalesce(func.sum(EntryRow.amount_nano_usd), 0)
    return select(spent).where(_counts(budget, period), EntryRow.kind.in_(_SPENT))


def _open_in(budget: Budget, period: Period) -> Select[str, int, int, str]:
    row = OpenHoldRow
    holds = select(row.turn_id, row.attempt, row.amount_nano_usd, row.periods)
    return holds.join(EntryRow, _its_hold).where(_counts(budget, period))


def _counts(budget: Budget, period: Period) -> ColumnElement[bool]:
    """Whether an entry is of the budget's scope and of the period."""
    since, until = budget.period_bounds(period.key)
    column = {"department": EntryRow.department, "app": EntryRow.app, "key": EntryRow.key_id}[budget.scope]
    return and_(EntryRow.held_at >= since, EntryRow.held_at < until, column == budget.of)


def _joined(hold: Row[str, int, int, str], period: Period) -> dict[str, Any]:
    within = _json((*_periods(hold.periods), period))
    return {"turn": hold.turn_id, "number": hold.attempt, "now_within": within}


def _unconfirmed() -> ColumnElement[bool]:
    """A posted entry that is an estimate still: nothing has corrected it."""
    later = aliased(EntryRow)
    corrected = exists().where(
        later.turn_id == EntryRow.turn_id, later.attempt == EntryRow.attempt, later.step > EntryRow.step
    )
    return and_(EntryRow.kind == "post", EntryRow.estimated, ~corrected)


def _insert_missing(connection: AsyncConnection, table: type[Base]) -> Insert:
    make = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    return make(table).on_conflict_do_nothing()


def _padded(keys: Iterable[Item]) -> list[Item]:
    # Every length of a list is a statement of its own to prepare; powers of two keep those to a dozen.
    listed = list(keys)
    return listed + listed[-1:] * ((1 << (len(listed) - 1).bit_length()) - len(listed))


def _row(entry: Entry) -> dict[str, Any]:
    row = {name: getattr(entry, name) for name in _PLAIN_FIELDS}
    row["user"], row["provider_request_id"] = _storable(entry.user), _storable(entry.provider_request_id)
    row["budgets"], row["tokens"], row["cost"] = _json(entry.periods), _json(entry.tokens), _json(entry.cost)
    row["rates"] = None if entry.rates is None else _json(entry.rates)
    row["input_tokens"] = sum(count for part, count in entry.tokens.items() if not part.is_output)
    row["output_tokens"] = sum(count for part, count in entry.tokens.items() if part.is_output)
    return row


def _entry(row: Row[Any]) -> Entry:
    plain = {name: getattr(row, name) for name in _PLAIN_FIELDS}
    return Entry(
        **plain,
        periods=_periods(row.budgets),
        tokens=msgspec.json.decode(row.tokens, type=dict[Component, int]),
        cost=msgspec.json.decode(row.cost, type=dict[Component, int]),
        rates=None if row.rates is None else msgspec.json.decode(row.rates, type=dict[Component, int]),
    )


def _open_hold(entry: Entry) -> dict[str, Any]:
    names = ("turn_id", "attempt", "process", "held_at", "amount_nano_usd")
    return {name: getattr(entry, name) for name in names} | {"periods": _json(entry.periods)}


def _periods(written: str) -> tuple[Period, ...]:
    return msgspec.json.decode(written, type=tuple[Period, ...])


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _storable(text: str | None) -> str | None:
    # What a stranger sent must not keep a batch from being written: PostgreSQL takes neither NUL nor lone surrogates.
    return text and text[:_TEXT_MAX].replace("\0", "").encode(errors="replace").decode()


@contextlib.contextmanager
def _refusing() -> Iterator[None]:
    try:
        yield
    except (SQLAlchemyError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as lost:
        raise StoreUnavailable("The books cannot be read or written; try again in a moment.") from lost
