"""Keys: issued once, stored as digests, looked up in memory. What a key may do is decided elsewhere."""

import hashlib
import hmac
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from governance.directory import Directory
from governance.errors import InvalidKey, NotFound
from governance.store import Allowance, Key, Store
from governance.wire import NAME_RULE, is_name
from kernel import AuditRecord, Caller, Clock, DataClass, InvalidDeclaration, Role, new_id

_PREFIX = "pk-"
_KEY_BYTES = 32
_PEPPER_BYTES_MIN = 16


@dataclass(frozen=True, slots=True)
class NewKey:
    """What to issue: a key of an app, of a user, or, with neither, of an operator with roles."""

    name: str
    app: str | None = None
    user: str | None = None
    roles: frozenset[Role] = frozenset()
    expires_at: datetime | None = None
    limits: Allowance = field(default_factory=Allowance)


@dataclass(frozen=True, slots=True)
class CreatedKey:
    """An issued key. `key` is shown this once and kept nowhere."""

    id: str
    key: str = field(repr=False)


@dataclass(slots=True)
class _Entry:
    """A key with the caller it stood for in the directory it was last looked up in."""

    key: Key
    directory: Directory | None = None
    caller: Caller | None = None


class Mark(NamedTuple):
    """A state of `Keys`, to be asked about later."""

    changes: int
    directory: Directory


