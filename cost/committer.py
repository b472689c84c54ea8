"""One task that writes all a process has to write: what waits goes into one transaction, and is answered once durable.

While a transaction commits, the next batch gathers; a step whose budget is not open yet waits in opening.py. Losing the
database means refusing holds and records; closings stay here until they are durable, which is safe to repeat because
each takes effect only while its hold is open.
"""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from cost.balances import Balances
from cost.budgets import Period
from cost.entries import AttemptKey, Closing, Entry, Hold, Step
from cost.errors import Overloaded
from cost.opening import Opening
from cost.settings import LedgerSettings
from cost.store import LedgerStore, PeriodsMissing
from kernel import AuditRecord, AuditSink, ChainHead, PlatformError, StoreUnavailable

_FIRST_RETRY_SECONDS = 0.05
_DOUBLINGS_MAX = 10
_FAILURES_BEFORE_SINGLES = 3

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Outcome:
    """What one transaction decided; it counts once the transaction is durable."""

    head: ChainHead | None = None
    granted: list[Hold] = field(default_factory=list)
    closed: list[Hold] = field(default_factory=list)
    refusals: dict[Step, PlatformError] = field(default_factory=dict)


class Committer:
    """The queue of steps and the task that empties it."""

    def __init__(self, store: LedgerStore, audit: AuditSink, *, process: str, settings: LedgerSettings) -> None:
        self._store = store
        self._audit = audit
        self._process = process
        self._settings = settings
        self._queue: deque[Step] = deque()
        self._wake = asyncio.Event()
        self._closing = False
        self._failures = 0
        self._committing = False
        self._open = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._opening = Opening(store, settings=settings, resume=self._take_back)

    @property
    def open_holds(self) -> int:
        """Holds of this process without a durable closing."""
        return self._open

    @property
    def is_writing(self) -> bool:
        """Whether the last thing that was tried could be written."""
        return not self._failures

    @property
    def waiting(self) -> int:
        """Steps that are not taken yet."""
        return len(self._queue) + self._opening.waiting

    def submit(
        self,
        closings: Sequence[Closing] = (),
        *,
        hold: Hold | None = None,
        record: AuditRecord | None = None,
        refused: Callable[[PlatformError], AuditRecord] | None = None,
    ) -> Step:
        """Queue a step; never suspends. Raises Overloaded where the queue is full, but for steps that must last."""
        loop = self._loop
        if loop is None:  # asking for it costs a system call on some Pythons
            loop = self._loop = asyncio.get_running_loop()
        must_last = hold is None and bool(closings)
        if not must_last and (self._closing or self.waiting >= self._settings.queue_max):
            raise Overloaded("Too many calls wait to be booked; try again in a moment.", retry_after_seconds=1.0)
        step = Step(loop.create_future(), must_last, tuple(closings), hold, record, refused)
        self._queue.append(step)
        self._wake.set()
        return step

    async def write(self, step: Step) -> None:
        """Wait until the step is durable. Raises what it was refused for, or StoreUnavailable."""
        refusal = await step.done
        if refusal is not None:
            raise refusal

    async def run(self) -> None:
        """Empty the queue until `close` was called and nothing is left."""
        try:
            await self._empty()
        finally:
            await self._opening.close()

    async def _empty(self) -> None:
        while True:
            await self._something_to_do()
            batch = self._opening.set_aside(self._take())
            if batch:
                await self._attempt(batch)
            elif self._closing and not self.waiting:
                return
            elif self._failures:
                await self._probe()

    def close(self) -> None:
        """Take no new holds; `run` ends once all that wait were written or refused, and all closings are durable."""
        self._closing = True
        self._wake.set()

    async def _something_to_do(self) -> None:
        if self._failures:
            # A new hold cuts the pause short: it is refused or served at once, and it is the probe.
            doubled = _FIRST_RETRY_SECONDS * 2 ** min(self._failures, _DOUBLINGS_MAX)
            pause = min(doubled, self._settings.retry_seconds_max)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), pause)
        elif not self._queue and (self._opening.waiting or not self._closing):
            await self._wake.wait()
        self._wake.clear()

    def _take(self) -> list[Step]:
        waiting = [step for step in self._queue if step.must_last or not step.done.cancelled()]
        trusted = [step for step in waiting if not step.is_suspect]
        if self._failures >= _FAILURES_BEFORE_SINGLES:
            # One of the closings may be what cannot be written: they go alone, and after those who wait for an answer.
            asking = [step for step in trusted if not step.must_last]
            batch = asking[: self._settings.batch_max] or trusted[:1] or waiting[:1]
        else:
            batch = trusted[: self._settings.batch_max] or waiting[:1]
        taken = set(batch)
        self._queue = deque(step for step in waiting if step not in taken)
        return batch

    async def _probe(self) -> None:
        """Find out whether the store can be written again though nothing waits: until then nobody may send turns."""
        began = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(self._settings.commit_timeout_seconds):
                await self._store.beat(self._process)
        except Exception as failure:  # noqa: BLE001 - the loop must live
            self._failed([], failure, began)
        else:
            self._succeeded()

    def _succeeded(self) -> None:
        if self._failures:
            _log.warning("the books are written again after %d failures", self._failures)
        self._failures = 0

    async def _attempt(self, batch: list[Step]) -> None:
        began = asyncio.get_running_loop().time()
        try:
            outcome = await self._commit(batch)
        except PeriodsMissing as missing:
            # In transactions of their own: rows that are made while others are locked could lock in a circle.
            self._opening.begin(missing.budgets)
            self._take_back(batch)
            return
        except Exception as failure:  # noqa: BLE001 - the loop must live; what failed is told to all who wait
            self._failed(batch, failure, began)
            return
        if outcome.head is not None:
            self._audit.advance(outcome.head)
        self._succeeded()
        self._count(outcome)
        for step in batch:
            if not step.done.done():
                step.done.set_result(outcome.refusals.get(step))

    def _count(self, outcome: _Outcome) -> None:
        for hold in outcome.granted:
            hold.is_counted = True
        closed = {hold for hold in outcome.closed if hold.is_counted}
        for hold in closed:
            hold.is_counted = False
        self._open += len(outcome.granted) - len(closed)

    def _take_back(self, steps: Collection[Step]) -> None:
        """These go first: they have waited longest."""
        self._queue.extendleft(reversed(tuple(steps)))
        self._wake.set()

    async def _commit(self, batch: Sequence[Step]) -> _Outcome:
        self._committing = False
        async with asyncio.timeout(self._settings.commit_timeout_seconds):
            return await self._transact(batch)

    async def _transact(self, batch: Sequence[Step]) -> _Outcome:
        ending = [closing.hold for step in batch for closing in step.closings if closing.hold.entry is not None]
        holds = [step.hold for step in batch if step.hold is not None]
        outcome, began = _Outcome(), asyncio.get_running_loop().time()
        async with self._store.transaction() as books:
            keys = [hold.entry.key for hold in ending if hold.entry is not None]
            doubtful = [hold.entry.key for hold in ending if hold.entry is not None and hold.is_doubtful]
            at, released = await books.release(keys, doubtful)
            balances = Balances(at, self._process, hold_nano_usd_max=self._settings.hold_nano_usd_max)
            balances.load(await books.lock(balances.wanted(released.values(), holds)))
            entries, records = _decide(batch, balances, released, outcome)
            await books.write(entries, balances.changes)
            if records:
                outcome.head = await books.record(self._audit, records)
            self._committing = True
        self._store.committed(entries, asyncio.get_running_loop().time() - began)
        return outcome

    def _failed(self, batch: list[Step], failure: Exception, began: float) -> None:
        self._audit.forget()
        self._failures += 1
        if self._failures == 1:
            _log.error("the books cannot be written: %s", type(failure).__name__)
        for step in batch:
            if step.hold is not None and self._committing:
                step.hold.is_doubtful = True  # it may become durable yet; whoever asked has it voided
            elif step.hold is not None:
                step.hold.entry = None  # rolled back for certain
        if len(batch) == 1:
            batch[0].is_suspect = True
        # Who waited through a slow failure has waited long enough; a quick one leaves the others their own try. Not
        # every time-out is called so: SQLite, locked by somebody else for as long as it may wait, is "locked".
        was_slow = asyncio.get_running_loop().time() - began >= self._settings.commit_timeout_seconds / 2
        gone = [*batch, *self._queue] if was_slow or isinstance(failure, TimeoutError) else batch
        self._queue = deque(step for step in [*self._queue, *batch] if step.must_last or step not in gone)
        for step in gone:
            if not step.must_last and not step.done.done():
                step.done.set_result(
                    StoreUnavailable("The books cannot be written; try again in a moment.", retry_after_seconds=1.0)
                )


def _decide(
    batch: Sequence[Step], balances: Balances, released: dict[AttemptKey, tuple[Period, ...]], outcome: _Outcome
) -> tuple[list[Entry], list[AuditRecord]]:
    """Closings first, so that what they give back serves the holds of the same batch."""
    entries: list[Entry] = []
    records: list[AuditRecord] = []
    for step in batch:
        effective = False
        for closing in step.closings:
            held = closing.hold.entry
            outcome.closed.append(closing.hold)  # whoever closed it, be it a commit whose answer was lost
            if held is not None and held.key in released:
                entries.append(balances.close(closing, released.pop(held.key)))
                effective = True
        if step.record is not None and step.hold is None and (effective or not step.closings):
            records.append(step.record)
    for step in batch:
        if step.hold is not None:
            record = step.record
            try:
                entries.append(balances.grant(step.hold))
                outcome.granted.append(step.hold)
            except PlatformError as refusal:
                outcome.refusals[step] = refusal
                record = step.refused(refusal) if step.refused is not None else None
            if record is not None:
                records.append(record)
    return entries, records
