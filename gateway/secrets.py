"""The two secrets a process needs: the pepper of the keys and the master key of the credentials.

With SQLite they are made once and kept in the data folder, mode 0600; with PostgreSQL they must be given.
"""

import os
import secrets
from dataclasses import dataclass
from pathlib import Path

import msgspec

from gateway.settings import Settings

_MASTER_KEY_BYTES = 32


class SecretsUnusable(Exception):
    """A secret is missing, short or not what it should be; the message names it, never quotes it."""


@dataclass(frozen=True, slots=True)
class Secrets:
    """pepper: any length from 32 bytes. master_key: exactly 32 bytes."""

    pepper: bytes
    master_key: bytes


def read_secrets(settings: Settings) -> Secrets:
    """The secrets from the settings, else from the data folder, where they are made on the first start."""
    kept = _kept(settings.data_dir / "secrets.json") if settings.embedded else {}
    pepper = settings.key_pepper.get_secret_value() if settings.key_pepper else kept.get("key_pepper", "")
    master = settings.master_key.get_secret_value() if settings.master_key else kept.get("master_key", "")
    try:
        master_key = bytes.fromhex(master)
    except ValueError:
        master_key = b""
    if len(master_key) != _MASTER_KEY_BYTES:
        raise SecretsUnusable("master_key (PENSTOCK_MASTER_KEY) must be 64 hex digits")
    return Secrets(pepper.encode(), master_key)


def _kept(path: Path) -> dict[str, str]:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not path.exists():
        write_private(path, {"key_pepper": secrets.token_hex(32), "master_key": secrets.token_hex(_MASTER_KEY_BYTES)})
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, str])
    except msgspec.MsgspecError:
        raise SecretsUnusable(f"{path} is not the file that Penstock wrote; restore it from a backup") from None


def write_private(path: Path, content: object) -> None:
    """Write JSON that only this user can read, whole or not at all."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(content)) + b"\n")
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
