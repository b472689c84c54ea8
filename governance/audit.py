"""The trail: one hash chain per writer, written inside other people's transactions and verified without them.

A chain shows edits, gaps and exchanges. It cannot show by itself that its end was cut off or that all of it was
written anew: compare the heads of a verdict with heads kept elsewhere for that.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Generic

from governance.store import ChainStore, ConnectionT, Link, TrailStore, canonical_json, from_json
from kernel import AuditRecord, ChainHead, Clock

_GENESIS = ChainHead(0, "0" * 64)
# About 5 ms of hashing between two chances for everyone else on the loop.
_PAGE = 1_000


@dataclass(frozen=True, slots=True)
class StoredRecord:
    """A record as it stands in the trail."""

    writer: str
    sequence: int
    at: datetime
    event: str
    turn_id: str | None
    app: str | None
    department: str | None
    body: Mapping[str, Any]
    digest: str


@dataclass(frozen=True, slots=True)
class Break:
    """Where a writer's chain first fails, and how: `edited`, `missing` or `reordered`.

    reordered: the link does not follow the one before it, because rows were exchanged, inserted or made anew.
    """

    writer: str
    sequence: int
    reason: str


@dataclass(frozen=True, slots=True)
class AuditVerdict:
    """The result of walking every chain; heads are the last good link of each, for comparison with an anchor."""

    records: int
    breaks: tuple[Break, ...]
    heads: Mapping[str, ChainHead]

    @property
    def intact(self) -> bool:
        """Whether no chain is broken."""
        return not self.breaks


class AuditTrail(Generic[ConnectionT]):
    """A writer's chain. One task at a time appends; two processes must not share a writer's name.

    records: how many of them are durable, as far as this process knows.
    """

    def __init__(self, store: ChainStore[ConnectionT], writer: str, *, clock: Clock) -> None:
        self._store = store
        self._writer = writer
        self._clock = clock
        self._head: ChainHead | None = None
        self.records = 0

    async def append(self, connection: ConnectionT, records: Sequence[AuditRecord]) -> ChainHead:
        """Write the records within the transaction open on `connection`; nothing counts until `advance`."""
        head = self._head or await self._store.head(connection, self._writer) or _GENESIS
        # Until the caller says that this is durable, only the store knows: a second append asks it again.
        self._head = None
        at, links, sequence, digest = self._clock.now(), [], head.sequence, head.digest
        for record in records:
            sequence += 1
            link = self._link(record, sequence, at, digest)
            links.append(link)
            digest = link.digest
        if links:
            await self._store.insert(connection, links)
        return ChainHead(sequence, digest)

    def advance(self, head: ChainHead) -> None:
        """The transaction is durable: go on from here."""
        self._head, self.records = head, head.sequence

    def forget(self) -> None:
        """The transaction's fate is unknown or it failed: read the head from the store before the next link."""
        self._head = None

    def _link(self, record: AuditRecord, sequence: int, at: datetime, previous: str) -> Link:
        link = Link(
            self._writer,
            sequence,
            at,
            record.event,
            record.turn_id,
            record.app,
            record.department,
            canonical_json(record.body),
            previous,
        )
        link.digest = digest_of(link)
        return link


class AuditReader:
    """Reads and verifies the chains of all writers."""

    def __init__(self, store: TrailStore) -> None:
        self._store = store

    async def verify(self, anchors: Mapping[str, ChainHead] | None = None) -> AuditVerdict:
        """Walk every chain in order, in pages, and name each one's first break.

        anchors: heads noted earlier and kept elsewhere; a chain that no longer contains its anchor is broken.
        """
        anchors = anchors or {}
        records, breaks, heads = 0, [], {}
        for writer in sorted({*await self._store.writers(), *anchors}):
            head, broken = await self._walk(writer, anchors.get(writer, _GENESIS))
            records += head.sequence
            heads[writer] = head
            if broken:
                breaks.append(Break(writer, head.sequence + 1, broken))
        return AuditVerdict(records, tuple(breaks), heads)

    async def of_turn(self, turn_id: str) -> list[StoredRecord]:
        """Everything the trail says about one turn, oldest first."""
        return [_stored(link) for link in await self._store.of_turn(turn_id)]

    async def recent(self, *, limit: int = 100, event: str | None = None) -> list[StoredRecord]:
        """The newest records of all writers, newest first. event: a prefix, such as `admin.`."""
        return [_stored(link) for link in await self._store.recent(limit=limit, event=event)]

    async def _walk(self, writer: str, anchor: ChainHead) -> tuple[ChainHead, str | None]:
        head = _GENESIS
        while links := await self._store.page(writer, after=head.sequence, limit=_PAGE):
            for link in links:
                if broken := _fault(link, head, anchor):
                    return head, broken
                head = ChainHead(link.sequence, link.digest)
        return head, "missing" if head.sequence < anchor.sequence else None


def digest_of(link: Link) -> str:
    """SHA-256, hex, over the JSON array of everything in the link but its digest; body stands as its text."""
    facts = (link.writer, link.sequence, _stamp(link.at), link.event, link.turn_id, link.app, link.department)
    return hashlib.sha256(canonical_json((*facts, link.body, link.previous)).encode()).hexdigest()


@lru_cache(_PAGE)  # all links of a commit have one
def _stamp(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="microseconds")


def _fault(link: Link, head: ChainHead, anchor: ChainHead) -> str | None:
    if link.sequence != head.sequence + 1:
        return "missing"
    if link.previous != head.digest:
        return "reordered"
    if link.digest != digest_of(link) or (link.sequence == anchor.sequence and link.digest != anchor.digest):
        return "edited"
    return None


def _stored(link: Link) -> StoredRecord:
    return StoredRecord(
        link.writer,
        link.sequence,
        link.at,
        link.event,
        link.turn_id,
        link.app,
        link.department,
        from_json(link.body),
        link.digest,
    )
