"""Documents, keys and credentials for real, on SQLite and PostgreSQL alike. It stores; it decides nothing."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import datetime
from typing import Any

from sqlalchemy import Delete, Insert, Row, Update, delete, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from governance.store import Allowance, Archive, ChangeNote, Key, canonical_json, from_json
from governance.tables import ChangeCounterRow, ChangeRow, CredentialRow, DocumentRow, KeyRow
from kernel import AuditRecord, AuditSink, Clock, Document, Role, StoreUnavailable
from kernel.db import reading

_COUNTER_ID = 1
# What is read whole grows with the company: it may take so many times as long as a single answer.
_WHOLE = 10
# Both stores take a few thousand bound values in one statement; this stays far below.
_IDS_PER_STATEMENT = 500
# What is read whole is read by so many rows, so that whoever else is in this process gets their turn.
_ROWS_AT_ONCE = 200
_DOCUMENT = (
    DocumentRow.kind,
    DocumentRow.name,
    DocumentRow.version,
    DocumentRow.body,
    DocumentRow.author,
    DocumentRow.at,
    DocumentRow.since,
)
_KEY = tuple(KeyRow.__table__.columns)


class SqlTransaction:
    """A change under way: it holds the counter's lock until it ends. Made by `SqlStore.writing` only.

    timeout_seconds bounds each of its steps; between them it may think.
    """

    def __init__(self, connection: AsyncConnection, at: datetime, version: int, *, timeout_seconds: float) -> None:
        self._connection = connection
        self._at = at
        self._version = version
        self._timeout_seconds = timeout_seconds
        self.records: list[AuditRecord] = []

    @property
    def at(self) -> datetime:
        """The instant of everything written here."""
        return self._at

    @property
    def version(self) -> int:
        """The version of the newest change, of this transaction or before it."""
        return self._version

    async def archive(self) -> Archive:
        """All documents, as they stand under this transaction's lock."""
        async with asyncio.timeout(self._timeout_seconds * _WHOLE):
            return await _archive(self._connection)

    async def write(self, documents: Sequence[Document]) -> None:
        """Add versions."""
        rows = [_document_values(each) | {"body": canonical_json(each.body)} for each in documents]
        async with asyncio.timeout(self._timeout_seconds * _WHOLE):
            await self._connection.execute(insert(DocumentRow), rows)

    async def withdraw(self, documents: Sequence[Document]) -> None:
        """Add versions that say: no longer in force."""
        rows = [_document_values(each) | {"body": None} for each in documents]
        async with asyncio.timeout(self._timeout_seconds * _WHOLE):
            await self._connection.execute(insert(DocumentRow), rows)

    async def add_key(self, digest: bytes, key: Key) -> None:
        """Add a key."""
        await self._execute(insert(KeyRow).values(_key_values(digest, key)))

    async def revoke_key(self, key_id: str, by: str) -> bool:
        """Revoke a key that is not yet revoked; whether there was one."""
        unrevoked = update(KeyRow).where(KeyRow.id == key_id, KeyRow.revoked_at.is_(None))
        return await self._execute(unrevoked.values(revoked_at=self._at, revoked_by=by)) == 1

    async def put_credential(self, name: str, sealed: bytes, by: str) -> None:
        """Add or replace a credential."""
        await self.remove_credential(name)
        await self._execute(insert(CredentialRow).values(name=name, sealed=sealed, author=by, at=self._at))

    async def remove_credential(self, name: str) -> bool:
        """Remove a credential; whether there was one."""
        return await self._execute(delete(CredentialRow).where(CredentialRow.name == name)) == 1

    async def note(self, kind: str, ref: str | None, record: AuditRecord) -> None:
        """Put the change in the feed and its record in the trail."""
        self._version += 1
        await self._execute(insert(ChangeRow).values(version=self._version, kind=kind, ref=ref, at=self._at))
        counter = update(ChangeCounterRow).where(ChangeCounterRow.id == _COUNTER_ID)
        await self._execute(counter.values(version=self._version))
        self.records.append(record)

    async def _execute(self, statement: Insert | Update | Delete) -> int:
        async with asyncio.timeout(self._timeout_seconds):
            return (await self._connection.execute(statement)).rowcount


