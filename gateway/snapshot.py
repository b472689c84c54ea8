"""Everything declared, as immutable views that are swapped whole, and the feed that keeps them current.

Losing the store means the last views stay in force; no turn passes then anyway, since no hold can be made.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from cost import Book
from governance import ChangeNote, Credentials, Directory, Keys, Register, Rules
from kernel import Document, InvalidDeclaration
from router import Catalogue

_log = logging.getLogger("penstock.snapshot")


@dataclass(frozen=True, slots=True)
class View:
    """All documents in force, as each capability reads them."""

    directory: Directory
    rules: Rules
    catalogue: Catalogue
    book: Book

    @classmethod
    def of(cls, documents: Iterable[Document]) -> "View":
        """Build every view, or raise InvalidDeclaration for the first document that does not fit the others."""
        documents = list(documents)
        catalogue = Catalogue.of(documents)
        rules, book = Rules.of(documents, catalogue.bases), Book.of(documents, catalogue.bases)
        return cls(Directory.of(documents), rules, catalogue, book)


class Snapshot:
    """The view in force. Readers take it once per turn; it never changes under them."""

    def __init__(self) -> None:
        self.view = View.of([])

    def directory(self) -> Directory:
        """Departments, apps, users and use cases in force."""
        return self.view.directory

    def rules(self) -> Rules:
        """Policies and grants in force."""
        return self.view.rules

    def catalogue(self) -> Catalogue:
        """Providers, models and aliases in force."""
        return self.view.catalogue

    def book(self) -> Book:
        """Prices and budgets in force."""
        return self.view.book


class Feed:
    """Follows the store's change counter: keys one by one, documents and credentials as a whole."""

    def __init__(
        self, *, snapshot: Snapshot, register: Register, keys: Keys, credentials: Credentials, poll_seconds: float
    ) -> None:
        self._snapshot = snapshot
        self._register = register
        self._keys = keys
        self._credentials = credentials
        self._poll_seconds = poll_seconds
        self._lock = asyncio.Lock()
        self._version = -1
        self._hint = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.on_revoked: Callable[[Collection[str]], None] = lambda _: None

    async def load(self) -> None:
        """Read everything that is in force."""
        async with self._lock:
            self._version, documents = await self._register.load()
            self._snapshot.view = View.of(documents)
            await self._credentials.load()
            await self._keys.load()

    async def start(self) -> None:
        """Read everything, then follow."""
        await self.load()
        self._task = asyncio.create_task(self._follow(), name="change feed")

    async def close(self) -> None:
        """Stop following."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def catch_up(self) -> None:
        """Take in all that changed until now; called by whoever just changed something."""
        async with self._lock:
            while notes := await self._register.changes_since(self._version):
                await self._take_in(notes)

    async def _take_in(self, notes: Sequence[ChangeNote]) -> None:
        kinds = {note.kind for note in notes}
        key_ids = {note.ref for note in notes if note.kind == "key" and note.ref}
        await self._keys.refresh(key_ids)
        if revoked := self._keys.revoked_among(key_ids):
            self.on_revoked(revoked)
        if "credential" in kinds:
            await self._credentials.load()
        if "documents" in kinds:
            await self._renew()
        self._version = max(note.version for note in notes)

    async def _renew(self) -> None:
        """A new view of the documents; where they cannot be read (by an older release, say) the last one stays."""
        _, documents = await self._register.load()
        try:
            self._snapshot.view = await asyncio.to_thread(View.of, documents)
        except (InvalidDeclaration, LookupError, TypeError, ValueError) as unreadable:
            why = unreadable.message if isinstance(unreadable, InvalidDeclaration) else type(unreadable).__name__
            _log.error("what was declared cannot be put in force here: %s", why)

    async def hurry(self) -> None:
        """Somebody else changed something: look now instead of at the next poll. Returns at once, never fails."""
        self._hint.set()

    async def _follow(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._poll_seconds):
                    await self._hint.wait()
            self._hint.clear()
            try:
                await self.catch_up()
            except Exception as lost:  # noqa: BLE001 - a background loop outlives its store
                _log.warning("change feed: cannot follow (%s); retrying", type(lost).__name__)
