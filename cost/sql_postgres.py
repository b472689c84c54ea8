"""The ledger's transactions on PostgreSQL: four round trips on the driver itself, because every turn passes here twice.

SQLAlchemy's own execution costs more than a turn does (docs/decisions/0004); its tables still name the columns. It
decides nothing. Losing the database means refusing.
"""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, Self

import asyncpg
import msgspec
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from cost.budgets import Budget, Period
from cost.entries import AttemptKey, Entry
from cost.sql_rows import entry_line, read_periods
from cost.store import Balance, Released, require_open
from cost.tables import EntryRow
from kernel import AuditRecord, AuditSink, ChainHead
from kernel.db import quoted_columns, shape_in_postgres

NOBODY = ""
_NAMES = quoted_columns(EntryRow)

# A DELETE passes over a row that is not committed yet, and would leave it open for ever. An INSERT of the same key
# waits for that transaction's end.
_STAND_IN = """
INSERT INTO open_holds (turn_id, attempt, process, held_at, amount_nano_usd, periods)
SELECT turn_id, attempt, '', '0001-01-01 00:00:00+00', 0, '[]' FROM unnest($1::text[], $2::int[]) AS k(turn_id, attempt)
ON CONFLICT DO NOTHING"""
# It says the time even where nothing is released, and takes its lock on open holds before it does: later, behind locks
# on budget rows, that could wait for an opener that waits for somebody who waits for those rows.
_RELEASE = """
WITH gone AS (
    DELETE FROM open_holds h USING unnest($1::text[], $2::int[]) AS k(turn_id, attempt)
    WHERE h.turn_id = k.turn_id AND h.attempt = k.attempt RETURNING h.turn_id, h.attempt, h.process, h.periods
)
SELECT clock_timestamp(), gone.* FROM (VALUES (1)) AS always LEFT JOIN gone ON true"""
_LOCK = """
SELECT b.budget_id, b.period, b.posted_nano_usd, b.held_nano_usd, b.is_counted FROM budget_periods b
JOIN unnest($1::text[], $2::text[]) AS k(budget_id, period) ON b.budget_id = k.budget_id AND b.period = k.period
ORDER BY b.budget_id, b.period FOR UPDATE OF b"""
_WRITE = f"""
WITH lines AS (SELECT * FROM json_to_recordset($1::json) AS x({shape_in_postgres(EntryRow)})),
added AS (INSERT INTO entries ({_NAMES}) SELECT * FROM lines),
held AS (
    INSERT INTO open_holds (turn_id, attempt, process, held_at, amount_nano_usd, periods)
    SELECT turn_id, attempt, process, held_at, amount_nano_usd, budgets FROM lines WHERE kind = 'hold'
)
UPDATE budget_periods b SET posted_nano_usd = b.posted_nano_usd + k.posted, held_nano_usd = b.held_nano_usd + k.held
FROM unnest($2::text[], $3::text[], $4::bigint[], $5::bigint[]) AS k(budget_id, period, posted, held)
WHERE b.budget_id = k.budget_id AND b.period = k.period"""  # noqa: S608 - our own names


class PostgresLine:
    """The connection that this process's transactions use, one after the other; made anew after a failure."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._held: AsyncConnection | None = None

    async def connection(self) -> Any:
        """The driver's connection, from the engine's pool and with its settings."""
        if self._held is not None and self._driver.is_closed():
            await self.drop()  # by a server that was restarted while nobody asked it: no turn has to pay for that
        if self._held is None:
            held = await self._engine.connect()
            self._driver: asyncpg.Connection = (await held.get_raw_connection()).driver_connection
            self._held = held
        return self._driver

    async def drop(self) -> None:
        """Give the connection up, without waiting for a server that may not answer."""
        held, self._held = self._held, None
        if held is not None:
            await held.invalidate()
            await held.close()

    async def close(self) -> None:
        """Give the connection back."""
        held, self._held = self._held, None
        if held is not None:
            await held.close()


class PostgresBooks:
    """One transaction on the books; `store.BooksTransaction` says what it promises."""

    def __init__(self, line: PostgresLine) -> None:
        self._line = line

    async def __aenter__(self) -> Self:
        self._connection = await self._line.connection()
        try:
            await self._connection.execute("BEGIN")
        except BaseException:
            await self._line.drop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                await self._connection.execute("COMMIT")
            elif isinstance(error, Exception):
                await self._connection.execute("ROLLBACK")
        except BaseException:
            await self._line.drop()
            raise
        if not isinstance(error, Exception | None):
            await self._line.drop()  # out of time: a connection that does not answer would not answer a rollback either

    async def release(self, keys: Collection[AttemptKey], doubtful: Collection[AttemptKey] = ()) -> Released:
        """Delete these open holds. Whoever deletes the row closes the attempt."""
        if doubtful:
            await self._connection.execute(_STAND_IN, *_columns(doubtful, 2))
        found = await self._connection.fetch(_RELEASE, *_columns(keys, 2))
        at: datetime = found[0][0]
        return Released(
            at,
            {
                AttemptKey(turn_id, attempt): read_periods(periods)
                for _, turn_id, attempt, process, periods in found
                if turn_id is not None and process != NOBODY
            },
        )

    async def lock(self, wanted: Mapping[Period, Budget | None]) -> dict[Period, Balance]:
        """The rows of these periods, locked in id order."""
        found = await self._connection.fetch(_LOCK, *_columns(wanted, 2)) if wanted else ()
        rows = {
            Period(budget_id, key): (Balance(posted, held), is_counted)
            for budget_id, key, posted, held, is_counted in found
        }
        return require_open(wanted, rows)

    async def write(self, entries: Sequence[Entry], changes: Mapping[Period, Balance]) -> None:
        """Add the entries, open the holds among them, and add the changes to the periods' balances."""
        lines = msgspec.json.encode([entry_line(entry) for entry in entries]).decode()
        moved = [(*period, *change) for period, change in changes.items()]
        await self._connection.execute(_WRITE, lines, *_columns(moved, 4))

    async def record(self, audit: AuditSink, records: Sequence[AuditRecord]) -> ChainHead:
        """Append to the trail within this transaction."""
        return await audit.append(self._connection, records)


def _columns(rows: Collection[Sequence[Any]], width: int) -> list[list[Any]]:
    """The rows as one list per column."""
    return [list(column) for column in zip(*rows, strict=True)] if rows else [[] for _ in range(width)]
