"""What the processes of one deployment share over Redis: limits, news of changes, and how many they are.

Losing Redis allows: limits go on by share, changes are found by polling. Money and policy are not here.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from prometheus_client import CollectorRegistry
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from governance import Bulletin, LimitMetrics, SharedCounters
from kernel import Clock
from kernel.db import reading

_COUNT_SECONDS = 2.0
_LIVE = text("SELECT count(*) FROM processes WHERE heartbeat_at >= now() - make_interval(secs => :lease_seconds)")

_log = logging.getLogger("penstock.replicas")


class Census:
    """How many processes hold a lease, as last counted: a process that cannot count stays with what it knew.

    More are believed at once, fewer only after a whole lease: after an outage of the store every lease looks dead
    until its process has renewed it. A process must have taken its own lease before it counts.
    """

    def __init__(self, engine: AsyncEngine, *, clock: Clock, lease_seconds: float) -> None:
        self._engine = reading(engine)
        self._clock = clock
        self._lease_seconds = lease_seconds
        self._task: asyncio.Task[None] | None = None
        self._found = 1
        self._fewer_since: float | None = None

    def processes(self) -> int:
        """Processes that serve now, this one included."""
        return self._found

    async def start(self) -> None:
        """Count, then go on counting. On SQLite one process serves, and nobody counts."""
        if self._engine.dialect.name == "postgresql":
            await self._count()
            self._task = asyncio.create_task(self._go_on(), name="census")

    async def close(self) -> None:
        """Stop counting."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _go_on(self) -> None:
        while True:
            await asyncio.sleep(_COUNT_SECONDS)
            await self._count()

    async def _count(self) -> None:
        try:
            async with asyncio.timeout(_COUNT_SECONDS), self._engine.connect() as connection:
                live = (await connection.execute(_LIVE, {"lease_seconds": self._lease_seconds})).scalar_one()
        except (SQLAlchemyError, OSError, TimeoutError) as lost:
            self._fewer_since = None
            _log.warning("processes cannot be counted (%s); staying with %d", type(lost).__name__, self._found)
        else:
            self._believe(max(1, int(live)))

    def _believe(self, live: int) -> None:
        now = self._clock.monotonic()
        if live < self._found:
            self._fewer_since = now if self._fewer_since is None else self._fewer_since
            if now - self._fewer_since < self._lease_seconds:
                return
        self._found, self._fewer_since = live, None


class Replicas:
    """The parts of a process that talk to the other processes, started and closed as one."""

    def __init__(
        self, engine: AsyncEngine, redis_url: str, *, clock: Clock, registry: CollectorRegistry, lease_seconds: float
    ) -> None:
        self.census = Census(engine, clock=clock, lease_seconds=lease_seconds)
        self.bulletin = Bulletin(redis_url)
        self.counters = SharedCounters(
            redis_url, clock=clock, processes=self.census.processes, metrics=LimitMetrics(registry)
        )

    async def start(self, changed: Callable[[], Awaitable[None]]) -> None:
        """Count processes, this one's lease included, look for Redis and listen.

        `changed` is called for news, and must not fail.
        """
        await self.census.start()
        await self.counters.start()
        self.bulletin.start(changed)

    async def close(self) -> None:
        """Let go of everybody."""
        await self.bulletin.close()
        await self.counters.close()
        await self.census.close()

    @property
    def state(self) -> str:
        """`ok`, or `away`: Redis does not answer, limits are tighter, and everything else goes on."""
        return "ok" if self.counters.is_shared else "away"
