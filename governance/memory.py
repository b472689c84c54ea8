"""The counters of one process. They are forgotten when it ends; nothing here knows of other processes."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

from governance.counters import UNIT, Claim, Scope, Standing, Taken
from governance.store import Allowance
from kernel import Clock

_IDLE_MILLISECONDS = 60_000


@dataclass(slots=True)
class _Counter:
    """What one app or key has used: two leaky buckets that drain at `allowance`, and the permits that are open."""

    at: int
    allowance: Allowance = field(default_factory=Allowance)
    requests: int = 0
    tokens: int = 0
    calls: set[str] = field(default_factory=set)

    def drain(self, now: int) -> None:
        # A clock that ran backwards drains nothing and is followed all the same.
        passed, self.at = max(0, now - self.at), now
        self.requests = _drained(self.requests, self.allowance.requests_per_minute, passed)
        self.tokens = _drained(self.tokens, self.allowance.tokens_per_minute, passed)

    def standing(self, scope: Scope) -> Standing:
        return Standing(scope, self.requests, self.tokens, len(self.calls))

    @property
    def idle(self) -> bool:
        """Whether a new counter would behave the same."""
        return not (self.requests or self.tokens or self.calls)


class MemoryCounters:
    """Counters in this process; memory is bounded by what was used within the last minutes."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._counters: dict[tuple[str, str], _Counter] = {}

    async def take(self, claim: Claim) -> Taken:
        """Count the claim in all of its scopes, or in none."""
        return self.admit(claim)

    def admit(self, claim: Claim) -> Taken:
        """`take`, for those who cannot wait."""
        counters = self._current(claim)
        standings = tuple(counter.standing(scope) for counter, scope in zip(counters, claim.scopes, strict=True))
        if any(True for standing in standings for _ in standing.lacks(claim.tokens)):
            return Taken(admitted=False, standings=standings)
        return Taken(admitted=True, standings=self._count(claim, counters))

    def count(self, claim: Claim) -> None:
        """Count what was admitted elsewhere, whether it fits here or not."""
        self._count(claim, self._current(claim))

    def settle(self, claim: Claim, difference: int) -> None:
        """Count so many tokens more, or fewer."""
        for counter in self._current(claim, adopt=False):
            if counter.allowance.tokens_per_minute:
                counter.tokens = max(0, counter.tokens + difference * UNIT)

    def release(self, claim: Claim) -> None:
        """The call is over; once or more often is the same."""
        for scope in claim.scopes:
            if counter := self._counters.get((scope.kind, scope.name)):
                counter.calls.discard(claim.permit)

    def _count(self, claim: Claim, counters: list[_Counter]) -> tuple[Standing, ...]:
        for counter in counters:
            if counter.allowance.requests_per_minute:
                counter.requests += UNIT
            if counter.allowance.tokens_per_minute:
                counter.tokens += claim.tokens * UNIT
            if counter.allowance.concurrent:
                counter.calls.add(claim.permit)
        return tuple(counter.standing(scope) for counter, scope in zip(counters, claim.scopes, strict=True))

    def _current(self, claim: Claim, *, adopt: bool = True) -> list[_Counter]:
        """The counters of the claim's scopes, drained until now; adopt: they go on under the claim's limits."""
        now = int(self._clock.monotonic() * 1000)
        self._drop_idle(now)
        return list(self._touched(claim, now, adopt=adopt))

    def _touched(self, claim: Claim, now: int, *, adopt: bool) -> Iterator[_Counter]:
        for scope in claim.scopes:
            key = (scope.kind, scope.name)
            found = self._counters.pop(key, None)
            counter = found or _Counter(now, scope.allowance)
            self._counters[key] = counter  # Last touched, last in the order that `_drop_idle` walks.
            if adopt:
                counter.allowance = scope.allowance
            counter.drain(now)
            yield counter

    def _drop_idle(self, now: int) -> None:
        # Two per call, from the longest untouched on: memory is bounded and no call pays for a sweep.
        for key, counter in list(islice(self._counters.items(), 2)):
            if now - counter.at < _IDLE_MILLISECONDS:
                return
            counter.drain(now)
            del self._counters[key]
            if not counter.idle:
                self._counters[key] = counter


def _drained(level: int, limit: int | None, passed: int) -> int:
    return max(0, level - passed * limit) if limit else 0
