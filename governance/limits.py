"""Requests, tokens and open calls per app and per key, in this process. It forgets when the process ends.

Money has its own gate: losing these counters lets too much through for a minute and never costs more than a budget.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from governance.directory import Directory
from governance.errors import NeverFits, RateLimited, TokensLimited
from governance.store import Allowance
from kernel import Caller, Clock

_NANOSECONDS = 1_000_000_000
# One request or token fills a bucket by this much and each nanosecond drains `limit` of it: whole numbers, no drift.
_UNIT = 60 * _NANOSECONDS


@dataclass(slots=True)
class _Bucket:
    """A leaky bucket that holds `limit` units and drains `limit` per minute."""

    limit: int
    at: int
    level: int = 0

    def drain(self, now: int) -> None:
        self.level = max(0, self.level - (now - self.at) * self.limit)
        self.at = now

    def add(self, count: int) -> None:
        self.level = max(0, self.level + count * _UNIT)

    def wait(self, count: int) -> int:
        """Nanoseconds until `count` fit; 0 when they do."""
        return max(0, -((self.limit * _UNIT - self.level - count * _UNIT) // self.limit))

    @property
    def remaining(self) -> int:
        return max(0, (self.limit * _UNIT - self.level) // _UNIT)

    @property
    def reset(self) -> int:
        """Nanoseconds until it is empty again."""
        return -(-self.level // self.limit)


@dataclass(slots=True)
class _Scope:
    """The counters of one app or one key. `calls` counts permits that are not released."""

    label: str
    allowance: Allowance
    at: int
    calls: int = 0
    requests: _Bucket | None = None
    tokens: _Bucket | None = None

    def adopt(self, allowance: Allowance, now: int) -> None:
        """Go on under these limits with what is used so far."""
        self.allowance = allowance
        self.requests = _resized(self.requests, allowance.requests_per_minute, now)
        self.tokens = _resized(self.tokens, allowance.tokens_per_minute, now)

    def drain(self, now: int) -> None:
        self.at = now
        for bucket in (self.requests, self.tokens):
            if bucket is not None:
                bucket.drain(now)

    @property
    def idle(self) -> bool:
        """Whether a new scope would behave the same."""
        return not (self.calls or (self.requests and self.requests.level) or (self.tokens and self.tokens.level))

    def refusals(self) -> Iterator[RateLimited]:
        """What keeps one more call from this scope."""
        if self.requests and (wait := self.requests.wait(1)):
            limit = f"{self.requests.limit} requests per minute"
            yield RateLimited(_reached(limit, self.label), retry_after_seconds=_seconds(wait))
        most = self.allowance.concurrent
        if most is not None and self.calls >= most:
            yield RateLimited(_reached(f"{most} calls at a time", self.label), retry_after_seconds=1)

    def token_refusal(self, count: int) -> RateLimited | None:
        """What keeps `count` more tokens from this scope."""
        if self.tokens is None or not (wait := self.tokens.wait(count)):
            return None
        limit = f"{self.tokens.limit} tokens per minute"
        if count > self.tokens.limit:
            return NeverFits(
                f"This request counts for {count} tokens and can never fit the limit of {limit} of {self.label}; "
                f"shorten it, ask for fewer output tokens, or have the limit raised."
            )
        return TokensLimited(_reached(limit, self.label), retry_after_seconds=_seconds(wait))


@dataclass(slots=True)
class Permit:
    """One call let through. Release it when the call ends; once or more often is the same.

    observed: what would have refused it, were the app's limits not merely observed.
    """

    _scopes: Sequence[_Scope]
    _clock: Clock
    _enforced: bool
    observed: list[str] = field(default_factory=list)
    _taken: int = 0
    _charged: list[_Bucket] = field(default_factory=list)
    _released: bool = False

    def take_tokens(self, count: int) -> None:
        """Charge the estimate to every token limit, or to none. Raises RateLimited; NeverFits is one."""
        now = _now(self._clock)
        for scope in self._scopes:
            scope.drain(now)
        refusals = [refusal for scope in self._scopes if (refusal := scope.token_refusal(count))]
        if refusals:
            _refuse(refusals, enforced=self._enforced)
            self.observed += [refusal.message for refusal in refusals]
            return
        self._charged = [scope.tokens for scope in self._scopes if scope.tokens]
        self._taken += count
        for bucket in self._charged:
            bucket.add(count)

    def settle_tokens(self, actual: int) -> None:
        """Charge what was really used instead of what was taken. More than a limit holds delays the next call."""
        now, difference = _now(self._clock), actual - self._taken
        for bucket in self._charged:
            bucket.drain(now)
            bucket.add(difference)
        self._taken = actual

    def release(self) -> None:
        """The call is over."""
        if not self._released:
            self._released = True
            for scope in self._scopes:
                scope.calls -= 1

    def headers(self) -> dict[str, str]:
        """The `x-ratelimit-*` headers for the limit with the least left; none where there is no limit."""
        now = _now(self._clock)
        for scope in self._scopes:
            scope.drain(now)
        requests = [scope.requests for scope in self._scopes if scope.requests]
        tokens = [scope.tokens for scope in self._scopes if scope.tokens]
        return _headers("requests", requests) | _headers("tokens", tokens)


class Limits:
    """Lets calls through at the declared rates. key_limits: a key's own limits by its id."""

    def __init__(
        self,
        directory: Callable[[], Directory],
        key_limits: Callable[[str], Allowance | None],
        *,
        clock: Clock,
    ) -> None:
        self._directory = directory
        self._key_limits = key_limits
        self._clock = clock
        self._scopes: dict[tuple[str, str], _Scope] = {}

    def take(self, caller: Caller) -> Permit:
        """One request against every limit that applies to the caller, or against none. Raises RateLimited."""
        now = _now(self._clock)
        self._drop_idle(now)
        app = self._directory().apps.get(caller.app or "")
        until = app.limits_observed_until if app else None
        observed = until is not None and self._clock.now().date() <= until
        scopes = list(self._scopes_of(caller, app.allowance if app else None, now))
        refusals = [refusal for scope in scopes for refusal in scope.refusals()]
        _refuse(refusals, enforced=not observed)
        for scope in scopes:
            scope.calls += 1
            if scope.requests and not refusals:
                scope.requests.add(1)
        return Permit(scopes, self._clock, not observed, [refusal.message for refusal in refusals])

    def _scopes_of(self, caller: Caller, of_app: Allowance | None, now: int) -> Iterator[_Scope]:
        if of_app is not None and caller.app is not None:
            yield self._scope(("app", caller.app), of_app, now)
        of_key = self._key_limits(caller.key_id)
        if of_key is not None and of_key != Allowance():
            yield self._scope(("key", caller.key_id), of_key, now)

    def _scope(self, key: tuple[str, str], allowance: Allowance, now: int) -> _Scope:
        scope = self._scopes.pop(key, None) or _Scope(f"{key[0]} '{key[1]}'", Allowance(), now)
        self._scopes[key] = scope  # Last touched, last in the order that `_drop_idle` walks.
        scope.drain(now)
        if scope.allowance != allowance:
            scope.adopt(allowance, now)
        return scope

    def _drop_idle(self, now: int) -> None:
        # Two per call, from the longest untouched on: memory is bounded and no call pays for a sweep.
        for key, scope in list(islice(self._scopes.items(), 2)):
            if now - scope.at < _UNIT:
                return
            scope.drain(now)
            del self._scopes[key]
            if not scope.idle:
                self._scopes[key] = scope


