"""The tables' common base, the one type they share, and the engine factory. It builds; it never queries.

Losing the database means refusing: it holds the money and the trail.
"""

import sqlite3
import time
from contextlib import suppress
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import asyncpg
from sqlalchemy import DateTime, Dialect, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.pool import ConnectionPoolEntry
from sqlalchemy.types import TypeDecorator

# Reports and migrations may take this long; what must answer sooner bounds itself.
_STATEMENT_SECONDS = 60.0
_GOOD_BYE_SECONDS = 0.5
_CACHE_KIB = 16 * 1024  # of SQLite's pages per connection; with its own 2 MiB every turn reads some again
_READS_ONLY = "penstock_reads_only"


class Base(DeclarativeBase):
    """Every folder's tables hang here, so that one migration history covers them."""


class UtcDateTime(TypeDecorator[datetime]):
    """An aware instant in UTC on every store; SQLite alone would forget the time zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002 (its signature)
        """To UTC, because SQLite writes the clock's face only."""
        return value if value is None or value.tzinfo is UTC else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002 (its signature)
        """Aware again."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


@lru_cache(1024)  # a batch has one instant, and its holds are closed within the next few
def as_instant(at: datetime) -> str:
    """As `UtcDateTime` is written on SQLite."""
    return at.astimezone(UTC).isoformat(" ", "microseconds")[:26]


def make_engine(
    url: str | URL, *, timeout_seconds: float = 5.0, idle_seconds: float | None = None, pool_size: int = 8
) -> AsyncEngine:
    """An engine for SQLite (WAL, synchronous=FULL, foreign keys on) or PostgreSQL (synchronous_commit=on).

    timeout_seconds bounds a wait for a connection, for a lock, and for connecting. idle_seconds (None: twice that):
    PostgreSQL ends a transaction whose client says nothing for so long, because a process that froze keeps its locks.
    """
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        engine = create_async_engine(parsed, connect_args={"timeout": timeout_seconds, "isolation_level": None})
        event.listen(engine.sync_engine, "connect", _prepare_sqlite)
        event.listen(engine.sync_engine, "begin", _begin_immediate)
        return engine
    engine = create_async_engine(
        parsed,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=timeout_seconds,
        pool_pre_ping=False,
        connect_args={
            "timeout": timeout_seconds,
            "connection_class": _HardClosing,
            "command_timeout": _STATEMENT_SECONDS,
            "server_settings": _server_settings(timeout_seconds, idle_seconds or 2 * timeout_seconds),
        },
    )
    _Suspicion().watch(engine)
    return engine


def _server_settings(timeout_seconds: float, idle_seconds: float) -> dict[str, str]:
    idle_ms = f"{int(idle_seconds * 1000)}"
    return {
        "synchronous_commit": "on",
        "lock_timeout": f"{int(timeout_seconds * 1000)}",
        "idle_in_transaction_session_timeout": idle_ms,
        # A client whose machine is gone; a server that cannot do this (a Unix socket, say) passes over it.
        "tcp_keepalives_idle": "10",
        "tcp_keepalives_interval": "5",
        "tcp_keepalives_count": "3",
        "tcp_user_timeout": idle_ms,
    }


class _Suspicion:
    """Once a connection was given up, those that are older are replaced before they are used again.

    After a fail-over without a reset all of them are dead, and each would cost whoever takes it a time-out.
    """

    def __init__(self) -> None:
        self._since = 0.0

    def watch(self, engine: AsyncEngine) -> None:
        """Follow the engine's connections."""
        for name, listener in (("connect", self._made), ("invalidate", self._given_up), ("checkout", self._taken)):
            event.listen(engine.sync_engine, name, listener)

    def _made(self, _connection: object, record: ConnectionPoolEntry) -> None:
        record.info["made"] = time.monotonic()

    def _given_up(self, _connection: object, _record: object, reason: BaseException | None) -> None:
        if not isinstance(reason, DisconnectionError):  # not those that were given up on suspicion alone
            self._since = time.monotonic()

    def _taken(self, _connection: object, record: ConnectionPoolEntry, _taker: object) -> None:
        if record.info["made"] <= self._since:
            raise DisconnectionError("made before another one was given up")


class _HardClosing(asyncpg.Connection):  # type: ignore[misc]  # asyncpg says nothing of its types
    """Says no good-bye to a server that may not listen: SQLAlchemy would wait two seconds for it, before every 503."""

    async def close(self, *, timeout: float | None = None) -> None:  # noqa: ASYNC109 - asyncpg's own signature
        """As asyncpg's, but bounded; a close with a time-out, which follows a failure, is a hard one."""
        if timeout is None:
            with suppress(TimeoutError):
                await super().close(timeout=_GOOD_BYE_SECONDS)
        else:
            self.terminate()


def reading(engine: AsyncEngine) -> AsyncEngine:
    """The same engine for statements that only read; each statement sees what was durable when it began."""
    return engine.execution_options(**{_READS_ONLY: True})


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", f"cache_size=-{_CACHE_KIB}"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def connect_sqlite(path: str) -> sqlite3.Connection:
    """A connection beside an engine's pool, as its own are, but that it fails at once where the file is locked.

    Whoever has it begins and ends its transactions; any thread may use it, one at a time.
    """
    connection = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
    _prepare_sqlite(connection, None)
    return connection


def _begin_immediate(connection: Any) -> None:
    # The driver's own BEGIN is deferred: two writers that read first would then fail instead of waiting.
    # A reader opens no transaction at all, so that it neither waits for the writer nor holds it up.
    if not connection.get_execution_options().get(_READS_ONLY):
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def quoted_columns(rows_of: type[Base]) -> str:
    """The table's columns as a list in SQL."""
    return ", ".join(f'"{column.name}"' for column in rows_of.__table__.columns)


def shape_in_postgres(rows_of: type[Base]) -> str:
    """The table's columns with their types, as `json_to_recordset` wants them.

    One JSON text for all rows costs the client a third of what an array per column does, and one row each far more.
    """
    dialect = _dialect("postgresql+asyncpg")
    return ", ".join(f'"{column.name}" {column.type.compile(dialect=dialect)}' for column in rows_of.__table__.columns)


def _dialect(name: str) -> Dialect:
    made: Dialect = URL.create(name).get_dialect()()
    return made
