"""The trail's rows for real, on SQLite and PostgreSQL alike. Rows are added and read, never changed."""

import sqlite3
from collections.abc import Sequence
from typing import Any

import asyncpg
import msgspec
from sqlalchemy import Select, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from governance.sql import reachable
from governance.store import Link
from governance.tables import AuditRow
from kernel import ChainHead
from kernel.db import as_instant, quoted_columns, reading, shape_in_postgres

_FIELDS = Link.__struct_fields__
_LINK = tuple(AuditRow.__table__.columns[name] for name in _FIELDS)


class SqlChains:
    """Writes links inside the transaction it is handed."""

    async def head(self, connection: AsyncConnection, writer: str) -> ChainHead | None:
        """The last link of the writer, as the transaction sees it."""
        statement = (
            select(AuditRow.sequence, AuditRow.digest)
            .where(AuditRow.writer == writer)
            .order_by(AuditRow.sequence.desc())
            .limit(1)
        )
        row = (await connection.execute(statement)).first()
        return ChainHead(*row) if row else None

    async def insert(self, connection: AsyncConnection, links: Sequence[Link]) -> None:
        """Add the links in one round trip."""
        await connection.execute(insert(AuditRow), [{name: getattr(link, name) for name in _FIELDS} for link in links])


_HEAD = "SELECT sequence, digest FROM audit WHERE writer = {} ORDER BY sequence DESC LIMIT 1"
_INTO = f"INSERT INTO audit ({quoted_columns(AuditRow)})"
_INSERT_POSTGRES = f"{_INTO} SELECT * FROM json_to_recordset($1::json) AS x({shape_in_postgres(AuditRow)})"  # noqa: S608 - our own names
_INSERT_SQLITE = f"{_INTO} VALUES ({', '.join('?' * len(_LINK))})"


class DriverChains:
    """Writes links on a driver's own connection, inside the transaction open on it: two of them for every turn."""

    async def head(self, connection: sqlite3.Connection | asyncpg.Connection, writer: str) -> ChainHead | None:
        """The last link of the writer, as the transaction sees it."""
        if isinstance(connection, sqlite3.Connection):
            row = connection.execute(_HEAD.format("?"), (writer,)).fetchone()
        else:
            row = await connection.fetchrow(_HEAD.format("$1"), writer)
        return ChainHead(*row) if row else None

    async def insert(self, connection: sqlite3.Connection | asyncpg.Connection, links: Sequence[Link]) -> None:
        """Add the links in one round trip."""
        if isinstance(connection, sqlite3.Connection):
            connection.executemany(_INSERT_SQLITE, [_values(link) for link in links])
        else:
            await connection.execute(_INSERT_POSTGRES, msgspec.json.encode(links).decode())


def _values(link: Link) -> tuple[object, ...]:
    writer, sequence, at, *rest = msgspec.structs.astuple(link)
    return writer, sequence, as_instant(at), *rest


class SqlTrail:
    """Reads the chains of all writers. timeout_seconds bounds the question about one turn; reports take their time."""

    def __init__(self, engine: AsyncEngine, *, timeout_seconds: float = 5.0) -> None:
        self._engine = reading(engine)
        self._timeout_seconds = timeout_seconds

    async def writers(self) -> list[str]:
        """Everyone who ever wrote."""
        async with reachable(), self._engine.connect() as connection:
            return list(await connection.scalars(select(AuditRow.writer).distinct().order_by(AuditRow.writer)))

    async def page(self, writer: str, *, after: int, limit: int) -> list[Link]:
        """The writer's next links by sequence."""
        mine = select(*_LINK).where(AuditRow.writer == writer, AuditRow.sequence > after)
        return await self._links(mine.order_by(AuditRow.sequence).limit(limit))

    async def of_turn(self, turn_id: str) -> list[Link]:
        """All links of one turn, oldest first."""
        mine = select(*_LINK).where(AuditRow.turn_id == turn_id)
        async with reachable(self._timeout_seconds):
            return await self._links(mine.order_by(AuditRow.at, AuditRow.writer, AuditRow.sequence))

    async def recent(self, *, limit: int, event: str | None) -> list[Link]:
        """The newest links of all writers, newest first; `event` selects by prefix."""
        newest = select(*_LINK).order_by(AuditRow.at.desc(), AuditRow.writer, AuditRow.sequence.desc()).limit(limit)
        if event is not None:
            newest = newest.where(AuditRow.event.startswith(event, autoescape=True))
        return await self._links(newest)

    async def _links(self, statement: Select[*tuple[Any, ...]]) -> list[Link]:
        async with reachable(), self._engine.connect() as connection:
            return [Link(*row) for row in await connection.execute(statement)]
