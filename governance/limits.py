"""Requests, tokens and open calls per app and per key: what applies to a caller, and what it hears when it is full.

Who counts is counters.py's: this process, or Redis for all of them. Money has its own gate and knows nothing of this.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count

from msgspec import Struct, field

from governance.counters import UNIT, Claim, Counters, Scope, Standing, Taken
from governance.directory import Directory
from governance.errors import NeverFits, RateLimited, TokensLimited
from governance.store import Allowance
from kernel import Caller, Clock, new_id

_KNOWN_MAX = 10_000


class Permit(Struct):
    """One call let through. Release it when the call ends; once or more often is the same.

    observed: what would have refused it, were the app's limits not merely observed; such a call counts nowhere.
    """

    _counters: Counters
    _claim: Claim | None = None
    _standings: Sequence[Standing] = ()
    observed: list[str] = field(default_factory=list)
    _more: int = 0
    _headers: dict[str, str] | None = None

    def settle_tokens(self, actual: int) -> None:
        """Let `release` count what was really used instead of the estimate. More than fits delays later calls."""
        if self._claim is not None:
            self._more = actual - self._claim.tokens

    def release(self) -> None:
        """The call is over."""
        claim, self._claim = self._claim, None
        if claim is not None:
            self._counters.release(claim, self._more)

    def headers(self) -> dict[str, str]:
        """The `x-ratelimit-*` headers, as of the taking, for the limit with the least left; none without a limit."""
        if self._headers is None:
            self._headers = _headers(self._standings)
        return self._headers


@dataclass(frozen=True, slots=True)
class _Known:
    """What applies to one caller; worked out once, it holds while both limits are the objects they were."""

    of_app: Allowance | None
    of_key: Allowance | None
    scopes: tuple[Scope, ...]


class Limits:
    """Lets calls through at the declared rates. key_limits: a key's own limits by its id.

    may_serve: raises where this process must let nobody through, because another one may be counting.
    """

    def __init__(
        self,
        directory: Callable[[], Directory],
        key_limits: Callable[[str], Allowance | None],
        *,
        counters: Counters,
        clock: Clock,
        may_serve: Callable[[], None] = lambda: None,
    ) -> None:
        self._directory = directory
        self._key_limits = key_limits
        self._counters = counters
        self._clock = clock
        self._may_serve = may_serve
        self._known: dict[tuple[str, str | None], _Known] = {}
        # Nobody else counts under this name, so a number after it names a call.
        self._name, self._numbers = new_id("permits"), count()

    async def take(self, caller: Caller, tokens: int) -> Permit:
        """One request with so many estimated tokens against every limit of the caller, or against none.

        Raises RateLimited, of which NeverFits is one, and what `may_serve` raises.
        """
        self._may_serve()
        app = self._directory().apps.get(caller.app or "")
        scopes = self._scopes_of(caller, app.allowance if app else None)
        if not scopes:
            return Permit(self._counters)
        claim = Claim(f"{self._name}-{next(self._numbers)}", scopes, tokens)
        taken = await self._counters.take(claim)
        if taken.admitted:
            return Permit(self._counters, claim, taken.standings)
        refusals = list(_refusals(claim, taken))
        until = app.limits_observed_until if app else None
        if until is None or self._clock.now().date() > until:
            raise _worst(refusals, _headers(taken.standings))
        return Permit(self._counters, None, taken.standings, [refusal.message for refusal in refusals])

    def _scopes_of(self, caller: Caller, of_app: Allowance | None) -> tuple[Scope, ...]:
        of_key = self._key_limits(caller.key_id)
        known = self._known.get((caller.key_id, caller.app))
        if known is None or known.of_app is not of_app or known.of_key is not of_key:
            if len(self._known) >= _KNOWN_MAX:
                self._known.clear()
            known = _Known(of_app, of_key, tuple(_scopes(caller, of_app, of_key)))
            self._known[caller.key_id, caller.app] = known
        return known.scopes


def _scopes(caller: Caller, of_app: Allowance | None, of_key: Allowance | None) -> Iterator[Scope]:
    place = caller.app or caller.key_id
    if of_app is not None and of_app != Allowance():
        yield Scope("app", place, place, of_app)
    if of_key is not None and of_key != Allowance():
        yield Scope("key", caller.key_id, place, of_key)


def _refusals(claim: Claim, taken: Taken) -> Iterator[RateLimited]:
    for declared, standing in zip(claim.scopes, taken.standings, strict=True):
        limits, label = standing.scope.allowance, declared.label
        for lacking in standing.lacks(claim.tokens):
            match lacking:
                case "requests":
                    wait = _wait(standing.requests, 1, limits.requests_per_minute)
                    yield RateLimited(
                        _reached(f"{limits.requests_per_minute} requests per minute", label), retry_after_seconds=wait
                    )
                case "concurrent":
                    yield RateLimited(_reached(f"{limits.concurrent} calls at a time", label), retry_after_seconds=1)
                case "tokens":
                    yield _tokens_refusal(claim.tokens, standing, declared)


def _tokens_refusal(tokens: int, standing: Standing, declared: Scope) -> RateLimited:
    # A share of a limit grows again; only what is larger than the declared limit never fits.
    whole, limit = declared.allowance.tokens_per_minute, standing.scope.allowance.tokens_per_minute
    if whole is not None and tokens > whole:
        return NeverFits(
            f"This request counts for {tokens} tokens and can never fit the limit of {whole} tokens per minute of "
            f"{declared.label}; shorten it, ask for fewer output tokens, or have the limit raised."
        )
    wait = _wait(standing.tokens, tokens, limit)
    return TokensLimited(_reached(f"{limit} tokens per minute", declared.label), retry_after_seconds=wait)


def _worst(refusals: Iterable[RateLimited], headers: Mapping[str, str]) -> RateLimited:
    worst = max(refusals, key=lambda each: (not each.retryable, each.retry_after_seconds or 0))
    worst.headers = headers
    return worst


def _wait(level: int, count: int, limit: int | None) -> int:
    """Whole seconds until `count` fit, at least one."""
    assert limit is not None, "only a limit can lack something"
    missing = level + min(count, limit) * UNIT - limit * UNIT
    return max(1, -(-missing // (limit * 1000)))


def _reached(limit: str, label: str) -> str:
    return f"The limit of {limit} of {label} is reached; come back later or have it raised."


def _headers(standings: Iterable[Standing]) -> dict[str, str]:
    requests, tokens = [], []
    for each in standings:
        allowance = each.scope.allowance
        if (limit := allowance.requests_per_minute) is not None:
            requests.append(_left(each.requests, limit))
        if (limit := allowance.tokens_per_minute) is not None:
            tokens.append(_left(each.tokens, limit))
    found: dict[str, str] = {}
    if requests:
        remaining, limit, reset = min(requests)
        found["x-ratelimit-limit-requests"] = str(limit)
        found["x-ratelimit-remaining-requests"] = str(remaining)
        found["x-ratelimit-reset-requests"] = duration(reset)
    if tokens:
        remaining, limit, reset = min(tokens)
        found["x-ratelimit-limit-tokens"] = str(limit)
        found["x-ratelimit-remaining-tokens"] = str(remaining)
        found["x-ratelimit-reset-tokens"] = duration(reset)
    return found


def _left(level: int, limit: int) -> tuple[int, int, int]:
    """Of a bucket: how much is left, the limit, and milliseconds until all of it is."""
    return max(0, limit - -(-level // UNIT)), limit, -(-level // limit)


def duration(milliseconds: int) -> str:
    """As OpenAI writes it: `20ms`, `1s`, `6m0s`; rounded up."""
    if milliseconds < 1000:  # noqa: PLR2004 - a second
        return f"{milliseconds}ms" if milliseconds else "0s"
    minutes, seconds = divmod(-(-milliseconds // 1000), 60)
    return f"{minutes}m{seconds}s" if minutes else f"{seconds}s"
