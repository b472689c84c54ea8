"""The schema's history on both stores: it makes exactly the tables that the code knows, once, and only forwards."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, inspect, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from gateway.schema import NotDurable, SchemaBusy, SchemaNewer, downgrade, migrate, pending, require_durable
from kernel.db import Base, make_engine


@pytest.fixture
async def bare(store_url: str) -> AsyncIterator[AsyncEngine]:
    made = make_engine(store_url)
    yield made
    await made.dispose()


def _differences(connection: Connection) -> list:
    return compare_metadata(MigrationContext.configure(connection), Base.metadata)


async def test_the_history_makes_the_tables_that_the_code_knows(bare: AsyncEngine) -> None:
    assert await pending(bare)
    await migrate(bare)
    assert not await pending(bare)
    async with bare.connect() as connection:
        assert await connection.run_sync(_differences) == []


async def test_the_history_can_be_undone_to_nothing(bare: AsyncEngine) -> None:
    await migrate(bare)
    await downgrade(bare)
    async with bare.connect() as connection:
        assert await connection.run_sync(lambda sync: inspect(sync).get_table_names()) == ["alembic_version"]
    await migrate(bare)


async def test_processes_that_start_together_migrate_once(store_url: str) -> None:
    engines = [make_engine(store_url, timeout_seconds=30) for _ in range(5)]
    await asyncio.gather(*(migrate(engine) for engine in engines))
    assert not await pending(engines[0])
    await asyncio.gather(*(engine.dispose() for engine in engines))


async def test_a_store_of_a_newer_release_is_left_alone(bare: AsyncEngine) -> None:
    await migrate(bare)
    async with bare.begin() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(SchemaNewer):
        await migrate(bare)


@pytest.mark.postgres
async def test_a_migration_waits_shortly_for_a_table_in_use_and_gives_up_with_its_name(postgres_url: str) -> None:
    engine = make_engine(postgres_url, idle_seconds=30)
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE alembic_version (version_num varchar(32) PRIMARY KEY)"))
    async with engine.connect() as rival:
        await rival.execute(text("LOCK TABLE alembic_version IN ACCESS EXCLUSIVE MODE"))
        began = time.monotonic()
        with pytest.raises(SchemaBusy, match="pg_stat_activity"):
            await migrate(engine, lock_seconds=0.2, tries=2)
        assert time.monotonic() - began < 3
        trying = asyncio.create_task(migrate(engine, lock_seconds=0.2, tries=20))
        await asyncio.sleep(0.3)
        await rival.rollback()
        await trying
    assert not await pending(engine)
    await engine.dispose()


@pytest.mark.postgres
async def test_a_start_is_refused_where_acknowledged_rows_may_be_lost(postgres_url: str) -> None:
    engine = make_engine(postgres_url)
    await require_durable(engine)
    careless = create_async_engine(
        postgres_url, connect_args={"server_settings": {"synchronous_commit": "off"}}, poolclass=NullPool
    )
    with pytest.raises(NotDurable, match="synchronous_commit off"):
        await require_durable(careless)
    admin = create_async_engine(postgres_url, isolation_level="AUTOCOMMIT")
    async with admin.connect() as connection:
        try:
            await connection.execute(text("ALTER SYSTEM SET fsync = off"))
            await connection.execute(text("SELECT pg_reload_conf()"))
            await asyncio.sleep(0.2)
            with pytest.raises(NotDurable, match="fsync off"):
                await require_durable(engine)
        finally:
            await connection.execute(text("ALTER SYSTEM RESET fsync"))
            await connection.execute(text("SELECT pg_reload_conf()"))
    await admin.dispose()
    await engine.dispose()


async def test_what_was_committed_is_on_the_disk_before_anybody_is_told(bare: AsyncEngine) -> None:
    asked = {"sqlite": "PRAGMA synchronous", "postgresql": "SHOW synchronous_commit"}[bare.dialect.name]
    async with bare.connect() as connection:
        assert (await connection.execute(text(asked))).scalar_one() in {2, "on"}


@pytest.mark.parametrize("table", ["entries", "audit", "documents", "changes"])
async def test_what_was_written_can_be_neither_changed_nor_removed(bare: AsyncEngine, table: str) -> None:
    await migrate(bare)
    async with bare.begin() as connection:
        await connection.execute(text(_ROWS[table]))
    for statement in (f"UPDATE {table} SET at = at", f"DELETE FROM {table}"):
        with pytest.raises(DBAPIError, match="append-only"):
            async with bare.begin() as connection:
                await connection.execute(text(statement))


_AT = "'2026-11-20 12:00:00'"
_ROWS = {
    "changes": f"INSERT INTO changes (version, kind, at) VALUES (1, 'documents', {_AT})",
    "documents": "INSERT INTO documents (kind, name, version, since, author, at) "
    f"VALUES ('app', 'a', 1, 1, 'me', {_AT})",
    "audit": "INSERT INTO audit (writer, sequence, at, event, body, previous, digest) "
    f"VALUES ('w', 1, {_AT}, 'e', '{{}}', '', '')",
    "entries": "INSERT INTO entries (turn_id, attempt, step, kind, at, held_at, amount_nano_usd, estimated, target, "
    "provider, upstream_model, key_id, data_class, process, budgets, tokens, input_tokens, output_tokens, cost) "
    f"VALUES ('t', 1, 0, 'hold', {_AT}, {_AT}, 1, false, 'm', 'p', 'u', 'k', 'internal', 'x', '[]', '{{}}', 0, 0, "
    "'{}')",
}
