"""The counters of all processes together, in Redis, and this process's share of the limits while Redis is away.

Losing Redis allows, by the share: a tighter limit, never an error and never a wait of more than 100 ms. It knows no
HTTP, no money and no documents.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from governance.counters import Claim, Taken
from governance.memory import MemoryCounters
from governance.metrics import LimitMetrics
from governance.scripts import SCRIPTS, Command, read, release, reopen, settle, take
from kernel import Clock, new_id

__all__ = ["LOST", "PubSub", "SharedCounters", "connect", "find_fault"]

# uvloop raises RuntimeError where a transport is already closed.
LOST = (RedisError, OSError, TimeoutError, RuntimeError)

_log = logging.getLogger("penstock.limits")

_ANSWER_SECONDS = 0.1
_LOOK_SECONDS = 1.0
# As long as it takes a full bucket to drain.
_WARY_SECONDS = 60.0
_STEPS_MAX = 10_000
_BATCH_MAX = 500
_EPOCH = "penstock:epoch"


@dataclass(frozen=True, slots=True)
class _Step:
    """One command for Redis. answer: somebody waits for it. kept: it is still to be said when Redis was away."""

    command: Command
    claim: Claim
    answer: "asyncio.Future[Taken | None] | None" = None
    kept: bool = False


@dataclass(frozen=True, slots=True)
class _Open:
    """A call that is not over. era: during which Redis counted its tokens; None where this process did."""

    claim: Claim
    era: int | None


def connect(url: str) -> Redis:
    """A client that answers or fails within 100 ms and tries nothing twice; it connects when it is used."""
    return Redis.from_url(
        url,
        socket_timeout=_ANSWER_SECONDS,
        socket_connect_timeout=_ANSWER_SECONDS,
        retry=Retry(NoBackoff(), 0),
        protocol=2,
        driver_info=None,
    )


async def find_fault(url: str) -> str | None:
    """Why the Redis behind this URL cannot be used now; None where it can."""
    try:
        async with asyncio.timeout(2 * _ANSWER_SECONDS), aclosing(connect(url)) as redis:
            await _batch(redis, [("PING",)])
    except LOST as lost:
        return type(lost).__name__
    return None


class SharedCounters:
    """Counts in Redis for all processes; while Redis is away, by this process's share of every limit.

    processes: how many serve now. redis_now: milliseconds instead of Redis' own clock, for tests.
    What Redis admits is counted here too, so that losing it gives nobody a second allowance; and because Redis may
    come back empty, the share bounds this process as well for the first minute.
    """

    def __init__(
        self,
        url: str,
        *,
        clock: Clock,
        processes: Callable[[], int],
        metrics: LimitMetrics,
        redis_now: Callable[[], int] = lambda: -1,
    ) -> None:
        self._redis = connect(url)
        self._clock = clock
        self._processes = processes
        self._metrics = metrics
        self._redis_now = redis_now
        self._local = MemoryCounters(clock)
        self._open: dict[str, _Open] = {}
        self._steps: deque[_Step] = deque()
        self._flight: asyncio.Task[None] | None = None
        self._watch: asyncio.Task[None] | None = None
        self._present: bool | None = None
        self._epoch: object = None
        self._era = 0
        self._wary_until = float("-inf")

    @property
    def is_shared(self) -> bool:
        """Whether Redis counts now."""
        return self._present is True

    async def start(self) -> None:
        """Look for Redis once, then every second; returns within 200 ms whatever it finds."""
        await self._look()
        self._watch = asyncio.create_task(self._look_on(), name="limits in Redis")

    async def close(self) -> None:
        """Tell Redis what is over, as far as it answers, and let go of it."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        if self._flight is not None:
            await asyncio.wait([self._flight], timeout=2 * _ANSWER_SECONDS)
        await self._redis.aclose()

    async def take(self, claim: Claim) -> Taken:
        """Count the claim in all of its scopes, or in none. Never raises for Redis; waits 100 ms at most."""
        taken: Taken | None = None
        era: int | None = self._era
        if self.is_shared and len(self._steps) < _STEPS_MAX:
            taken = await self._asked(claim)
        if taken is None:
            taken, era = self._local.admit(self._share(claim)), None
        elif taken.admitted and self._clock.monotonic() < self._wary_until:
            own = self._local.admit(self._share(claim))
            if not own.admitted:
                self._take_back(claim)
                return own
        elif taken.admitted:
            self._local.count(claim)
        if taken.admitted:
            self._open[claim.permit] = _Open(claim, era)
        return taken

    def settle(self, claim: Claim, difference: int) -> None:
        """Count so many tokens more, or fewer, where they were counted."""
        self._local.settle(claim, difference)
        found = self._open.get(claim.permit)
        if found is not None and found.era == self._era and self.is_shared:
            self._say(_Step(settle(claim, difference, self._redis_now()), claim))

    def release(self, claim: Claim) -> None:
        """The call is over; Redis hears of it now, or when it is back."""
        self._local.release(claim)
        if self._open.pop(claim.permit, None) is not None:
            self._release(claim)

    # What is said to Redis: one batch at a time, in order; while it is away, the next gathers

    async def _asked(self, claim: Claim) -> Taken | None:
        """What Redis answers; None: it does not. Whoever stops waiting takes nothing."""
        answer: asyncio.Future[Taken | None] = asyncio.get_running_loop().create_future()
        self._say(_Step(take(claim, self._redis_now()), claim, answer))
        try:
            return await answer
        except asyncio.CancelledError:
            # Where it was cancelled before the answer came, `_hear` sees that nobody waits.
            if not answer.cancelled() and (taken := answer.result()) and taken.admitted:
                self._take_back(claim)
            raise

    def _say(self, step: _Step) -> None:
        if not (self.is_shared or step.kept):
            return
        if len(self._steps) >= _STEPS_MAX:
            self._metrics.dropped()
            return
        self._steps.append(step)
        self._fly()

    def _fly(self) -> None:
        if self.is_shared and self._steps and (self._flight is None or self._flight.done()):
            self._flight = asyncio.create_task(self._send(), name="limits: to Redis")

    async def _send(self) -> None:
        sent: list[_Step] = []
        try:
            while self._steps and self.is_shared:
                waiting = [self._steps.popleft() for _ in range(min(len(self._steps), _BATCH_MAX))]
                sent = [step for step in waiting if step.answer is None or not step.answer.cancelled()]
                async with asyncio.timeout(_ANSWER_SECONDS):
                    answers = await _batch(self._redis, [step.command for step in sent])
                for step, answer in zip(sent, answers, strict=True):
                    self._hear(step, answer)
                sent = []
        except LOST as lost:
            self._lose(lost, sent)
            sent = []
        finally:
            # Whatever ends this task, nobody is left waiting.
            if sent:
                self._lose(RuntimeError("ended"), sent)

    def _hear(self, step: _Step, answer: object) -> None:
        if step.answer is None:
            return
        assert isinstance(answer, list)
        taken = read(step.claim, answer)
        if not step.answer.done():
            step.answer.set_result(taken)
        elif taken.admitted:
            self._take_back(step.claim)

    def _take_back(self, claim: Claim) -> None:
        self._say(_Step(settle(claim, -claim.tokens, self._redis_now()), claim))
        self._release(claim)

    def _release(self, claim: Claim) -> None:
        for command in release(claim):
            self._say(_Step(command, claim, kept=True))

    # Whether Redis is there

    async def _look_on(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            await self._look()

    async def _look(self) -> None:
        """See whether Redis is there, writes, and still has what it was told."""
        try:
            async with asyncio.timeout(2 * _ANSWER_SECONDS):
                loads = (("SCRIPT LOAD", script) for script in SCRIPTS)
                _, epoch, *_ = await _batch(
                    self._redis, [("SET", _EPOCH, new_id("epoch"), "NX"), ("GET", _EPOCH), *loads]
                )
        except LOST as lost:
            self._lose(lost, [])
            return
        self._find(epoch)

    def _lose(self, lost: Exception, sent: Sequence[_Step]) -> None:
        """From here on this process counts alone; who waits is answered so, and what is over is said later."""
        if self._present is not False:
            self._present, self._era = False, self._era + 1
            self._metrics.shared(now=False)
            _log.warning(
                "limits: Redis is away (%s); this process keeps to its share, one of %d",
                type(lost).__name__,
                self._processes(),
            )
        waiting = [*sent, *self._steps]
        self._steps = deque(step for step in waiting if step.kept)
        for step in waiting:
            if step.answer is None:
                continue
            # Redis may have admitted it without being heard; whoever is let through here is told to it again.
            self._release(step.claim)
            if not step.answer.done():
                step.answer.set_result(None)

    def _find(self, epoch: object) -> None:
        """Redis is there: from here on it counts, told anew of every open call if it was away or lost its memory."""
        if self.is_shared and epoch == self._epoch:
            return
        if self._present is not None:
            self._wary_until = self._clock.monotonic() + _WARY_SECONDS
            _log.warning("limits: Redis %s; limits are shared again", "forgot" if self.is_shared else "is back")
        self._present, self._epoch, self._era = True, epoch, self._era + 1
        self._metrics.shared(now=True)
        told_again = (
            _Step(command, each.claim)
            for each in self._open.values()
            for command in reopen(each.claim, self._redis_now())
        )
        self._steps.extend(told_again)
        self._fly()

    def _share(self, claim: Claim) -> Claim:
        return claim.share(self._processes())


async def _batch(redis: Redis, commands: Sequence[Command]) -> list[object]:
    """One round trip. Raises the first error that any command met, of `LOST`."""
    async with redis.pipeline(transaction=False) as pipeline:
        for command in commands:
            pipeline.execute_command(*command)
        answers: list[object] = await pipeline.execute(raise_on_error=False)
    for answer in answers:
        if isinstance(answer, Exception):
            raise answer
    return answers
