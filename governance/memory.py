"""The counters of one process. They are forgotten when it ends; nothing here knows of other processes."""

from dataclasses import dataclass, field
from itertools import islice

from governance.counters import UNIT, Claim, Scope, Standing, Taken
from governance.store import Allowance
from kernel import Clock

_IDLE_MILLISECONDS = 60_000


@dataclass(slots=True)
class _Counter:
    """What one app or key has used: two leaky buckets that drain at `allowance`, and the permits that are open.

    requests_part, tokens_part: this process's part of what all processes have used, below which no bucket stands.
    """

    at: int
    allowance: Allowance
    requests: int = 0
    tokens: int = 0
    requests_part: int = 0
    tokens_part: int = 0
    calls: set[str] = field(default_factory=set)

    def drain(self, now: int) -> None:
        # A clock that ran backwards drains nothing and is followed all the same.
        passed, self.at = max(0, now - self.at), now
        own = self.allowance
        self.requests = _drained(self.requests, own.requests_per_minute, passed)
        self.tokens = _drained(self.tokens, own.tokens_per_minute, passed)
        self.requests_part = _drained(self.requests_part, own.requests_per_minute, passed)
        self.tokens_part = _drained(self.tokens_part, own.tokens_per_minute, passed)

    def add(self, permit: str, tokens: int) -> None:
        if self.allowance.requests_per_minute:
            self.requests += UNIT
        if self.allowance.tokens_per_minute:
            self.tokens += tokens * UNIT
        if self.allowance.concurrent:
            self.calls.add(permit)

    def settle(self, difference: int) -> None:
        if self.allowance.tokens_per_minute:
            self.tokens = max(0, self.tokens + difference * UNIT)

    def standing(self, scope: Scope) -> Standing:
        requests, tokens = max(self.requests, self.requests_part), max(self.tokens, self.tokens_part)
        return Standing(scope, requests, tokens, len(self.calls))

    @property
    def idle(self) -> bool:
        """Whether a new counter would behave the same."""
        return not (self.requests or self.tokens or self.requests_part or self.tokens_part or self.calls)


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
        standings = _standings(counters, claim)
        if any(next(standing.lacks(claim.tokens), None) for standing in standings):
            return Taken(admitted=False, standings=standings)
        for counter in counters:
            counter.add(claim.permit, claim.tokens)
        return Taken(admitted=True, standings=_standings(counters, claim))

    def note(self, claim: Claim, taken: Taken, processes: int) -> None:
        """Count what was decided elsewhere for so many processes, whether it fits here or not."""
        for counter, standing in zip(self._current(claim), taken.standings, strict=True):
            if taken.admitted:
                counter.add(claim.permit, claim.tokens)
            counter.requests_part = standing.requests // processes
            counter.tokens_part = standing.tokens // processes

    def undo(self, claim: Claim) -> None:
        """An admitted claim was not let through after all, so that not even its request counts."""
        for counter in self._current(claim, adopt=False):
            if counter.allowance.requests_per_minute:
                counter.requests = max(0, counter.requests - UNIT)
        self.release(claim, -claim.tokens)

    def release(self, claim: Claim, difference: int = 0) -> None:
        """The call is over and used so many tokens more, or fewer, than it claimed."""
        if difference:
            for counter in self._current(claim, adopt=False):
                counter.settle(difference)
        for scope in claim.scopes:
            if counter_there := self._counters.get((scope.kind, scope.name)):
                counter_there.calls.discard(claim.permit)

    def _current(self, claim: Claim, *, adopt: bool = True) -> list[_Counter]:
        """The counters of the claim's scopes, drained until now; adopt: they go on under the claim's limits."""
        now = int(self._clock.monotonic() * 1000)
        self._drop_idle(now)
        counters = []
        for scope in claim.scopes:
            key = (scope.kind, scope.name)
            counter = self._counters.pop(key, None) or _Counter(now, scope.allowance)
            self._counters[key] = counter  # Last touched, last in the order that `_drop_idle` walks.
            if adopt:
                counter.allowance = scope.allowance
            counter.drain(now)
            counters.append(counter)
        return counters

    def _drop_idle(self, now: int) -> None:
        # Two per call, from the longest untouched on: memory is bounded and no call pays for a sweep.
        for key, counter in list(islice(self._counters.items(), 2)):
            if now - counter.at < _IDLE_MILLISECONDS:
                return
            counter.drain(now)
            del self._counters[key]
            if not counter.idle:
                self._counters[key] = counter


def _standings(counters: list[_Counter], claim: Claim) -> tuple[Standing, ...]:
    return tuple([counter.standing(scope) for counter, scope in zip(counters, claim.scopes, strict=True)])


def _drained(level: int, limit: int | None, passed: int) -> int:
    return max(0, level - passed * limit) if level and limit else 0
