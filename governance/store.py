"""What governance keeps, and what its thinking needs from a store. No SQL, and no secrets but sealed ones."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol, TypeVar

import msgspec

from kernel import AuditRecord, ChainHead, Document, Role

# A store's own connection: the thinking passes it on and never looks inside.
ConnectionT = TypeVar("ConnectionT")
ConnectionT_contra = TypeVar("ConnectionT_contra", contravariant=True)


@dataclass(frozen=True, slots=True)
class Allowance:
    """Limits of one app or key; None means none."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent: int | None = None


@dataclass(frozen=True, slots=True)
class Key:
    """An issued key without the key: it belongs to an app, to a user, or to an operator with roles."""

    id: str
    name: str
    created_at: datetime
    created_by: str
    app: str | None = None
    user: str | None = None
    roles: frozenset[Role] = frozenset()
    allowance: Allowance = field(default_factory=Allowance)
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    revoked_by: str | None = None


@dataclass(frozen=True, slots=True)
class ChangeNote:
    """One committed change. Versions grow in the order of commits, so that nobody who follows them misses one.

    kind: `documents`, `key` (ref is the key's id), `credential` (ref is its name) or `record`, which changes nothing.
    """

    version: int
    kind: str
    ref: str | None
    at: datetime


@dataclass(frozen=True, slots=True)
class Archive:
    """The documents in force, and the newest version of every name, withdrawn ones included."""

    documents: tuple[Document, ...]
    versions: Mapping[tuple[str, str], int]


class Link(msgspec.Struct):
    """One row of a writer's chain. body is canonical JSON text; previous and digest are lower-case hex.

    Not frozen, because a digest is made from everything else here and a copy per record shows on the hot path.
    """

    writer: str
    sequence: int
    at: datetime
    event: str
    turn_id: str | None
    app: str | None
    department: str | None
    body: str
    previous: str
    digest: str = ""


class Transaction(Protocol):
    """One administrative change: all of it becomes durable, with its audit record and its place in the feed, or none.

    at: the instant of everything written. No other change anywhere is between this one's reads and its writes.
    """

    @property
    def at(self) -> datetime:
        """The instant of everything written here."""
        ...

    async def archive(self) -> Archive:
        """All documents, as they stand under this transaction's lock."""
        ...

    async def write(self, documents: Sequence[Document]) -> None:
        """Add versions."""
        ...

    async def withdraw(self, documents: Sequence[Document]) -> None:
        """Add versions that say: no longer in force. Their bodies are not kept."""
        ...

    async def add_key(self, digest: bytes, key: Key) -> None:
        """Add a key."""
        ...

    async def revoke_key(self, key_id: str, by: str) -> bool:
        """Revoke a key that is not yet revoked; whether there was one."""
        ...

    async def put_credential(self, name: str, sealed: bytes, by: str) -> None:
        """Add or replace a credential."""
        ...

    async def remove_credential(self, name: str) -> bool:
        """Remove a credential; whether there was one."""
        ...

    async def note(self, kind: str, ref: str | None, record: AuditRecord) -> None:
        """Put the change in the feed and its record in the trail."""
        ...


class Store(Protocol):
    """The state of record for documents, keys and credentials. Losing it means refusing."""

    def writing(self) -> AbstractAsyncContextManager[Transaction]:
        """A transaction that commits at the end of the block and leaves nothing behind when the block raises."""
        ...

    async def version(self) -> int:
        """The version of the newest change; 0 before the first."""
        ...

    async def changes_since(self, version: int, *, limit: int) -> list[ChangeNote]:
        """The changes after `version`, oldest first."""
        ...

    async def archive(self) -> Archive:
        """All documents, durable ones only."""
        ...

    async def history(self, kind: str, name: str) -> list[Document]:
        """Every version of one document that was ever in force, oldest first."""
        ...

    async def keys(self, key_ids: Iterable[str] | None = None) -> list[tuple[bytes, Key]]:
        """The given keys, or all, each behind its digest."""
        ...

    async def credentials(self) -> dict[str, bytes]:
        """All sealed credentials by name."""
        ...


class ChainStore(Protocol[ConnectionT_contra]):
    """Where chains are written, inside somebody else's transaction."""

    async def head(self, connection: ConnectionT_contra, writer: str) -> ChainHead | None:
        """The last link of the writer, as the transaction sees it."""
        ...

    async def insert(self, connection: ConnectionT_contra, links: Sequence[Link]) -> None:
        """Add the links."""
        ...


class TrailStore(Protocol):
    """Where chains are read. Never changes anything."""

    async def writers(self) -> list[str]:
        """Everyone who ever wrote."""
        ...

    async def page(self, writer: str, *, after: int, limit: int) -> list[Link]:
        """The writer's next links by sequence."""
        ...

    async def of_turn(self, turn_id: str) -> list[Link]:
        """All links of one turn, oldest first."""
        ...

    async def recent(self, *, limit: int, event: str | None) -> list[Link]:
        """The newest links of all writers, newest first; `event` selects by prefix."""
        ...


def canonical_json(value: object) -> str:
    """JSON with sorted keys and no spaces; equal values give equal text."""
    return _canonical(value).decode()


def from_json(text: str) -> dict[str, Any]:
    """The object that `canonical_json` wrote."""
    return msgspec.json.decode(text, type=dict[str, Any])


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is not a JSON value")


_canonical = msgspec.json.Encoder(enc_hook=_plain, order="deterministic").encode
