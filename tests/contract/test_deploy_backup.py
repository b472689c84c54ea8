"""The backup of docs/guides/deployment.md: a dump of PostgreSQL, restored over the store that it was taken of."""

import subprocess
from pathlib import Path

import pytest

from gateway.schema import migrate
from gateway.settings import Settings
from gateway.wiring import build
from governance import NewKey
from kernel import Role
from tests.chaos.postgres import binaries
from tests.conftest import skipped_where_not_run

pytestmark = pytest.mark.postgres


async def test_a_dump_brings_back_keys_and_an_intact_trail(on_postgres: dict[str, str], tmp_path: Path) -> None:
    dump, url = tmp_path / "penstock.dump", on_postgres["database_url"].replace("postgresql+asyncpg", "postgresql")
    with skipped_where_not_run():
        folder = binaries()
    platform = build(Settings(data_dir=tmp_path, **on_postgres))
    await migrate(platform.engine)
    kept = await platform.keys.create(NewKey("kept", roles=frozenset({Role.PLATFORM_ADMIN})), "me")
    _run(folder / "pg_dump", "--format", "custom", "--file", str(dump), url)
    await platform.keys.create(NewKey("later", roles=frozenset({Role.PLATFORM_ADMIN})), "me")
    await platform.dispose()

    _run(folder / "pg_restore", "--clean", "--if-exists", "--dbname", url, str(dump))
    restored = build(Settings(data_dir=tmp_path, **on_postgres))
    assert [key.name for key in await restored.keys.listing()] == ["kept"]
    await restored.feed.load()
    assert restored.keys.identify(kept.key).name == "kept"
    verdict = await restored.trail.verify()
    assert verdict.intact
    assert verdict.records == 1
    await restored.dispose()


def _run(program: Path, *arguments: str) -> None:
    done = subprocess.run([str(program), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
