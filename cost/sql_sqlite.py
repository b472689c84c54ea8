"""The ledger's transactions on SQLite: statements on the event loop, and commits, which wait for the disk, beside it.

A statement takes microseconds while nothing waits for anything, but in a thread of its own each one would queue for the
interpreter's lock behind the event loop (docs/decisions/0004). It decides nothing. Losing the database means refusing.
"""

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from queue import SimpleQueue
from types import TracebackType
from typing import Self

import msgspec

from cost.budgets import Budget, Period
from cost.entries import AttemptKey, Entry
from cost.sql_rows import EntryLine, entry_line, read_periods
from cost.store import Balance, Released, require_open
from cost.tables import EntryRow
from kernel import AuditRecord, AuditSink, ChainHead, Clock
from kernel.db import as_instant, connect_sqlite, quoted_columns

_LOOK_AGAIN_SECONDS = 0.001
_RELEASE = "DELETE FROM open_holds WHERE turn_id = ? AND attempt = ? RETURNING periods"
_LOCK = "SELECT posted_nano_usd, held_nano_usd, is_counted FROM budget_periods WHERE budget_id = ? AND period = ?"
_SHIFT = """
UPDATE budget_periods SET posted_nano_usd = posted_nano_usd + ?, held_nano_usd = held_nano_usd + ?
WHERE budget_id = ? AND period = ?"""
_ADD = f"INSERT INTO entries ({quoted_columns(EntryRow)}) VALUES ({', '.join('?' * len(EntryLine.__struct_fields__))})"  # noqa: S608 - our own names
_HOLD = """
INSERT INTO open_holds (turn_id, attempt, process, held_at, amount_nano_usd, periods) VALUES (?, ?, ?, ?, ?, ?)"""


class DiskThread:
    """Does beside the loop what waits for the disk, one thing after the other.

    It is no executor: handing over to one, and back, costs three times as much, and every commit does it.
    """

    def __init__(self) -> None:
        self._waiting = SimpleQueue[tuple[Callable[[], object], asyncio.Future[None]] | None]()
        self._thread: threading.Thread | None = None

    def submit(self, work: Callable[[], object]) -> asyncio.Future[None]:
        """Begin with it as soon as what came before is done; the future says how it ended."""
        done = asyncio.get_running_loop().create_future()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)
            self._thread.start()
        self._waiting.put((work, done))
        return done

    def close(self) -> None:
        """Wait for what was submitted, and end."""
        if self._thread is not None:
            self._waiting.put(None)
            self._thread.join()

    def _run(self) -> None:
        while (waiting := self._waiting.get()) is not None:
            work, done = waiting
            failure: Exception | None = None
            try:
                work()
            except (sqlite3.Error, MemoryError) as raised:
                failure = raised
            with suppress(RuntimeError):  # a loop that is closed: nobody waits
                done.get_loop().call_soon_threadsafe(_end, done, failure)


def _end(done: asyncio.Future[None], failure: Exception | None) -> None:
    if failure is None:
        done.set_result(None)
    else:
        done.set_exception(failure)


class SqliteLine:
    """The connection that this process's transactions use, one after the other, and the thread that commits."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._held: sqlite3.Connection | None = None
        self._thread = DiskThread()
        self._committing: asyncio.Future[None] | None = None

    async def begin(self) -> sqlite3.Connection:
        """The connection with the file's write lock, which is waited for without holding up anybody."""
        while True:
            if self._committing is not None:  # one that was given up is under way still
                with suppress(sqlite3.Error):
                    await asyncio.shield(self._committing)
                self._committing = None
                self.rollback()
            if self._held is None:
                self._held = connect_sqlite(self._path)
            try:
                self._held.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as busy:
                if busy.sqlite_errorcode & 0xFF not in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
                    raise
                await asyncio.sleep(_LOOK_AGAIN_SECONDS)
            else:
                return self._held

    async def commit(self) -> None:
        """Durable on return. Given up, it goes on, and the next transaction waits for its end."""
        assert self._held is not None
        self._committing = committing = self._thread.submit(self._held.commit)
        try:
            await asyncio.shield(committing)
        finally:
            if committing.done():
                self._committing = None

    def rollback(self) -> None:
        """As if it had never begun; of no effect where it has ended, or where its commit is under way."""
        if self._held is not None and self._committing is None and self._held.in_transaction:
            self._held.rollback()

    async def close(self) -> None:
        """Close the file, once what is being committed is."""
        self._thread.close()
        held, self._held = self._held, None
        if held is not None:
            held.close()


class SqliteBooks:
    """One transaction on the books; `store.BooksTransaction` says what it promises."""

    def __init__(self, line: SqliteLine, clock: Clock) -> None:
        self._line = line
        self._clock = clock

    async def __aenter__(self) -> Self:
        self._connection = await self._line.begin()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                await self._line.commit()
        finally:
            self._line.rollback()

    async def release(self, keys: Collection[AttemptKey], doubtful: Collection[AttemptKey] = ()) -> Released:
        """Delete these open holds. Nothing is doubtful here: nobody writes before a commit has ended."""
        del doubtful
        found = ((key, self._connection.execute(_RELEASE, key).fetchone()) for key in keys)
        return Released(self._clock.now(), {key: read_periods(row[0]) for key, row in found if row is not None})

    async def lock(self, wanted: Mapping[Period, Budget | None]) -> dict[Period, Balance]:
        """The rows of these periods; the whole file is locked."""
        found = ((period, self._connection.execute(_LOCK, period).fetchone()) for period in wanted)
        rows = {period: (Balance(row[0], row[1]), bool(row[2])) for period, row in found if row is not None}
        return require_open(wanted, rows)

    async def write(self, entries: Sequence[Entry], changes: Mapping[Period, Balance]) -> None:
        """Add the entries, open the holds among them, and add the changes to the periods' balances."""
        run, lines = self._connection.executemany, [entry_line(entry, as_instant) for entry in entries]
        run(_SHIFT, [(*change, *period) for period, change in changes.items()])
        run(_ADD, [msgspec.structs.astuple(line) for line in lines])
        run(_HOLD, [_open_hold(line) for line in lines if line.kind == "hold"])

    async def record(self, audit: AuditSink, records: Sequence[AuditRecord]) -> ChainHead:
        """Append to the trail within this transaction."""
        return await audit.append(self._connection, records)


def _open_hold(line: EntryLine) -> tuple[object, ...]:
    return line.turn_id, line.attempt, line.process, line.held_at, line.amount_nano_usd, line.budgets
