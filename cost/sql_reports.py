"""The books read by reports, and corrected by invoices, on SQLite and PostgreSQL alike.

What a turn waits for is in sql.py; what is here may take its time, on an engine of its own.
"""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, and_, bindparam, case, exists, func, literal, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.orm import aliased

from cost.budgets import Budget, Period
from cost.entries import AttemptKey, Correction, Entry
from cost.sql import (
    SPENT,
    entries_of,
    insert_missing,
    lock_holds,
    open_in,
    period_rows,
    refusing,
    spent_in,
)
from cost.sql_rows import entry_line, padded
from cost.store import Balance, Question, SpendRow
from cost.tables import BudgetPeriodRow, EntryRow
from kernel.db import reading

_ROWS_AT_ONCE = 250  # between two of them turns have theirs
_COLUMN_OF = {"model": "target", "key": "key_id"}

_move = (
    update(BudgetPeriodRow)
    .where(BudgetPeriodRow.budget_id == bindparam("of"), BudgetPeriodRow.period == bindparam("within"))
    .values(
        posted_nano_usd=BudgetPeriodRow.posted_nano_usd + bindparam("posted"),
        held_nano_usd=BudgetPeriodRow.held_nano_usd + bindparam("held"),
    )
    .execution_options(synchronize_session=False)
)


class SqlReports:
    """The ledger's rows as reports and invoices see them: what was durable when a question began."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._reader = reading(engine)

    async def entries_of(self, turn_ids: Collection[str]) -> list[Entry]:
        """All entries of these turns, by turn, attempt and step. Raises StoreUnavailable."""
        with refusing():
            return await entries_of(self._reader, turn_ids)

    async def by_provider_id(
        self, provider_request_ids: Collection[str], provider: str | None
    ) -> dict[str, set[AttemptKey]]:
        """The provider's attempts (None: anybody's) that these ids of its own belong to. Raises StoreUnavailable."""
        if not provider_request_ids:
            return {}
        found = select(EntryRow.provider_request_id, EntryRow.turn_id, EntryRow.attempt).where(
            EntryRow.provider_request_id.in_(padded(provider_request_ids))
        )
        if provider is not None:
            found = found.where(EntryRow.provider == provider)
        attempts: dict[str, set[AttemptKey]] = {}
        with refusing():
            async with self._reader.connect() as connection:
                for provider_id, turn_id, attempt in await connection.execute(found):
                    attempts.setdefault(provider_id or "", set()).add(AttemptKey(turn_id, attempt))
        return attempts

    async def unconfirmed(self, provider: str, since: datetime, until: datetime) -> list[AttemptKey]:
        """The provider's attempts held in [since, until) that stand estimated, uncorrected. Raises StoreUnavailable."""
        found = select(EntryRow.turn_id, EntryRow.attempt).where(
            EntryRow.provider == provider, EntryRow.held_at >= since, EntryRow.held_at < until, _unconfirmed()
        )
        with refusing():
            async with self._reader.connect() as connection:
                return [AttemptKey(*row) for row in await connection.execute(found)]

    async def correct(self, corrections: Sequence[Correction]) -> set[AttemptKey]:
        """Add those corrections whose step is free, and move the periods that count them; returns what was added.

        The rows of budgets are locked last, and shortly: turns wait for them.
        """
        concerned = {period for each in corrections for period in (*each.entry.periods, *each.budgets)}
        with refusing():
            async with self._engine.begin() as connection:
                await lock_holds(connection, "ROW EXCLUSIVE")  # no period may be opened while it is corrected
                opened = await _opened(connection, concerned)
                entries = {entry.key: entry for entry in (_counted(each, opened) for each in corrections)}
                added = await self._add(connection, list(entries.values()))
                changes: dict[Period, Balance] = {}
                for entry in (entries[key] for key in added):
                    for period in entry.periods:
                        posted = changes.get(period, Balance()).posted_nano_usd
                        changes[period] = Balance(posted + entry.amount_nano_usd)
                await period_rows(connection, changes, locked=True)  # in the order of ids that committers keep to
                await _shift(connection, changes)
        return added

    async def _add(self, connection: AsyncConnection, entries: Sequence[Entry]) -> set[AttemptKey]:
        """Insert the entries whose step is free, in one statement; returns their attempts."""
        if not entries:
            return set()
        new = insert_missing(connection, EntryRow).returning(EntryRow.turn_id, EntryRow.attempt)
        written = await connection.execute(new, [msgspec.structs.asdict(entry_line(entry)) for entry in entries])
        return {AttemptKey(turn_id, attempt) for turn_id, attempt in written}

    async def balances(self, budgets: Mapping[Period, Budget]) -> dict[Period, Balance]:
        """Balances of these periods, also of those that nobody has opened yet. Raises StoreUnavailable."""
        with refusing():
            async with self._reader.connect() as connection:
                known = await period_rows(connection, budgets, locked=False)
                rows = {period: row.balance for period, row in known.items() if row.is_counted}
                for period in budgets.keys() - rows.keys():
                    spent = (await connection.execute(spent_in(budgets[period], period))).scalar_one()
                    holds = await connection.execute(open_in(budgets[period], period))
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
            .where(EntryRow.kind.in_(SPENT), EntryRow.held_at >= question.since, EntryRow.held_at < question.until)
            .where(*(self._group(name) == value for name, value in sorted(question.where.items())))
            .group_by(*groups)
            .order_by(cost.desc(), *groups)
            .limit(rows_max)
        )
        size, found = len(groups), list[SpendRow]()
        with refusing():
            async with self._reader.connect() as connection:
                rows = await connection.stream(asked)
                async for some in rows.partitions(_ROWS_AT_ONCE):
                    found += [
                        SpendRow(dict(zip(question.by, row, strict=False)), *map(int, row[size:])) for row in some
                    ]
        return found if groups or found[0].calls else []

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


async def _opened(connection: AsyncConnection, periods: Collection[Period]) -> dict[Period, datetime]:
    """When these periods were opened: as long as open holds are locked none can be opened besides."""
    if not periods:
        return {}
    row = BudgetPeriodRow
    found = select(row.budget_id, row.period, row.opened_at).where(
        tuple_(row.budget_id, row.period).in_(padded(periods))
    )
    return {Period(budget_id, key): opened_at for budget_id, key, opened_at in await connection.execute(found)}


async def _shift(connection: AsyncConnection, changes: Mapping[Period, Balance]) -> None:
    """Add the changes to the balances of these periods."""
    moved = [
        {"of": period.budget_id, "within": period.key, "posted": change.posted_nano_usd, "held": change.held_nano_usd}
        for period, change in sorted(changes.items())
    ]
    if moved:
        await connection.execute(_move, moved)


def _counted(correction: Correction, opened: Mapping[Period, datetime]) -> Entry:
    """The correction with the periods that count its attempt: those it was closed in, and those opened afterwards."""
    entry = correction.entry
    later = [p for p in correction.budgets if p in opened and opened[p] > correction.closed_at]
    return msgspec.structs.replace(entry, periods=tuple(dict.fromkeys((*entry.periods, *later))))


def _unconfirmed() -> ColumnElement[bool]:
    """A posted entry that is an estimate still: nothing has corrected it."""
    later = aliased(EntryRow)
    corrected = exists().where(
        later.turn_id == EntryRow.turn_id, later.attempt == EntryRow.attempt, later.step > EntryRow.step
    )
    return and_(EntryRow.kind == "post", EntryRow.estimated, ~corrected)
