"""Opens the periods of budgets beside the committer: the steps that need them wait here, all others are written.

Counting what was spent before takes long on a large ledger. Whoever waits for it is refused after as long as anybody
waits for a commit; the counting goes on.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping, Sequence

from cost.budgets import Budget, Period
from cost.entries import Step
from cost.settings import LedgerSettings
from cost.store import LedgerStore
from kernel import StoreUnavailable

_AT_ONCE = 2
_WAITS_MAX = 3

_log = logging.getLogger(__name__)


class Opening:
    """The periods that are being opened, and the steps that wait for them. resume: takes back who need not wait."""

    def __init__(
        self, store: LedgerStore, *, settings: LedgerSettings, resume: Callable[[Collection[Step]], None]
    ) -> None:
        self._store = store
        self._settings = settings
        self._resume = resume
        self._budgets: dict[str, asyncio.Task[None]] = {}
        self._waiting: dict[Step, asyncio.TimerHandle] = {}
        self._slots = asyncio.Semaphore(_AT_ONCE)

    @property
    def waiting(self) -> int:
        """Steps that wait here."""
        return len(self._waiting)

    def begin(self, budgets: Mapping[Period, Budget]) -> None:
        """Open these periods; returns at once."""
        task = asyncio.create_task(self._open(budgets), name="opening periods")
        self._budgets.update((budget.key, task) for budget in budgets.values())

    def set_aside(self, steps: Sequence[Step]) -> list[Step]:
        """Keep those that need a period which is being opened; returns the others."""
        if not self._budgets:
            return list(steps)
        loop, others = asyncio.get_running_loop(), []
        for step in steps:
            if not self._concerns(step):
                others.append(step)
                continue
            step.waits += 1
            step.waits_until = min(step.waits_until, loop.time() + self._settings.commit_timeout_seconds)
            self._waiting[step] = loop.call_at(step.waits_until, self._refuse, step)
            if step.waits > _WAITS_MAX:
                self._refuse(step)
        return others

    async def close(self) -> None:
        """Refuse whoever waits, and stop; what is not counted is counted by whoever asks next."""
        self._refuse(*self._waiting)
        tasks = set(self._budgets.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _concerns(self, step: Step) -> bool:
        ask = step.hold.ask if step.hold is not None else None
        return ask is not None and ask.nano_usd > 0 and any(budget.key in self._budgets for budget in ask.budgets)

    async def _open(self, budgets: Mapping[Period, Budget]) -> None:
        opened = False
        try:
            async with self._slots, asyncio.timeout(self._settings.open_timeout_seconds):
                await self._store.open_periods(budgets)
            opened = True
        except Exception as failure:  # noqa: BLE001 - whoever asks next tries again
            _log.error("%d budgets cannot be opened: %s", len(budgets), type(failure).__name__)
        finally:
            concerned = [step for step in self._waiting if self._concerns(step)]
            for budget in budgets.values():
                if self._budgets.get(budget.key) is asyncio.current_task():
                    del self._budgets[budget.key]
            free = [step for step in concerned if not self._concerns(step)]
            if opened:
                for step in free:
                    self._waiting.pop(step).cancel()
                self._resume(free)
            else:
                self._refuse(*free)

    def _refuse(self, *steps: Step) -> None:
        for step in steps:
            self._waiting.pop(step).cancel()
            if not step.done.done():
                step.done.set_result(
                    StoreUnavailable(
                        "What a budget of this call has spent is still being counted; try again in a moment.",
                        retry_after_seconds=1.0,
                    )
                )
        self._resume(())
