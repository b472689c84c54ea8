"""Declared things: planned, applied, withdrawn and exported by one mechanism, whatever their kind.

What a kind's fields mean, and whether all documents together make sense, is for those who own the kinds.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ValidationError

from governance import declarations
from governance.declarations import Declaration
from governance.errors import NotFound
from governance.store import Archive, ChangeNote, Store, Transaction
from governance.wire import NAME_RULE, is_name
from kernel import AuditRecord, Clock, Document, InvalidDeclaration

_NOTES_MAX = 1_000


class Action(StrEnum):
    """What becomes of a document."""

    CREATE = "create"
    UPDATE = "update"
    REMOVE = "remove"
    UNCHANGED = "unchanged"


@dataclass(frozen=True, slots=True)
class FieldChange:
    """One field, by its dotted path; None where it is not set."""

    path: str
    old: Any
    new: Any


@dataclass(frozen=True, slots=True)
class Change:
    """What applying does, or did, to one document. version: the one in force afterwards, or withdrawn by it."""

    kind: str
    name: str
    action: Action
    version: int
    fields: tuple[FieldChange, ...] = ()


@dataclass(frozen=True, slots=True)
class _Outcome:
    """A plan worked out against an archive: what changes, and all documents that would then be in force."""

    changes: list[Change]
    documents: list[Document]
    withdrawn: list[Document]

    @property
    def written(self) -> list[Document]:
        """The documents with a new version."""
        changed = {(c.kind, c.name) for c in self.changes if c.action in {Action.CREATE, Action.UPDATE}}
        return [document for document in self.documents if (document.kind, document.name) in changed]


class Register:
    """All declared documents. kinds: the pydantic class that validates each kind's body.

    check: receives the set of documents that would be in force and raises InvalidDeclaration where it makes no sense.
    It is called in a thread, because it takes long where much is declared.
    """

    def __init__(
        self,
        store: Store,
        kinds: Mapping[str, type[BaseModel]],
        *,
        clock: Clock,
        check: Callable[[list[Document]], None],
    ) -> None:
        self._store = store
        self._kinds = dict(kinds)
        self._clock = clock
        self._check = check

    async def load(self) -> tuple[int, list[Document]]:
        """All documents in force, by kind and name, at least as new as the version."""
        version = await self._store.version()
        return version, list((await self._store.archive()).documents)

    async def history(self, kind: str, name: str) -> list[Document]:
        """Every version of one document that was ever in force, oldest first."""
        return await self._store.history(kind, name)

    async def version(self) -> int:
        """The version of the newest change of any sort; 0 before the first."""
        return await self._store.version()

    async def changes_since(self, version: int) -> list[ChangeNote]:
        """At most 1,000 changes after `version`, oldest first: go on from the last one's version."""
        return await self._store.changes_since(version, limit=_NOTES_MAX)

    def schema(self) -> dict[str, Any]:
        """The file that `parse` reads, as a JSON schema."""
        return declarations.schema(self._kinds)

    def parse(self, text: str) -> list[Declaration]:
        """The declarations of a file, for the kinds of this register. Slow for large files: call it in a thread."""
        return declarations.parse(text, self._kinds)

    async def plan(self, wanted: Sequence[Declaration], *, prune: bool = False) -> list[Change]:
        """What `apply` would do, having checked everything that `apply` checks. Writes nothing."""
        normal = self._normalised(wanted)
        archive = await self._store.archive()
        outcome = self._outcome(archive, normal, author="", at=self._clock.now(), prune=prune)
        await asyncio.to_thread(self._check, outcome.documents)
        return outcome.changes

    async def apply(self, wanted: Sequence[Declaration], by: str, *, prune: bool = False) -> list[Change]:
        """Put the declarations in force, all or none, in one transaction; nothing is written if nothing changes.

        prune: withdraw every document, of any kind, that is not declared here. Raises InvalidDeclaration.
        """
        if prune and not wanted:
            raise InvalidDeclaration(
                "Pruning with nothing declared would withdraw everything; remove documents one by one."
            )
        normal = self._normalised(wanted)
        async with self._store.writing() as transaction:
            archive = await transaction.archive()
            outcome = self._outcome(archive, normal, author=by, at=transaction.at, prune=prune)
            await self._commit(transaction, outcome, by)
        return outcome.changes

    async def remove(self, kind: str, name: str, by: str) -> None:
        """Withdraw one document. Raises NotFound, and InvalidDeclaration where others still name it."""
        async with self._store.writing() as transaction:
            archive = await transaction.archive()
            going = [each for each in archive.documents if (each.kind, each.name) == (kind, name)]
            if not going:
                raise NotFound(f"There is no {kind[:64]} '{name[:128]}'.")
            staying = [each for each in archive.documents if each is not going[0]]
            gone = _withdrawn(going, author=by, at=transaction.at)
            outcome = _Outcome([Change(kind, name, Action.REMOVE, gone[0].version)], staying, gone)
            await self._commit(transaction, outcome, by)

    async def record(self, record: AuditRecord) -> None:
        """Put an administrative fact that declares nothing in the trail; durable on return."""
        async with self._store.writing() as transaction:
            await transaction.note("record", None, record)

    def export(self, documents: Iterable[Document]) -> list[Declaration]:
        """The declarations that, applied, change nothing; what equals a default is left out."""
        return [
            Declaration(
                each.kind,
                each.name,
                self._kinds[each.kind].model_validate(each.body).model_dump(mode="json", exclude_defaults=True),
            )
            for each in documents
            if each.kind in self._kinds
        ]

    async def _commit(self, transaction: Transaction, outcome: _Outcome, by: str) -> None:
        changed = [change for change in outcome.changes if change.action is not Action.UNCHANGED]
        if not changed:
            return
        await asyncio.to_thread(self._check, outcome.documents)
        if written := outcome.written:
            await transaction.write(written)
        if outcome.withdrawn:
            await transaction.withdraw(outcome.withdrawn)
        facts = [
            {"kind": each.kind, "name": each.name, "action": each.action.value, "version": each.version}
            for each in changed
        ]
        await transaction.note("documents", None, AuditRecord("admin.applied", {"by": by, "changes": facts}))

    def _outcome(
        self,
        archive: Archive,
        normal: Mapping[tuple[str, str], dict[str, Any]],
        *,
        author: str,
        at: datetime,
        prune: bool,
    ) -> _Outcome:
        in_force = {(each.kind, each.name): each for each in archive.documents}
        changes, result = [], dict(in_force)
        for (kind, name), body in normal.items():
            old = in_force.get((kind, name))
            fields = tuple(_differences(self._as_now(old) if old else {}, body))
            if old and not fields:
                changes.append(Change(kind, name, Action.UNCHANGED, old.version))
                continue
            version = archive.versions.get((kind, name), 0) + 1
            since = old.since if old and not self._is_another(kind, fields) else version
            result[kind, name] = Document(kind, name, version, body, author, at, since)
            changes.append(Change(kind, name, Action.UPDATE if old else Action.CREATE, version, fields))
        going = [each for key, each in in_force.items() if prune and key not in normal]
        gone = _withdrawn(going, author=author, at=at)
        for each in gone:
            del result[each.kind, each.name]
            changes.append(Change(each.kind, each.name, Action.REMOVE, each.version))
        return _Outcome(changes, list(result.values()), gone)

    def _is_another(self, kind: str, changed: Iterable[FieldChange]) -> bool:
        """Whether these changes make another thing of it: its kind names the fields that may not change in IDENTITY."""
        identity: tuple[str, ...] = getattr(self._kinds[kind], "IDENTITY", ())
        return any(field.path.partition(".")[0] in identity for field in changed)

    def _as_now(self, document: Document) -> Mapping[str, Any]:
        # A field that a release added has its default in what was stored before: that is no change.
        try:
            return self._kinds[document.kind].model_validate(document.body).model_dump(mode="json")
        except ValidationError:
            return document.body

    def _normalised(self, wanted: Sequence[Declaration]) -> dict[tuple[str, str], dict[str, Any]]:
        """Every body as its kind writes it, defaults spelled out. Raises InvalidDeclaration with all faults at once."""
        normal: dict[tuple[str, str], dict[str, Any]] = {}
        faults: list[str] = []
        for each in wanted:
            label = f"{each.kind[:64]} '{each.name[:128]}'"
            if each.kind not in self._kinds:
                faults.append(f"{label}: kind is unknown; the kinds are {', '.join(sorted(self._kinds))}")
                continue
            if not is_name(each.name):
                faults.append(f"{label}: name is {NAME_RULE}")
            if (each.kind, each.name) in normal:
                faults.append(f"{label}: declared twice; keep one")
            try:
                body = self._kinds[each.kind].model_validate(each.body).model_dump(mode="json")
                normal[each.kind, each.name] = body
            except ValidationError as fault:
                faults += [f"{label}: {each_fault}" for each_fault in field_faults(fault, self._kinds[each.kind])]
        if faults:
            raise InvalidDeclaration("\n".join(faults))
        return normal


def field_faults(fault: ValidationError, shape: type[BaseModel]) -> Iterator[str]:
    """Each fault as `field: what is wrong`, without the value at fault, which may be a secret."""
    for each in fault.errors(include_url=False, include_context=False, include_input=False):
        path = ".".join(str(part) for part in each["loc"]) or "body"
        if each["type"] == "extra_forbidden":
            yield f"{path}: unknown field; {shape.__name__} has {', '.join(sorted(shape.model_fields))}"
        else:
            yield f"{path}: {each['msg']}"


def _withdrawn(documents: Iterable[Document], *, author: str, at: datetime) -> list[Document]:
    return [Document(each.kind, each.name, each.version + 1, {}, author, at) for each in documents]


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> Iterator[FieldChange]:
    for field in dict.fromkeys((*old, *new)):
        before, after = old.get(field), new.get(field)
        if isinstance(before, dict) and isinstance(after, dict):
            yield from _differences(before, after, f"{prefix}{field}.")
        elif before != after:
            yield FieldChange(f"{prefix}{field}", before, after)
