"""What is promised of our speed, and whether a run kept it: ratios and differences within one round, then medians.

An absolute time says more of the machine than of us; docs/decisions/0003-bench.md tells where the figures come from.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from bench.figures import Figure, Figures

Round = Mapping[str, Figures]
Verdict = Literal["aim reached", "met", "not met", "not run"]
STORES = ("sqlite", "postgres")


@dataclass(frozen=True, slots=True)
class Promise:
    """A figure that must be reached, and one that should.

    value: the figure of the gateway with this name in one round; KeyError where something of it was not measured.
    over: what is made of the rounds' figures. at_least: whether more is better.
    """

    what: str
    unit: str
    must: float
    aim: float
    value: Callable[[Round, str], float]
    at_least: bool = False
    over: Callable[[Sequence[float]], float] = median

    def verdict(self, value: float | None) -> Verdict:
        """Whether this figure keeps the promise."""
        if value is None:
            return "not run"
        sign = -1 if self.at_least else 1
        if sign * value <= sign * self.aim:
            return "aim reached"
        return "met" if sign * value <= sign * self.must else "not met"


@dataclass(frozen=True, slots=True)
class Row:
    """A promise on one store: its figure over all rounds in which it could be had."""

    what: str
    unit: str
    store: str
    must: str
    aim: str
    value: float | None
    verdict: Verdict


def _against(peer: str, figure: Figure) -> Callable[[Round, str], float]:
    return lambda seen, ours: seen[ours][figure] / seen[peer][figure]


def _own(figure: Figure) -> Callable[[Round, str], float]:
    return lambda seen, ours: seen[ours][figure]


def _added_latency(seen: Round, ours: str) -> float:
    """Over a plain proxy and over one durable commit. Without nginx the relay takes its place, which is faster."""
    proxy = seen["nginx" if Figure.LATENCY_P50_MS in seen.get("nginx", {}) else "relay"]
    own = seen[ours]
    return own[Figure.LATENCY_P50_MS] - proxy[Figure.LATENCY_P50_MS] - own[Figure.COMMIT_P50_MS]


def _added_first_chunk(seen: Round, ours: str) -> float:
    return seen[ours][Figure.FIRST_CHUNK_P99_MS] - seen["direct"][Figure.FIRST_CHUNK_P99_MS]


PROMISES = (
    Promise("CPU per request, against TensorZero", "x", 1.0, 0.7, _against("tensorzero", Figure.REQUEST_CPU_US)),
    Promise(
        "requests/s at 64 clients, against Portkey",
        "x",
        7,
        12,
        _against("portkey", Figure.REQUESTS_PER_SECOND),
        at_least=True,
    ),
    Promise(
        "requests/s at 64 clients, against LiteLLM",
        "x",
        50,
        100,
        _against("litellm", Figure.REQUESTS_PER_SECOND),
        at_least=True,
    ),
    Promise("CPU per streamed chunk, against TensorZero", "x", 0.8, 0.6, _against("tensorzero", Figure.CHUNK_CPU_US)),
    Promise("p50 at 20 requests/s, over nginx and one commit", "ms", 0.6, 0.3, _added_latency),
    Promise("1,000 streams x 10 events/s: failures", "", 0, 0, _own(Figure.STREAM_FAILURES), over=max),
    Promise("1,000 streams: p99 to the first chunk, added", "ms", 150, 100, _added_first_chunk),
    Promise("1,000 streams: memory", "MiB", 300, 200, _own(Figure.STREAMS_MIB)),
    Promise("start to first answer", "s", 3, 1, _own(Figure.START_SECONDS)),
    Promise("memory when idle", "MiB", 150, 90, _own(Figure.IDLE_MIB)),
)


def judge(rounds: Sequence[Round]) -> tuple[Row, ...]:
    """Every promise on every store."""
    return tuple(_row(promise, store, rounds) for promise in PROMISES for store in STORES)


def _row(promise: Promise, store: str, rounds: Sequence[Round]) -> Row:
    values = []
    for seen in rounds:
        try:
            values.append(promise.value(seen, f"penstock-{store}"))
        except KeyError:
            continue
    value = promise.over(values) if values else None
    sign = ">=" if promise.at_least else "<="
    must, aim = (f"{sign} {bound:g} {promise.unit}".strip() for bound in (promise.must, promise.aim))
    return Row(promise.what, promise.unit, store, must, aim, value, promise.verdict(value))
