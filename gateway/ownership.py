"""Who may serve a store: one process per data folder, and on PostgreSQL one without Redis or any number with it.

With limits in memory two processes could not be correct together. Losing the lock of PostgreSQL is losing the
database: nothing can be held then anyway, and the lock is taken again with the connection.
"""

import asyncio
import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

# Any number that no other user of the database takes: "serving!" as a signed 64-bit integer.
_SERVING_LOCK = 0x73657276696E6721
_LOOK_SECONDS = 5.0

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
    """A lock on PostgreSQL that lives as long as its connection: shared among processes that have Redis, else sole."""

    def __init__(self, engine: AsyncEngine, *, shared: bool) -> None:
        self._engine = engine
        self._statement = f"SELECT pg_try_advisory_lock{'_shared' if shared else ''}({_SERVING_LOCK})"
        self._connection: AsyncConnection | None = None
        self._keeper: asyncio.Task[None] | None = None

    async def take(self) -> None:
        """Take the lock and keep it until `release`. Raises AlreadyServed."""
        await self._lock()
        self._keeper = asyncio.create_task(self._keep(), name="serving lock")

    async def release(self) -> None:
        """Give the lock back."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        await self._drop()

    async def _lock(self) -> None:
        self._connection = connection = await self._engine.connect()
        if not (await connection.execute(text(self._statement))).scalar_one():
            await self._drop()
            raise AlreadyServed(
                "another process serves this database: set PENSTOCK_REDIS_URL for all, so that limits are shared"
            )
        await connection.commit()

    async def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.invalidate()
            await connection.close()

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            try:
                if self._connection is None:
                    await self._lock()
                else:
                    await self._connection.execute(text("SELECT 1"))
                    await self._connection.commit()
            except AlreadyServed as other:
                _log.error("%s", other)
            except (SQLAlchemyError, OSError, TimeoutError):
                await self._drop()
