"""The ledger's store for real, on SQLite and PostgreSQL alike. The only file here with SQL; it decides nothing.

Losing the database means refusing. Reports read what was durable when they began and wait for no writer.
"""

import contextlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Self, TypeVar

import asyncpg
import msgspec
from sqlalchemy import (
    ColumnElement,
    Insert,
    Row,
    ScalarSelect,
    and_,
    bindparam,
    case,
    delete,
    exists,
    func,
    insert,
    literal,
    select,
    true,
    tuple_,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.orm import aliased

from cost.budgets import Budget, Period
from cost.entries import AttemptKey, Entry
from cost.metrics import LedgerMetrics
from cost.store import Balance, PeriodsMissing, Question, SpendRow
from cost.tables import BudgetPeriodRow, EntryRow, OpenHoldRow, ProcessRow
from kernel import AuditRecord, AuditSink, ChainHead, Clock, Component, StoreUnavailable, SystemClock
from kernel.db import Base, reading

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
        """The instant that decides periods: the database's where many processes share it, else the clock's."""
        return await _now(self._connection, self._clock)

    async def lock(self, wanted: Mapping[Period, Budget | None]) -> dict[Period, Balance]:
        """The rows of these periods, locked in id order. Raises PeriodsMissing where one with a budget has none."""
        rows = await _balances(self._connection, wanted, locked=True)
        missing = {period: budget for period, budget in wanted.items() if budget is not None and period not in rows}
        if missing:
            raise PeriodsMissing(missing)
        return rows

    async def release(self, keys: Collection[AttemptKey]) -> set[AttemptKey]:
        """Delete these open holds; returns those that were there. Whoever deletes the row closes the attempt."""
        attempt = tuple_(OpenHoldRow.turn_id, OpenHoldRow.attempt)
        gone = delete(OpenHoldRow).where(attempt.in_(_padded(keys))).returning(OpenHoldRow.turn_id, OpenHoldRow.attempt)
        return {AttemptKey(*row) for row in await self._connection.execute(gone)}

    async def write(self, entries: Sequence[Entry], changes: Mapping[Period, Balance]) -> None:
        """Add the entries, open the holds among them, and add the changes to the periods' balances."""
        await _shift(self._connection, changes)
        if entries:
            await self._connection.execute(insert(EntryRow), [_row(entry) for entry in entries])
        if held := [_open_hold(entry) for entry in entries if entry.kind == "hold"]:
            await self._connection.execute(insert(OpenHoldRow), held)
        self._written = entries

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
        """Make rows for periods without one, posted with what their scope has spent in them. Idempotent."""
        columns = ["budget_id", "period", "posted_nano_usd", "held_nano_usd"]
        async with self._engine.begin() as connection:
            for period, budget in sorted(budgets.items()):
                # SQLite takes ON CONFLICT behind a SELECT for a join unless a WHERE stands between.
                seeded = select(literal(period.budget_id), literal(period.key), _spent_in(budget, period), literal(0))
                await connection.execute(
                    _insert_missing(connection, BudgetPeriodRow).from_select(columns, seeded.where(true()))
                )

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
            same = and_(
                EntryRow.turn_id == OpenHoldRow.turn_id, EntryRow.attempt == OpenHoldRow.attempt, EntryRow.step == 0
            )
            found = select(EntryRow.__table__).join(OpenHoldRow, same).where(lost).limit(limit)
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

    async def by_provider_id(self, provider_request_ids: Collection[str]) -> dict[str, set[AttemptKey]]:
        """The attempts that these ids of the provider's belong to. Raises StoreUnavailable."""
        if not provider_request_ids:
            return {}
        found = select(EntryRow.provider_request_id, EntryRow.turn_id, EntryRow.attempt).where(
            EntryRow.provider_request_id.in_(_padded(provider_request_ids))
        )
        attempts: dict[str, set[AttemptKey]] = {}
        with _refusing():
            async with self._reader.connect() as connection:
                for provider_id, turn_id, attempt in await connection.execute(found):
                    attempts.setdefault(provider_id or "", set()).add(AttemptKey(turn_id, attempt))
        return attempts

    async def unconfirmed(self, since: datetime, until: datetime) -> list[AttemptKey]:
        """Attempts held in [since, until) that stand estimated and uncorrected. Raises StoreUnavailable."""
        found = select(EntryRow.turn_id, EntryRow.attempt).where(
            EntryRow.held_at >= since, EntryRow.held_at < until, _unconfirmed()
        )
        with _refusing():
            async with self._reader.connect() as connection:
                return [AttemptKey(*row) for row in await connection.execute(found)]

    async def correct(self, corrections: Sequence[Entry]) -> set[AttemptKey]:
        """Add those corrections whose step is free, and move their periods; returns what was added."""
        changes: dict[Period, Balance] = {}
        added: set[AttemptKey] = set()
        with _refusing():
            async with self._engine.begin() as connection:
                await _balances(connection, {p: None for c in corrections for p in c.periods}, locked=True)
                for entry in corrections:
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
                    spent = await connection.execute(select(_spent_in(budgets[period], period)))
                    rows[period] = Balance(int(spent.scalar_one()))
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


async def _now(connection: AsyncConnection, clock: Clock) -> datetime:
    if connection.dialect.name != "postgresql":
        return clock.now()
    instant: datetime = (await connection.execute(select(func.clock_timestamp()))).scalar_one()
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


async def _shift(connection: AsyncConnection, changes: Mapping[Period, Balance]) -> None:
    moved = [
        {"of": period.budget_id, "within": period.key, "posted": change.posted_nano_usd, "held": change.held_nano_usd}
        for period, change in sorted(changes.items())
    ]
    if moved:
        await connection.execute(_move, moved)


def _spent_in(budget: Budget, period: Period) -> ColumnElement[int]:
    since, until = budget.period_bounds(period.key)
    column = {"department": EntryRow.department, "app": EntryRow.app, "key": EntryRow.key_id}[budget.scope]
    spent: ScalarSelect[int] = (
        select(func.sum(EntryRow.amount_nano_usd))
        .where(EntryRow.held_at >= since, EntryRow.held_at < until, column == budget.of, EntryRow.kind.in_(_SPENT))
        .scalar_subquery()
    )
    return func.coalesce(spent, 0)


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
        periods=tuple(msgspec.json.decode(row.budgets, type=list[Period])),
        tokens=msgspec.json.decode(row.tokens, type=dict[Component, int]),
        cost=msgspec.json.decode(row.cost, type=dict[Component, int]),
        rates=None if row.rates is None else msgspec.json.decode(row.rates, type=dict[Component, int]),
    )


def _open_hold(entry: Entry) -> dict[str, Any]:
    names = ("turn_id", "attempt", "process", "held_at", "amount_nano_usd")
    return {name: getattr(entry, name) for name in names}


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
