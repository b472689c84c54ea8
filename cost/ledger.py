"""The ledger of one process: its turns, its lease, and the sweep of what dead processes left open.

Deciding is in balances.py, committing in committer.py, a turn's own life in turns.py. Losing the database means
refusing every turn; open turns are booked as soon as it is back.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from cost.book import Book
from cost.committer import Committer
from cost.entries import Closing, Entry, Hold, TurnEntries
from cost.settings import LedgerSettings
from cost.store import LedgerStore
from cost.turns import Attempt, Desk, Turn
from kernel import AuditRecord, AuditSink, Caller, Clock, ModelRequest, Plan, StoreUnavailable

__all__ = ["Attempt", "Ledger", "Turn"]

_log = logging.getLogger(__name__)


class Ledger:
    """Holds before a call, books after it; never over a hard budget, never a call without a row."""

    def __init__(
        self,
        store: LedgerStore,
        *,
        book: Callable[[], Book],
        audit: AuditSink,
        clock: Clock,
        process: str,
        settings: LedgerSettings,
    ) -> None:
        self._store = store
        self._clock = clock
        self._process = process
        self._settings = settings
        self._committer = Committer(store, audit, process=process, settings=settings)
        self._desk = Desk(book, self._committer, clock, settings)
        self._reachable_since = float("inf")
        self._writing: asyncio.Task[None] | None = None
        self._tending: tuple[asyncio.Task[None], ...] = ()

    @property
    def open_holds(self) -> int:
        """Holds of this process without a durable closing."""
        return self._committer.open_holds

    @property
    def is_writing(self) -> bool:
        """False from a commit that failed until something could be written again; it tries by itself."""
        return self._committer.is_writing

    @property
    def waiting(self) -> int:
        """Steps that wait to be committed."""
        return self._committer.waiting

    async def start(self) -> None:
        """Take the lease and start writing. Where no other process can be alive, what others left open is swept now."""
        await self._beat()
        self._writing = asyncio.create_task(self._committer.run())
        if self._settings.sole:
            await self.sweep()
        self._tending = tuple(asyncio.create_task(self._every_so_often(task)) for task in (self._beat, self.sweep))

    async def close(self) -> None:
        """Wait until every closing is durable, then give the lease back.

        Bounded by `close_seconds`; what a lost database kept from being written is swept by whoever lives.
        """
        for task in self._tending:
            task.cancel()
        await asyncio.gather(*self._tending, return_exceptions=True)
        self._committer.close()
        if self._writing is not None:
            _, late = await asyncio.wait({self._writing}, timeout=self._settings.close_seconds)
            if late:
                self._writing.cancel()
                _log.error("the ledger closed with %d steps that are not durable", self.waiting)
            else:
                with contextlib.suppress(StoreUnavailable):  # it runs out by itself
                    await self._store.end_lease(self._process)
        await self._store.close()

    def turn(self, caller: Caller, request: ModelRequest, plan: Plan, admission: AuditRecord) -> Turn:
        """One request's place in the books; `admission` is written with its first hold."""
        return Turn(self._desk, caller, request, plan, admission)

    async def record(self, record: AuditRecord) -> None:
        """Put a record of its own in the trail; durable on return. Raises StoreUnavailable."""
        await self._committer.write(self._committer.submit(record=record))

    async def request(self, turn_id: str) -> TurnEntries | None:
        """What the books say of one turn; None where they say nothing. Raises StoreUnavailable."""
        entries = await self._store.entries_of([turn_id])
        return TurnEntries(turn_id, tuple(entries)) if entries else None

    async def sweep(self) -> int:
        """Post what dead processes left open, at the hold; returns how many holds were found.

        After an outage every lease looks dead, so a process sweeps only once it has itself reached the database for
        a whole lease: whoever is alive has renewed its own by then.
        """
        sole, settings = self._settings.sole, self._settings
        if not sole and self._clock.monotonic() - self._reachable_since < settings.lease_seconds:
            return 0
        found = 0
        while orphans := await self._store.orphans(
            self._process, None if sole else settings.lease_seconds, settings.sweep_max
        ):
            steps = [self._committer.submit([_swept(held)], record=_sweeping(held)) for held in orphans]
            for step in steps:
                await self._committer.write(step)
            found += len(orphans)
        return found

    async def _beat(self) -> None:
        try:
            async with asyncio.timeout(self._settings.commit_timeout_seconds):
                await self._store.beat(self._process)
        except BaseException:
            self._reachable_since = float("inf")
            raise
        self._reachable_since = min(self._reachable_since, self._clock.monotonic())

    async def _every_so_often(self, task: Callable[[], Coroutine[Any, Any, object]]) -> None:
        while True:
            await asyncio.sleep(self._settings.sweep_seconds)
            try:
                await task()
            except Exception as failure:  # noqa: BLE001 - the loop must live; the next round tries again
                _log.warning("%s failed: %s", task.__name__.strip("_"), type(failure).__name__)


def _swept(held: Entry) -> Closing:
    return Closing(Hold(None, held), "post", None, estimated=True, reason="swept")


def _sweeping(held: Entry) -> AuditRecord:
    body = {"attempt": held.attempt, "process": held.process, "cost_nano_usd": held.amount_nano_usd, "estimated": True}
    return AuditRecord("turn.swept", body, turn_id=held.turn_id, app=held.app, department=held.department)
