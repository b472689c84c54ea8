"""The counters of one process. They are forgotten when it ends; nothing here knows of other processes."""

from collections import OrderedDict
from dataclasses import dataclass, field

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
        passed, self.at = now - self.at, now
        if passed <= 0:
            return
        if limit := self.allowance.requests_per_minute:
            self.requests = max(0, self.requests - passed * limit)
            self.requests_part = max(0, self.requests_part - passed * limit)
        else:
            self.requests = self.requests_part = 0
        if limit := self.allowance.tokens_per_minute:
            self.tokens = max(0, self.tokens - passed * limit)
            self.tokens_part = max(0, self.tokens_part - passed * limit)
        else:
            self.tokens = self.tokens_part = 0

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
        self._counters: OrderedDict[tuple[str, str], _Counter] = OrderedDict()  # last touched, last in order

    async def take(self, claim: Claim) -> Taken:
        """Count the claim in all of its scopes, or in none."""
        return self.admit(claim)

    def admit(self, claim: Claim) -> Taken:
        """`take`, for those who cannot wait."""
        counters = self._current(claim)
        standings = _standings(counters, claim)
        for standing in standings:
            if standing.lacks(claim.tokens):
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
        if adopt:
            self._drop_idle(now)
        counters = []
        for scope in claim.scopes:
            key = (scope.kind, scope.name)
            counter = self._counters.get(key)
            if counter is None:
                counter = self._counters[key] = _Counter(now, scope.allowance)
            else:
                self._counters.move_to_end(key)
            if adopt:
                counter.allowance = scope.allowance
            counter.drain(now)
            counters.append(counter)
        return counters

    def _drop_idle(self, now: int) -> None:
        # Two per claim, from the longest untouched on: memory is bounded and no call pays for a sweep.
        for _ in range(2):
            key = next(iter(self._counters), None)
            if key is None or now - (counter := self._counters[key]).at < _IDLE_MILLISECONDS:
                return
            counter.drain(now)
            self._counters.move_to_end(key)
            if counter.idle:
                del self._counters[key]


def _standings(counters: list[_Counter], claim: Claim) -> tuple[Standing, ...]:
    return tuple([counter.standing(scope) for counter, scope in zip(counters, claim.scopes, strict=True)])
