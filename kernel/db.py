"""The tables' common base, the one type they share, and the engine factory. It builds; it never queries.

Losing the database means refusing: it holds the money and the trail.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Any

import asyncpg
from sqlalchemy import DateTime, Dialect, TextClause, event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.types import TypeDecorator

# Reports and migrations may take this long; what must answer sooner bounds itself.
_STATEMENT_SECONDS = 60.0
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


def make_engine(url: str | URL, *, timeout_seconds: float = 5.0, pool_size: int = 8) -> AsyncEngine:
    """An engine for SQLite (WAL, synchronous=FULL, foreign keys on) or PostgreSQL (synchronous_commit=on).

    timeout_seconds bounds a wait for a connection, for a lock, and for connecting.
    """
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        engine = create_async_engine(parsed, connect_args={"timeout": timeout_seconds, "isolation_level": None})
        event.listen(engine.sync_engine, "connect", _prepare_sqlite)
        event.listen(engine.sync_engine, "begin", _begin_immediate)
        return engine
    return create_async_engine(
        parsed,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=timeout_seconds,
        pool_pre_ping=False,
        connect_args={
            "timeout": timeout_seconds,
            "connection_class": _HardClosing,
            "command_timeout": _STATEMENT_SECONDS,
            "server_settings": {"synchronous_commit": "on", "lock_timeout": f"{int(timeout_seconds * 1000)}"},
        },
    )


class _HardClosing(asyncpg.Connection):  # type: ignore[misc]  # asyncpg says nothing of its types
    """Says no good-bye to a server that may not listen: SQLAlchemy would wait two seconds for it, before every 503."""

    async def close(self, *, timeout: float | None = None) -> None:  # noqa: ASYNC109 - asyncpg's own signature
        """As asyncpg's, but that a close with a time-out, which follows a failure, is a hard one."""
        if timeout is None:
            await super().close()
        else:
            self.terminate()


def reading(engine: AsyncEngine) -> AsyncEngine:
    """The same engine for statements that only read; each statement sees what was durable when it began."""
    return engine.execution_options(**{_READS_ONLY: True})


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_immediate(connection: Any) -> None:
    # The driver's own BEGIN is deferred: two writers that read first would then fail instead of waiting.
    # A reader opens no transaction at all, so that it neither waits for the writer nor holds it up.
    if not connection.get_execution_options().get(_READS_ONLY):
        connection.exec_driver_sql("BEGIN IMMEDIATE")


@cache
def insert_from_arrays(rows_of: type[Base]) -> TextClause:
    """An INSERT for PostgreSQL that takes an array per column, by the column's name, however many rows there are.

    Rows sent one by one cost the server more than what they hold: 5,500 turns a second became 6,700.
    """
    columns, dialect = rows_of.__table__.columns, _dialect("postgresql+asyncpg")
    names = ", ".join(f'"{column.name}"' for column in columns)
    arrays = ", ".join(f"CAST(:{column.name} AS {column.type.compile(dialect=dialect)}[])" for column in columns)
    return text(f'INSERT INTO "{rows_of.__tablename__}" ({names}) SELECT * FROM unnest({arrays})')  # noqa: S608 - our own names


def as_arrays(rows_of: type[Base], rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The rows as what `insert_from_arrays` takes."""
    return {column.name: [row.get(column.name) for row in rows] for column in rows_of.__table__.columns}


def _dialect(name: str) -> Dialect:
    made: Dialect = URL.create(name).get_dialect()()
    return made
