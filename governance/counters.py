"""What is counted for limits, behind one contract: in this process (memory.py) or for all of them (redis.py).

Whole numbers only, so that every implementation comes to the same result. What a full bucket means for a caller is
said in limits.py.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

from msgspec import Struct

from governance.store import Allowance

# One request or token fills a bucket by this much and each millisecond drains `limit` of it: no drift, and all
# values stay below 2**53, where the numbers of Redis' scripts are exact.
UNIT = 60_000


@dataclass(frozen=True, slots=True)
class Scope:
    """An app or a key under its limits. place: the app whose counters a store keeps together."""

    kind: Literal["app", "key"]
    name: str
    place: str
    allowance: Allowance

    @property
    def label(self) -> str:
        """How messages name it."""
        return f"{self.kind} '{self.name}'"

    def share(self, processes: int) -> "Scope":
        """The scope with the part of its limits that one of so many processes may use: rounded down, at least 1."""
        own = self.allowance
        part = Allowance(
            _part(own.requests_per_minute, processes),
            _part(own.tokens_per_minute, processes),
            _part(own.concurrent, processes),
        )
        return Scope(self.kind, self.name, self.place, part)


class Claim(Struct, frozen=True):
    """One call that asks all of its scopes at once for a request, for so many tokens and for a place among open calls.

    permit: names the call; a store keeps it as open under this name.
    """

    permit: str
    scopes: tuple[Scope, ...]
    tokens: int

    def share(self, processes: int) -> "Claim":
        """The same claim on one process's part of the limits."""
        return Claim(self.permit, tuple([scope.share(processes) for scope in self.scopes]), self.tokens)


class Standing(Struct, frozen=True):
    """How full a scope is: buckets in `UNIT`, open calls by number. scope: under the limits that were applied."""

    scope: Scope
    requests: int
    tokens: int
    calls: int

    def lacks(self, tokens: int) -> list[Literal["requests", "tokens", "concurrent"]]:
        """What one more call with so many tokens would need and does not find."""
        limits, lacking = self.scope.allowance, list[Literal["requests", "tokens", "concurrent"]]()
        if limits.requests_per_minute and self.requests + UNIT > limits.requests_per_minute * UNIT:
            lacking.append("requests")
        if limits.tokens_per_minute and self.tokens + tokens * UNIT > limits.tokens_per_minute * UNIT:
            lacking.append("tokens")
        if limits.concurrent and self.calls >= limits.concurrent:
            lacking.append("concurrent")
        return lacking


class Taken(Struct, frozen=True):
    """The answer to a claim, with its scopes in their order: after it where it was admitted, else unchanged."""

    admitted: bool
    standings: tuple[Standing, ...]


class Counters(Protocol):
    """Counts calls. Losing what it counts lets too much through for a minute and never costs more than a budget."""

    async def take(self, claim: Claim) -> Taken:
        """Count the claim in all of its scopes, or in none. Never raises for a store that is away."""
        ...

    def release(self, claim: Claim, difference: int = 0) -> None:
        """An admitted claim's call is over, and used so many tokens more, or fewer, than it claimed. Never fails."""
        ...


def _part(limit: int | None, processes: int) -> int | None:
    return None if limit is None else max(1, limit // max(1, processes))
