"""Brings the store's schema to this release's, once, however many processes start together."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncEngine

import migrations
from kernel.db import make_engine

# Any number that no other user of the database takes: "penstock" as a signed 64-bit integer.
_ADVISORY_LOCK = 0x70656E73746F636B
_PATIENCE_SECONDS = 60.0


class SchemaNewer(Exception):
    """The store was migrated by a newer release; this one refuses to touch it. Start the newer release."""


async def migrate(engine: AsyncEngine) -> None:
    """Run what is missing of the history, in one transaction; a failure leaves the store as it was.

    Raises SchemaNewer. Concurrent starts wait for each other: PostgreSQL by an advisory lock, SQLite by its own. It
    works on an engine of its own, because a history takes longer than a turn may wait.
    """
    patient = make_engine(engine.url, timeout_seconds=_PATIENCE_SECONDS)
    try:
        async with patient.begin() as connection:
            if connection.dialect.name == "postgresql":
                await connection.execute(text(f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})"))
            await connection.run_sync(_upgrade)
    finally:
        await patient.dispose()


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
