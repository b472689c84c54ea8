"""Provider credentials, sealed at rest and open only in memory. Never exported, listed by name only."""

import hashlib
import secrets

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from governance.errors import NotFound, SealBroken
from governance.store import Store
from governance.wire import NAME_RULE, is_name
from kernel import AuditRecord, InvalidDeclaration

_MASTER_BYTES = 32
_KEY_ID_BYTES = 8
_NONCE_BYTES = 12
_SECRET_CHARACTERS_MAX = 16_384


class Vault:
    """AES-256-GCM: a seal opens only with its master key, in its own place, unaltered.

    Layout: 8 bytes naming the master key, 12 of nonce, then ciphertext and tag.
    """

    def __init__(self, master_key: bytes) -> None:
        if len(master_key) != _MASTER_BYTES:
            raise ValueError(f"the master key has {len(master_key)} bytes; {_MASTER_BYTES} are needed")
        self._cipher = AESGCM(master_key)
        self._key_id = hashlib.sha256(b"penstock master key\0" + master_key).digest()[:_KEY_ID_BYTES]

    def seal(self, plain: bytes, place: str) -> bytes:
        """The secret, closed. place: where it will stand; it opens nowhere else."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return self._key_id + nonce + self._cipher.encrypt(nonce, plain, place.encode())

    def open(self, sealed: bytes, place: str) -> bytes:
        """The secret. Raises SealBroken."""
        key_id, rest = sealed[:_KEY_ID_BYTES], sealed[_KEY_ID_BYTES:]
        if key_id != self._key_id:
            raise SealBroken(f"'{place}' was sealed with another master key; start with that key, or put it again.")
        try:
            return self._cipher.decrypt(rest[:_NONCE_BYTES], rest[_NONCE_BYTES:], place.encode())
        except (InvalidTag, ValueError) as fault:
            raise SealBroken(f"'{place}' was altered or moved; put it again.") from fault


class Credentials:
    """All credentials, open in memory; one that does not open is kept by name and says so when asked for."""

    def __init__(self, store: Store, vault: Vault) -> None:
        self._store = store
        self._vault = vault
        self._open: dict[str, str | SealBroken] = {}

    async def load(self) -> None:
        """Replace everything in memory by what the store holds."""
        sealed = await self._store.credentials()
        self._open = {name: self._unsealed(name, each) for name, each in sealed.items()}

    def get(self, name: str) -> str | None:
        """The secret, or None where there is none of that name. Raises SealBroken where there is one, unreadable."""
        found = self._open.get(name)
        if isinstance(found, SealBroken):
            raise SealBroken(found.message)
        return found

    def names(self) -> tuple[str, ...]:
        """Every credential's name, unreadable ones included, in order."""
        return tuple(sorted(self._open))

    async def put(self, name: str, secret: str, by: str) -> None:
        """Add or replace a credential, effective in this process at once. Raises InvalidDeclaration."""
        if not is_name(name):
            raise InvalidDeclaration(f"credential: its name is {NAME_RULE}")
        # A line's end that came along with a pasted key is the commonest reason for a provider's 401.
        if not 0 < len(secret) <= _SECRET_CHARACTERS_MAX or secret != secret.strip():
            raise InvalidDeclaration(
                f"credential '{name}': the secret has 1 to {_SECRET_CHARACTERS_MAX} characters, no space around them"
            )
        sealed = self._vault.seal(secret.encode(), _place(name))
        async with self._store.writing() as transaction:
            await transaction.put_credential(name, sealed, by)
            await transaction.note("credential", name, _record("admin.credential_put", name, by))
        self._open[name] = secret

    async def remove(self, name: str, by: str) -> None:
        """Remove a credential, in this process at once. Raises NotFound."""
        async with self._store.writing() as transaction:
            if not await transaction.remove_credential(name):
                raise NotFound(f"There is no credential '{name[:128]}'.")
            await transaction.note("credential", name, _record("admin.credential_removed", name, by))
        self._open.pop(name, None)

    def _unsealed(self, name: str, sealed: bytes) -> str | SealBroken:
        try:
            return self._vault.open(sealed, _place(name)).decode()
        except SealBroken as broken:
            return broken


def _place(name: str) -> str:
    return f"credentials/{name}"


def _record(event: str, name: str, by: str) -> AuditRecord:
    return AuditRecord(event, {"name": name, "by": by})
