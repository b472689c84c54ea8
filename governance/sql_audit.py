"""The trail's rows for real, on SQLite and PostgreSQL alike. Rows are added and read, never changed."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from sqlalchemy import Select, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from governance.sql import reachable
from governance.store import Link
from governance.tables import AuditRow
from kernel import ChainHead
from kernel.db import as_arrays, insert_from_arrays, reading

_FIELDS = tuple(field.name for field in fields(Link))
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
        rows = [{name: getattr(link, name) for name in _FIELDS} for link in links]
        if connection.dialect.name == "postgresql":
            await connection.execute(insert_from_arrays(AuditRow), as_arrays(AuditRow, rows))
        else:
            await connection.execute(insert(AuditRow), rows)


class SqlTrail:
    """Reads the chains of all writers."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = reading(engine)

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