def _refuse(refusals: Sequence[RateLimited], *, enforced: bool) -> None:
    if refusals and enforced:
        raise max(refusals, key=lambda each: (not each.retryable, each.retry_after_seconds or 0))


def _resized(bucket: _Bucket | None, limit: int | None, now: int) -> _Bucket | None:
    if limit is None:
        return None
    return _Bucket(limit, now, bucket.level if bucket else 0)


def _now(clock: Clock) -> int:
    return int(clock.monotonic() * _NANOSECONDS)


def _seconds(nanoseconds: int) -> int:
    return max(1, -(-nanoseconds // _NANOSECONDS))


def _reached(limit: str, label: str) -> str:
    return f"The limit of {limit} of {label} is reached; come back later or have it raised."


def _headers(what: str, buckets: Sequence[_Bucket]) -> dict[str, str]:
    if not buckets:
        return {}
    tightest = min(buckets, key=lambda bucket: bucket.remaining)
    return {
        f"x-ratelimit-limit-{what}": str(tightest.limit),
        f"x-ratelimit-remaining-{what}": str(tightest.remaining),
        f"x-ratelimit-reset-{what}": duration(tightest.reset),
    }


def duration(nanoseconds: int) -> str:
    """As OpenAI writes it: `20ms`, `1s`, `6m0s`; rounded up."""
    if nanoseconds < _NANOSECONDS:
        milliseconds = -(-nanoseconds // 1_000_000)
        return f"{milliseconds}ms" if milliseconds else "0s"
    minutes, seconds = divmod(-(-nanoseconds // _NANOSECONDS), 60)
    return f"{minutes}m{seconds}s" if minutes else f"{seconds}s"
