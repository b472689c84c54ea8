"""The counters of all processes together, in Redis, and this process's share of the limits while Redis is away.

Losing Redis allows, by the share: a tighter limit, never an error and never a wait of more than 100 ms. It knows no
HTTP, no money and no documents.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import hiredis
from redis.asyncio import Redis, SSLConnection
from redis.asyncio.client import PubSub
from redis.asyncio.connection import Connection as RedisConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from governance.counters import Claim, Taken
from governance.memory import MemoryCounters
from governance.metrics import LimitMetrics
from governance.redis_wire import Command, Connection, Place, Refused
from governance.scripts import LEASE_SECONDS, SCRIPTS, end, read, reopen, take
from kernel import Clock, new_id

__all__ = ["LOST", "PubSub", "SharedCounters", "connect", "find_fault"]

# uvloop raises RuntimeError where a transport is already closed.
LOST = (RedisError, hiredis.HiredisError, OSError, TimeoutError, RuntimeError)

_log = logging.getLogger("penstock.limits")

_ANSWER_SECONDS = 0.1
_LOOK_SECONDS = 1.0
_RENEW_SECONDS = LEASE_SECONDS / 3
# As long as it takes a full bucket to drain.
_WARY_SECONDS = 60.0
# What Redis can answer in time, with a margin for the other processes that ask it.
_UNHEARD_MAX = 4_000
# Names the memory that Redis counts in. It is asked behind every flight: where it is another one than at the begin of
# the era, the flight was admitted by a Redis that had forgotten what it had let through.
_EPOCH = "penstock:epoch"
_WHICH: Command = ("GET", _EPOCH)


class Emptied(ConnectionError):
    """Redis answers, but it is not the one that was told: it lost its memory."""


@dataclass(frozen=True, slots=True)
class _Step:
    """One command for Redis and the claim it is about. answer: somebody waits for it."""

    command: Command
    claim: Claim | None = None
    answer: "asyncio.Future[Taken | None] | None" = None


@dataclass(slots=True)
class _Open:
    """A call that is not over. era: during which Redis counted its tokens; told: Redis knows its permit."""

    claim: Claim
    era: int | None
    told: bool


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
    connection = Connection((), _ANSWER_SECONDS)
    try:
        await connection.open(place_of(url))
    except LOST as lost:
        return _name_of(lost)
    connection.drop()
    return None


def place_of(url: str) -> Place:
    """What the URL says, read as the other client reads it, so that both mean the same server by it."""
    pool = connect(url).connection_pool
    made = pool.connection_class(**pool.connection_kwargs)
    assert isinstance(made, RedisConnection), "settings allow no other"
    tls = made.ssl_context.get() if isinstance(made, SSLConnection) else None
    return Place(made.host, int(made.port), int(made.db), made.username, made.password, tls)


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
        self._place = place_of(url)
        self._clock = clock
        self._processes = processes
        self._metrics = metrics
        self._redis_now = redis_now
        self._local = MemoryCounters(clock)
        self._connection: Connection | None = None
        self._open: dict[str, _Open] = {}
        self._steps: list[_Step] = []
        self._unheard = 0
        # Permits that Redis may take for open; whatever finds no place here expires there by itself.
        self._ended: deque[Claim] = deque(maxlen=_UNHEARD_MAX)
        self._watch: asyncio.Task[None] | None = None
        self._hurry = asyncio.Event()
        self._present: bool | None = None
        self._epoch: object = None
        self._era = 0
        self._wary_until = float("-inf")
        self._renew_at = float("-inf")

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
        if self._connection is not None:
            self._fly()
            with suppress(*LOST):
                await self._connection.ask([_WHICH])  # answered after everything before it
            self._connection.drop()

    async def take(self, claim: Claim) -> Taken:
        """Count the claim in all of its scopes, or in none. Never raises for Redis; waits about 100 ms at most."""
        if not self.is_shared or self._unheard >= _UNHEARD_MAX:
            return self._opened(claim, self._local.admit(self._share(claim)))
        if self._clock.monotonic() < self._wary_until:
            return await self._take_warily(claim)
        era = self._era
        taken = await self._asked(claim)
        if taken is None:
            return self._opened(claim, self._local.admit(self._share(claim)))
        self._local.note(claim, taken, self._processes())
        return self._opened(claim, taken, era)

    def release(self, claim: Claim, difference: int = 0) -> None:
        """The call is over; Redis hears of it now, or when it is back, as far as it knew of it."""
        self._local.release(claim, difference)
        found = self._open.pop(claim.permit, None)
        if found is not None and found.told:
            self._end(claim, difference if found.era == self._era else 0)

    async def _take_warily(self, claim: Claim) -> Taken:
        """By the share and by Redis; by the share first, because Redis would count what the share refuses."""
        own, era = self._local.admit(self._share(claim)), self._era
        if not own.admitted:
            return own
        try:
            taken = await self._asked(claim)
        except asyncio.CancelledError:
            self._local.undo(claim)
            raise
        if taken is None:
            return self._opened(claim, own)
        if not taken.admitted:
            self._local.undo(claim)
        return self._opened(claim, taken, era)

    def _opened(self, claim: Claim, taken: Taken, era: int | None = None) -> Taken:
        if taken.admitted:
            self._open[claim.permit] = _Open(claim, era, told=era is not None)
        return taken

    def _share(self, claim: Claim) -> Claim:
        return claim.share(self._processes())

    # What is said to Redis: all of one tick in one flight, and behind it the question which memory it was said to

    async def _asked(self, claim: Claim) -> Taken | None:
        """What Redis answers; None: it does not. Whoever stops waiting takes nothing."""
        answer: asyncio.Future[Taken | None] = asyncio.get_running_loop().create_future()
        self._say(_Step(take(claim, self._redis_now()), claim, answer))
        try:
            return await answer
        except asyncio.CancelledError:
            # Where it was cancelled before the answer came, `_hear` sees that nobody waits.
            if not answer.cancelled() and (taken := answer.result()) and taken.admitted:
                self._end(claim, -claim.tokens)
            raise

    def _end(self, claim: Claim, difference: int) -> None:
        if not self.is_shared:
            self._ended.append(claim)
        elif self._unheard >= _UNHEARD_MAX:
            self._metrics.dropped()  # an open call that nobody renews ends by itself
        elif difference or any(scope.allowance.concurrent for scope in claim.scopes):
            self._say(_Step(end(claim, difference, self._redis_now()), claim))

    def _say(self, step: _Step) -> None:
        self._unheard += 1
        self._steps.append(step)
        if len(self._steps) == 1:
            asyncio.get_running_loop().call_soon(self._fly)

    def _fly(self) -> None:
        steps, self._steps = self._steps, []
        if self._connection is None:
            self._give_up(steps)
        elif steps:
            flight = self._connection.ask([*[step.command for step in steps], _WHICH])
            flight.add_done_callback(partial(self._land, steps, self._epoch))

    def _land(self, steps: Sequence[_Step], epoch: object, flight: "asyncio.Future[list[object]]") -> None:
        lost = flight.exception()
        if lost is None:
            *answers, found = flight.result()
            lost = None if found == epoch else Emptied()
        if lost is not None:
            self._give_up(steps)
            self._lose(lost)
            return
        self._unheard -= len(steps)
        for step, answer in zip(steps, answers, strict=True):
            if step.answer is not None:
                self._hear(step, step.answer, answer)

    def _hear(self, step: _Step, waiting: "asyncio.Future[Taken | None]", answer: object) -> None:
        assert isinstance(answer, list)
        assert step.claim is not None
        taken = read(step.claim, answer)
        if not waiting.done():
            waiting.set_result(taken)
        elif taken.admitted:
            self._end(step.claim, -step.claim.tokens)

    def _give_up(self, steps: Iterable[_Step]) -> None:
        """Redis may have heard these steps or not: who waits goes on without it, and permits are ended when it is back.

        Whoever is let through here, or still is open, is told to it again after that.
        """
        for step in steps:
            self._unheard -= 1
            if step.claim is not None:
                self._ended.append(step.claim)
            if step.answer is not None and not step.answer.done():
                step.answer.set_result(None)

    # Whether Redis is there

    async def _look_on(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_SECONDS):
                    await self._hurry.wait()
            self._hurry.clear()
            await self._look()

    async def _look(self) -> None:
        """See whether Redis is there, writes, and still has what it was told; renew there what is open."""
        try:
            if self._connection is None:
                self._connection = Connection(SCRIPTS, _ANSWER_SECONDS)
                await self._connection.open(self._place)
            connection = self._connection
            _, epoch = await connection.ask([("SET", _EPOCH, new_id("epoch"), "NX"), _WHICH])
        except LOST as lost:
            self._lose(lost)
            return
        if connection is self._connection:  # else a flight found a doubt in the meantime
            self._find(epoch)

    def _lose(self, lost: BaseException) -> None:
        """From here on this process counts alone; who waits is answered so, and what is over is said later."""
        if self._connection is not None:
            self._connection.drop()
            self._connection = None
        if self._present is not False:
            self._present, self._era = False, self._era + 1
            self._metrics.shared(now=False)
            _log.warning(
                "limits: Redis is away (%s); this process keeps to its share, one of %d",
                _name_of(lost),
                self._processes(),
            )
        steps, self._steps = self._steps, []
        self._give_up(steps)
        if isinstance(lost, Emptied):
            self._hurry.set()

    def _find(self, epoch: object) -> None:
        """Redis is there: from here on it counts, told anew of every open call if it was away or lost its memory."""
        now = self._clock.monotonic()
        if not self.is_shared or epoch != self._epoch:
            if self._present is not None:
                self._wary_until = now + _WARY_SECONDS
                _log.warning("limits: Redis %s; limits are shared again", "forgot" if self.is_shared else "is back")
            self._present, self._epoch, self._era = True, epoch, self._era + 1
            self._metrics.shared(now=True)
            while self._ended:
                claim = self._ended.popleft()
                self._say(_Step(end(claim, 0, self._redis_now()), claim))
            self._renew_at = now
        if now >= self._renew_at:
            self._renew_at = now + _RENEW_SECONDS
            self._reopen()

    def _reopen(self) -> None:
        """Redis hears of every open call that it is open; what it does not hear of for a lease, it forgets."""
        for each in self._open.values():
            each.told = True
        for command in reopen((each.claim for each in self._open.values()), self._redis_now()):
            self._say(_Step(command))


def _name_of(lost: BaseException) -> str:
    return str(lost) if isinstance(lost, Refused) else type(lost).__name__