class Keys:
    """All keys in memory by digest, followed one by one through the change feed."""

    def __init__(self, store: Store, pepper: bytes, *, directory: Callable[[], Directory], clock: Clock) -> None:
        if len(pepper) < _PEPPER_BYTES_MIN:
            raise ValueError(f"the pepper has {len(pepper)} bytes; {_PEPPER_BYTES_MIN} are the least")
        self._store = store
        self._pepper = pepper
        self._directory = directory
        self._clock = clock
        self._by_digest: dict[bytes, _Entry] = {}
        self._digests: dict[str, bytes] = {}
        self._peppered: dict[bytes, bytes] = {}
        self._changes = 0

    async def load(self) -> None:
        """Replace everything in memory by what the store holds."""
        found = await self._store.keys()
        self._changes += 1
        self._by_digest = {digest: _Entry(key) for digest, key in found}
        self._digests = {key.id: digest for digest, key in found}

    async def refresh(self, key_ids: Iterable[str]) -> None:
        """Read these keys again; nothing else is touched."""
        for digest, key in await self._store.keys(key_ids):
            self._keep(digest, key)

    def identify(self, presented: str) -> Caller:
        """Who holds this key. Touches no store. Raises InvalidKey, which never says why to the caller."""
        entry = self._entry(presented)
        if entry is None:
            raise InvalidKey("unknown")
        key, directory = entry.key, self._directory()
        if key.revoked_at is not None:
            raise InvalidKey("revoked", key_id=key.id)
        if key.expires_at is not None and key.expires_at <= self._clock.now():
            raise InvalidKey("expired", key_id=key.id)
        if entry.directory is not directory:
            entry.directory, entry.caller = directory, _caller(key, directory)
        if entry.caller is None:
            raise InvalidKey("orphaned", key_id=key.id)
        return entry.caller

    def mark(self) -> "Mark":
        """What is known of keys and of whom they belong to, as of now."""
        return Mark(self._changes, self._directory())

    def is_unchanged(self, mark: "Mark") -> bool:
        """Whether whoever was identified then would be identified as the same now, but for expiry."""
        return mark.changes == self._changes and mark.directory is self._directory()

    def revoked_among(self, key_ids: Iterable[str]) -> frozenset[str]:
        """Those of the keys that are known here and revoked."""
        entries = {key_id: self._by_digest[self._digests[key_id]] for key_id in key_ids if key_id in self._digests}
        return frozenset(key_id for key_id, entry in entries.items() if entry.key.revoked_at is not None)

    def allowance_of(self, key_id: str) -> Allowance | None:
        """The key's own limits, for `Limits`."""
        digest = self._digests.get(key_id)
        return self._by_digest[digest].key.allowance if digest else None

    async def create(self, new: NewKey, by: str) -> CreatedKey:
        """Issue a key, effective in this process at once. Raises InvalidDeclaration."""
        self._check(new)
        secret = _PREFIX + secrets.token_urlsafe(_KEY_BYTES)
        digest = self._digest(_hashed(secret))
        async with self._store.writing() as transaction:
            key = Key(
                id=new_id("key"),
                name=new.name,
                created_at=transaction.at,
                created_by=by,
                app=new.app,
                user=new.user,
                roles=new.roles,
                allowance=new.limits,
                expires_at=new.expires_at,
            )
            await transaction.add_key(digest, key)
            await transaction.note("key", key.id, _record("admin.key_created", key, by))
        self._keep(digest, key)
        return CreatedKey(key.id, secret)

    async def revoke(self, key_id: str, by: str) -> None:
        """Make the key useless, in this process at once. Revoking twice changes nothing. Raises NotFound."""
        if key_id not in self._digests:
            await self.refresh([key_id])
        if key_id not in self._digests:
            raise NotFound(f"There is no key '{key_id[:64]}'.")
        key = self._by_digest[self._digests[key_id]].key
        async with self._store.writing() as transaction:
            if await transaction.revoke_key(key_id, by):
                await transaction.note("key", key_id, _record("admin.key_revoked", key, by))
        await self.refresh([key_id])

    async def listing(self) -> list[Key]:
        """All keys ever issued, by id, which is the order of their making."""
        return sorted((key for _, key in await self._store.keys()), key=lambda key: key.id)

    def _entry(self, presented: str) -> _Entry | None:
        # What the pepper makes of a key that was found is kept, since it is most of what finding one costs; of others
        # it is not, or whoever has no key could fill the memory.
        hashed = _hashed(presented)
        if (digest := self._peppered.get(hashed)) is not None:
            return self._by_digest.get(digest)
        digest = self._digest(hashed)
        entry = self._by_digest.get(digest)
        if entry is not None:
            if len(self._peppered) > len(self._by_digest):  # some of them are gone
                self._peppered.clear()
            self._peppered[hashed] = digest
        return entry

    def _digest(self, hashed: bytes) -> bytes:
        return hmac.digest(self._pepper, hashed, "sha256")

    def _keep(self, digest: bytes, key: Key) -> None:
        self._changes += 1
        self._by_digest[digest] = _Entry(key)
        self._digests[key.id] = digest

    def _check(self, new: NewKey) -> None:
        directory = self._directory()
        faults = []
        if not is_name(new.name):
            faults.append(f"name is {NAME_RULE}")
        if new.app is not None and new.app not in directory.apps:
            faults.append(f"app '{new.app[:128]}' is not declared; declare it first")
        if new.user is not None and new.user not in directory.users:
            faults.append(f"user '{new.user[:128]}' is not declared; declare it first")
        if [new.app is not None, new.user is not None, bool(new.roles)].count(True) != 1:
            faults.append("give exactly one of app, user and roles; a user's roles are declared with the user")
        if new.expires_at is not None and (new.expires_at.tzinfo is None or new.expires_at <= self._clock.now()):
            faults.append("expires_at is in the future and has a time zone")
        if faults:
            raise InvalidDeclaration("\n".join(f"key '{new.name[:128]}': {fault}" for fault in faults))


def _hashed(presented: str) -> bytes:
    return hashlib.sha256(presented.encode(errors="replace")).digest()


def _caller(key: Key, directory: Directory) -> Caller | None:
    if key.app is not None:
        app = directory.apps.get(key.app)
        return (
            None
            if app is None
            else Caller(
                key_id=key.id,
                name=key.name,
                department=app.department,
                app=app.name,
                data_class=app.data_class,
                use_cases=app.use_cases,
            )
        )
    if key.user is not None:
        user = directory.users.get(key.user)
        return (
            None
            if user is None
            else Caller(key_id=key.id, name=key.name, department=user.department, user=user.name, roles=user.roles)
        )
    return Caller(key_id=key.id, name=key.name, roles=key.roles, data_class=DataClass.INTERNAL)


def _record(event: str, key: Key, by: str) -> AuditRecord:
    body = {"key_id": key.id, "name": key.name, "user": key.user, "roles": sorted(key.roles), "by": by}
    return AuditRecord(event, body, app=key.app)
