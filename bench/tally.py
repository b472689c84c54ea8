"""What a load saw: counted while it runs, told as percentiles when it is over."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Spread:
    """Percentiles of what was measured, in milliseconds."""

    p50: float
    p95: float
    p99: float
    max: float

    @classmethod
    def of(cls, nanoseconds: Sequence[int]) -> "Spread | None":
        """The spread of at least one measurement; of none there is none."""
        if not nanoseconds:
            return None
        ordered = sorted(nanoseconds)

        def at(share: float) -> float:
            return round(ordered[math.floor(share * (len(ordered) - 1) + 0.5)] / 1e6, 4)

        return cls(at(0.5), at(0.95), at(0.99), at(1))


@dataclass(frozen=True, slots=True)
class Seen:
    """One load's result. per_second counts what ended in time; `ended` also what was waited for.

    chunks: stamped events of streams. errors: how often, by kind.
    """

    ended: int
    per_second: float
    seconds: float
    errors: dict[str, int]
    latency_ms: Spread | None
    first_chunk_ms: Spread | None = None
    transit_ms: Spread | None = None
    chunks: int = 0
    chunks_per_second: float = 0.0


@dataclass(slots=True)
class Tally:
    """What all connections saw, in nanoseconds."""

    latency: list[int] = field(default_factory=list)
    first_chunk: list[int] = field(default_factory=list)
    transit: list[int] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    in_time: int = 0
    chunks_in_time: int = 0

    def seen(self, seconds: float) -> Seen:
        """The result of a load that lasted so long, without the wait for its last answers."""
        return Seen(
            ended=len(self.latency),
            per_second=round(self.in_time / seconds, 2),
            seconds=round(seconds, 3),
            errors=dict(self.errors),
            latency_ms=Spread.of(self.latency),
            first_chunk_ms=Spread.of(self.first_chunk),
            transit_ms=Spread.of(self.transit),
            chunks=len(self.transit),
            chunks_per_second=round(self.chunks_in_time / seconds, 1),
        )
