"""The change feed: everything, in order, and outliving what it cannot read."""

import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest

from gateway.schema import migrate
from gateway.settings import Settings
from gateway.snapshot import Feed, Snapshot
from gateway.wiring import build
from governance import Declaration
from governance.store import ChangeNote
from kernel import Document, StoreUnavailable

AT = datetime(2026, 1, 1, tzinfo=UTC)


class Declared:
    """A register whose changes are told a page at a time, and whose documents may be lost or unreadable."""

    def __init__(self, changes: int = 0) -> None:
        self.notes = [ChangeNote(version, "documents", None, AT) for version in range(1, changes + 1)]
        self.documents: list[Document] = []
        self.lost = False
        self.loads = 0

    async def changes_since(self, version: int) -> list[ChangeNote]:
        return [note for note in self.notes if note.version > version][:1000]

    async def load(self) -> tuple[int, list[Document]]:
        if self.lost:
            raise StoreUnavailable("lost")
        self.loads += 1
        return len(self.notes), self.documents


class Held:
    """Keys and credentials that note what was asked of them."""

    def __init__(self) -> None:
        self.loads = 0
        self.refreshed: set[str] = set()

    async def load(self) -> None:
        self.loads += 1

    async def refresh(self, key_ids: set[str]) -> None:
        self.refreshed |= key_ids

    def revoked_among(self, key_ids: set[str]) -> set[str]:
        return key_ids


def _feed(declared: Declared) -> tuple[Feed, Held]:
    held = Held()
    return Feed(snapshot=Snapshot(), register=declared, keys=held, credentials=held, poll_seconds=1), held


async def test_a_round_takes_in_all_changes_however_many_there_are() -> None:
    declared = Declared()
    feed, keys = _feed(declared)
    await feed.load()
    declared.notes = [ChangeNote(version, "key", f"key_{version}", AT) for version in range(1, 2502)]
    await feed.catch_up()
    assert len(keys.refreshed) == 2501


async def test_a_change_that_could_not_be_read_is_read_in_the_next_round() -> None:
    declared = Declared()
    feed, _ = _feed(declared)
    await feed.load()
    declared.notes = Declared(1).notes
    declared.documents = [Document("department", "sales", 1, {}, "me", AT)]
    declared.lost = True
    with pytest.raises(StoreUnavailable):
        await feed.catch_up()
    declared.lost = False
    await feed.catch_up()
    assert "sales" in feed._snapshot.directory().departments


@pytest.mark.parametrize("kind", ["app", "price", "model"])
async def test_a_document_that_is_unreadable_here_keeps_no_key_from_being_revoked(caplog, kind: str) -> None:
    declared = Declared()
    feed, keys = _feed(declared)
    await feed.load()
    before = feed._snapshot.view
    declared.documents = [Document(kind, "web", 1, {"of": "a newer release"}, "me", AT)]
    declared.notes = [ChangeNote(1, "documents", None, AT), ChangeNote(2, "key", "key_1", AT)]
    revoked: set[str] = set()
    feed.on_revoked = revoked.update
    await feed.catch_up()
    declared.notes.append(ChangeNote(3, "key", "key_2", AT))
    await feed.catch_up()
    assert revoked == keys.refreshed == {"key_1", "key_2"}
    assert feed._snapshot.view is before
    assert "cannot be put in force here" in caplog.text
    assert declared.loads == 2, "what is unreadable is not read again and again"


async def test_what_is_declared_is_checked_beside_the_loop(tmp_path: Path) -> None:
    platform = build(Settings(data_dir=tmp_path))
    await migrate(platform.engine)
    checked: list[threading.Thread] = []
    platform.register._check = lambda documents: checked.append(threading.current_thread())
    wanted = [Declaration("department", "sales", {})]
    await platform.register.plan(wanted)
    await platform.register.apply(wanted, by="me")
    assert len(checked) == 2
    assert threading.main_thread() not in checked
    await platform.dispose()