class SqlStore:
    """The one door through which a process administers: its changes wait for one another, since a chain has one writer.

    audit: this process's chain for administration; nothing else may append to it. committed: told the version of every
    change that is durable; it must not fail. timeout_seconds bounds the wait for any one answer of the store's, ten
    times it where everything is read: a connection may be dead without saying so.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        audit: AuditSink,
        *,
        clock: Clock,
        committed: Callable[[int], Awaitable[None]] | None = None,
        timeout_seconds: float = 5.0,
    ) -> None:
        self._engine = engine
        self._reading = reading(engine)
        self._audit = audit
        self._clock = clock
        self._committed = committed
        self._timeout_seconds = timeout_seconds
        self._lock = asyncio.Lock()

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[SqlTransaction]:
        """A transaction that commits at the end of the block and leaves nothing behind when the block raises."""
        head = None
        async with self._lock:
            try:
                async with reachable(), self._engine.connect() as connection:
                    transaction = await self._begun(connection)
                    yield transaction
                    async with asyncio.timeout(self._timeout_seconds * _WHOLE):
                        if transaction.records:
                            head = await self._audit.append(connection, transaction.records)
                        await connection.commit()
            except BaseException:
                # A cancelled commit may have happened or not: only the store knows where the chain ends.
                self._audit.forget()
                raise
            if head is not None:
                self._audit.advance(head)
        if head is not None and self._committed is not None:
            await self._committed(transaction.version)

    async def _begun(self, connection: AsyncConnection) -> SqlTransaction:
        async with asyncio.timeout(self._timeout_seconds):
            version, at = await _locked_version(connection), self._clock.now()
        return SqlTransaction(connection, at, version, timeout_seconds=self._timeout_seconds)

    def _single(self) -> AbstractAsyncContextManager[None]:
        return reachable(self._timeout_seconds)

    def _whole(self) -> AbstractAsyncContextManager[None]:
        return reachable(self._timeout_seconds * _WHOLE)

    async def version(self) -> int:
        """The version of the newest change; 0 before the first."""
        async with self._single(), self._reading.connect() as connection:
            return await connection.scalar(select(ChangeCounterRow.version)) or 0

    async def changes_since(self, version: int, *, limit: int) -> list[ChangeNote]:
        """The changes after `version`, oldest first."""
        statement = (
            select(ChangeRow.version, ChangeRow.kind, ChangeRow.ref, ChangeRow.at)
            .where(ChangeRow.version > version)
            .order_by(ChangeRow.version)
            .limit(limit)
        )
        async with self._single(), self._reading.connect() as connection:
            return [ChangeNote(*row) for row in await connection.execute(statement)]

    async def archive(self) -> Archive:
        """All documents, durable ones only."""
        async with self._whole(), self._reading.connect() as connection:
            return await _archive(connection)

    async def history(self, kind: str, name: str) -> list[Document]:
        """Every version of one document that was ever in force, oldest first."""
        statement = (
            select(*_DOCUMENT)
            .where(DocumentRow.kind == kind, DocumentRow.name == name, DocumentRow.body.is_not(None))
            .order_by(DocumentRow.version)
        )
        async with self._whole(), self._reading.connect() as connection:
            return [_document(row) for row in await connection.execute(statement)]

    async def keys(self, key_ids: Iterable[str] | None = None) -> list[tuple[bytes, Key]]:
        """The given keys, or all, each behind its digest."""
        if key_ids is None:
            return await self._every_key()
        found: list[tuple[bytes, Key]] = []
        wanted, shared = list(key_ids), _Shared()
        async with self._single(), self._reading.connect() as connection:
            for start in range(0, len(wanted), _IDS_PER_STATEMENT):
                some = KeyRow.id.in_(wanted[start : start + _IDS_PER_STATEMENT])
                found += [_key(row, shared) for row in await connection.execute(select(*_KEY).where(some))]
        return found

    async def _every_key(self) -> list[tuple[bytes, Key]]:
        found: list[tuple[bytes, Key]] = []
        shared = _Shared()
        async with self._whole(), self._reading.connect() as connection:
            rows = await connection.stream(select(*_KEY))
            async for some in rows.partitions(_ROWS_AT_ONCE):
                found += [_key(row, shared) for row in some]
        return found

    async def credentials(self) -> dict[str, bytes]:
        """All sealed credentials by name."""
        async with self._whole(), self._reading.connect() as connection:
            rows = await connection.execute(select(CredentialRow.name, CredentialRow.sealed))
            return {name: bytes(sealed) for name, sealed in rows}


@asynccontextmanager
async def reachable(seconds: float | None = None) -> AsyncIterator[None]:
    """Raises StoreUnavailable for what goes wrong around the store; what our own statements did wrong stays a bug.

    seconds: how long the store may take; None: whoever asks bounds it.
    """
    try:
        async with asyncio.timeout(seconds):
            yield
    except (IntegrityError, ProgrammingError, DataError):
        raise
    except (DBAPIError, PoolTimeout, OSError, TimeoutError) as fault:
        raise StoreUnavailable("The state of record cannot be reached; try again.") from fault


async def _locked_version(connection: AsyncConnection) -> int:
    # The counter is made by whoever comes first; on SQLite the whole store is locked by now.
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    first = dialect.insert(ChangeCounterRow).values(id=_COUNTER_ID, version=0).on_conflict_do_nothing()
    await connection.execute(first)
    version = await connection.scalar(
        select(ChangeCounterRow.version).where(ChangeCounterRow.id == _COUNTER_ID).with_for_update()
    )
    assert version is not None
    return version


async def _archive(connection: AsyncConnection) -> Archive:
    newest = (
        select(DocumentRow.kind, DocumentRow.name, func.max(DocumentRow.version).label("version"))
        .group_by(DocumentRow.kind, DocumentRow.name)
        .subquery()
    )
    statement = (
        select(*_DOCUMENT)
        .join(
            newest,
            (DocumentRow.kind == newest.c.kind)
            & (DocumentRow.name == newest.c.name)
            & (DocumentRow.version == newest.c.version),
        )
        .order_by(DocumentRow.kind, DocumentRow.name)
    )
    documents, versions = list[Document](), dict[tuple[str, str], int]()
    rows = await connection.stream(statement)
    async for some in rows.partitions(_ROWS_AT_ONCE):
        documents += [_document(row) for row in some if row.body is not None]
        versions.update({(row.kind, row.name): row.version for row in some})
    return Archive(tuple(documents), versions)


def _document(row: Row[*tuple[Any, ...]]) -> Document:
    return Document(row.kind, row.name, row.version, from_json(row.body), row.author, row.at, row.since)


def _document_values(document: Document) -> dict[str, object]:
    return {
        "kind": document.kind,
        "name": document.name,
        "version": document.version,
        "author": document.author,
        "at": document.at,
        "since": document.since,
    }


class _Shared:
    """What many keys have in common, kept once: without it 100,000 keys take 40 MiB more."""

    def __init__(self) -> None:
        self._texts: dict[str | None, str | None] = {}
        self._roles: dict[str, frozenset[Role]] = {}
        self._allowances: dict[tuple[int | None, ...], Allowance] = {}

    def text(self, text: str | None) -> str | None:
        """The same text."""
        return self._texts.setdefault(text, text)

    def roles(self, written: str) -> frozenset[Role]:
        """The roles of a row."""
        if written not in self._roles:
            self._roles[written] = frozenset(Role(role) for role in written.split(",") if role)
        return self._roles[written]

    def allowance(self, *limits: int | None) -> Allowance:
        """The limits of a row."""
        if limits not in self._allowances:
            self._allowances[limits] = Allowance(*limits)
        return self._allowances[limits]


def _key(row: Row[*tuple[Any, ...]], shared: _Shared) -> tuple[bytes, Key]:
    key = Key(
        id=row.id,
        name=row.name,
        created_at=row.created_at,
        created_by=shared.text(row.created_by) or "",
        app=shared.text(row.app),
        user=shared.text(row.user_name),
        roles=shared.roles(row.roles),
        allowance=shared.allowance(row.requests_per_minute, row.tokens_per_minute, row.concurrent),
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
        revoked_by=row.revoked_by,
    )
    return bytes(row.digest), key


def _key_values(digest: bytes, key: Key) -> dict[str, object]:
    return {
        "id": key.id,
        "digest": digest,
        "name": key.name,
        "app": key.app,
        "user": key.user,
        "roles": ",".join(sorted(key.roles)),
        "requests_per_minute": key.allowance.requests_per_minute,
        "tokens_per_minute": key.allowance.tokens_per_minute,
        "concurrent": key.allowance.concurrent,
        "expires_at": key.expires_at,
        "created_at": key.created_at,
        "created_by": key.created_by,
        "revoked_at": key.revoked_at,
        "revoked_by": key.revoked_by,
    }
