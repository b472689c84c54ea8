"""Brings the store's schema to this release's, once, however many processes start together."""

import asyncio
from pathlib import Path
from types import MappingProxyType

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

import migrations
from kernel.db import make_engine, reading

# Any number that no other user of the database takes: "penstock" as a signed 64-bit integer.
_ADVISORY_LOCK = 0x70656E73746F636B
_PATIENCE_SECONDS = 60.0
# While a statement waits for a table's lock, every turn that needs the table waits behind it.
_TABLE_LOCK_SECONDS = 2.0
_TRIES = 5
_LOCK_NOT_AVAILABLE = "55P03"

_BUSY = (
    "The schema could not be changed: somebody holds a table of ours for long. Look for long transactions in "
    "pg_stat_activity, end them, and start again; nothing was changed."
)
_DURABLE = MappingProxyType(
    {
        "synchronous_commit": "a pooler in between may drop the setting that we connect with; set it on for this user",
        "fsync": "set fsync = on in postgresql.conf and reload",
    }
)


class SchemaNewer(Exception):
    """The store was migrated by a newer release; this one refuses to touch it. Start the newer release."""


class SchemaBusy(Exception):
    """Others hold a table for so long that it cannot be migrated while they work."""


class NotDurable(Exception):
    """The store acknowledges what it may lose: nothing that is booked there would be safe."""


async def migrate(engine: AsyncEngine, *, lock_seconds: float = _TABLE_LOCK_SECONDS, tries: int = _TRIES) -> None:
    """Run what is missing of the history, in one transaction; a failure leaves the store as it was.

    Raises SchemaNewer and SchemaBusy. Concurrent starts wait for each other: PostgreSQL by an advisory lock, SQLite by
    its own. It works on an engine of its own, because a history takes longer than a turn may wait; for a table's lock
    it waits `lock_seconds`, lets the others pass for as long, and tries again.
    """
    patient = make_engine(engine.url, timeout_seconds=_PATIENCE_SECONDS)
    try:
        for tried in range(1, tries + 1):
            try:
                async with patient.begin() as connection:
                    if connection.dialect.name == "postgresql":
                        await connection.execute(text(f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})"))
                        await connection.execute(text(f"SET LOCAL lock_timeout = {int(lock_seconds * 1000)}"))
                    await connection.run_sync(_upgrade)
            except DBAPIError as failed:
                if getattr(failed.orig, "sqlstate", None) != _LOCK_NOT_AVAILABLE:
                    raise
                if tried == tries:
                    raise SchemaBusy(_BUSY) from failed
                await asyncio.sleep(lock_seconds)
            else:
                return
    finally:
        await patient.dispose()


async def require_durable(engine: AsyncEngine) -> None:
    """Ask the store, as our connections see it, whether what it acknowledges survives a crash. Raises NotDurable."""
    if engine.dialect.name != "postgresql":
        return  # make_engine sets it, and there is nothing in between that could unset it
    async with reading(engine).connect() as connection:
        for setting, cure in _DURABLE.items():
            if (await connection.execute(text(f"SHOW {setting}"))).scalar_one() == "off":
                raise NotDurable(f"PostgreSQL runs with {setting} off and could lose what was booked: {cure}")


async def pending(engine: AsyncEngine) -> bool:
    """Whether this release's history holds something the store lacks. Raises SchemaNewer."""
    async with engine.begin() as connection:
        return await connection.run_sync(lambda sync: _current(sync) != _scripts().get_current_head())


async def downgrade(engine: AsyncEngine) -> None:
    """Undo the whole history: every table of ours goes, with what is in it. For tests of the history alone."""
    async with engine.begin() as connection:
        await connection.run_sync(_downgrade)


def _downgrade(connection: Connection) -> None:
    config = _config()
    config.attributes["connection"] = connection
    command.downgrade(config, "base")


def _upgrade(connection: Connection) -> None:
    if _current(connection) == _scripts().get_current_head():
        return
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _current(connection: Connection) -> str | None:
    current = MigrationContext.configure(connection).get_current_revision()
    known = {script.revision for script in _scripts().walk_revisions()}
    if current is not None and current not in known:
        raise SchemaNewer(f"The store's schema is at {current}, which this release does not know: start the newer one.")
    return current


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    config.set_main_option("path_separator", "os")
    return config


def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(_config())
