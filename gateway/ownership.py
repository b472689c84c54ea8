"""Who may serve a store: one process per data folder, and on PostgreSQL one without Redis or any number with it.

With limits in memory two processes could not be correct together. The lock of PostgreSQL is lost with its connection;
until a process has it back, it lets no turn through, because another one may have taken it.
"""

import asyncio
import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from kernel import StoreUnavailable

# Any number that no other user of the database takes: "serving!" as a signed 64-bit integer.
_SERVING_LOCK = 0x73657276696E6721
_LOOK_SECONDS = 1.0

_log = logging.getLogger("penstock.ownership")


class AlreadyServed(Exception):
    """Another process serves this store, and the two could not be correct together."""


@contextmanager
def sole_owner(data_dir: Path) -> Iterator[None]:
    """Hold the folder's lock while the context is open. Raises AlreadyServed.

    The lock is the kernel's: it goes with the process, however that ends.
    """
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(data_dir / "serve.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyServed(
                f"another penstock serves {data_dir}: stop it, or set PENSTOCK_DATA_DIR and PENSTOCK_PORT for this one"
            ) from None
        yield
    finally:
        os.close(descriptor)


class ServingLock:
    """A lock on PostgreSQL that lives as long as its connection: shared among processes that have Redis, else sole.

    timeout_seconds bounds every question to the store.
    """

    def __init__(self, engine: AsyncEngine, *, shared: bool, timeout_seconds: float) -> None:
        self._engine = engine
        self._statement = f"SELECT pg_try_advisory_lock{'_shared' if shared else ''}({_SERVING_LOCK})"
        self._timeout_seconds = timeout_seconds
        self._connection: AsyncConnection | None = None
        self._ended = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None

    @property
    def is_held(self) -> bool:
        """Whether this process may serve, as far as it knows."""
        return self._connection is not None and not self._ended.is_set()

    def require(self) -> None:
        """Raises StoreUnavailable while this process may not serve."""
        if not self.is_held:
            raise StoreUnavailable(
                "This process lost its place at the store and waits to have it back; try again in a moment.",
                retry_after_seconds=1.0,
            )

    async def take(self) -> None:
        """Take the lock and keep it until `release`. Raises AlreadyServed, or that the store cannot be reached."""
        await self._lock()
        self._keeper = asyncio.create_task(self._keep(), name="serving lock")

    async def release(self) -> None:
        """Give the lock back."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        await self._drop()

    async def _lock(self) -> None:
        async with asyncio.timeout(self._timeout_seconds), AsyncExitStack() as failing:
            connection = await self._engine.connect()
            failing.push_async_callback(_close, connection)
            if not (await connection.execute(text(self._statement))).scalar_one():
                raise AlreadyServed(
                    "another process serves this database: set PENSTOCK_REDIS_URL for all, so that limits are shared"
                )
            await connection.commit()
            self._ended = ended = asyncio.Event()
            line = (await connection.get_raw_connection()).driver_connection
            assert line is not None
            line.add_termination_listener(lambda _: ended.set())
            failing.pop_all()
            self._connection = connection

    async def _drop(self) -> None:
        connection, self._connection, self._ended = self._connection, None, asyncio.Event()
        if connection is not None:
            await _close(connection)

    async def _keep(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_SECONDS):
                    await self._ended.wait()
            await self._look()

    async def _look(self) -> None:
        """Have the lock, and know that its connection lives."""
        was_held = self._connection is not None
        try:
            async with asyncio.timeout(self._timeout_seconds):
                if self._connection is not None and self.is_held:
                    await self._connection.execute(text("SELECT 1"))
                    await self._connection.commit()
                    return
            await self._drop()
            await self._lock()
            _log.warning("this process has its place at the store again")
        except (AlreadyServed, SQLAlchemyError, OSError, TimeoutError) as lost:
            await self._drop()
            if was_held:
                why = str(lost) if isinstance(lost, AlreadyServed) else type(lost).__name__
                _log.error("this process lost its place at the store and refuses turns (%s)", why)


async def _close(connection: AsyncConnection) -> None:
    """Without a word: the other side may not listen."""
    await connection.invalidate()
    await connection.close()
