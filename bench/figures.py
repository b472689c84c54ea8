"""The words of a result: what is measured, in which unit, and the samples of a run. Nothing is measured here."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Scenario(StrEnum):
    """The kinds of work. `start` comes with every gateway."""

    START = "start"
    REQUESTS = "requests"
    LATENCY = "latency"
    CHUNKS = "chunks"
    STREAMS = "streams"


class Figure(StrEnum):
    """One number of one gateway in one round; the unit is in the name."""

    START_SECONDS = "start_seconds"
    IDLE_MIB = "idle_mib"
    REQUEST_CPU_US = "request_cpu_us"
    BESIDE_CPU_US = "beside_cpu_us"
    REQUESTS_PER_SECOND = "requests_per_second"
    CORE_SHARE = "core_share"
    LATENCY_P50_MS = "latency_p50_ms"
    LATENCY_P99_MS = "latency_p99_ms"
    COMMIT_P50_MS = "commit_p50_ms"
    CHUNK_CPU_US = "chunk_cpu_us"
    TRANSIT_P50_MS = "transit_p50_ms"
    STREAM_FAILURES = "stream_failures"
    FIRST_CHUNK_P50_MS = "first_chunk_p50_ms"
    FIRST_CHUNK_P99_MS = "first_chunk_p99_ms"
    STREAMS_MIB = "streams_mib"


Figures = Mapping[Figure, float]


@dataclass(frozen=True, slots=True)
class Sample:
    """What one gateway did in one round.

    loads: what the load saw, by scenario. told: one turn's account of itself, where the gateway gives one.
    """

    round: int
    gateway: str
    figures: Figures
    loads: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    told: Mapping[str, Any] | None = None
    failed: str | None = None


@dataclass(frozen=True, slots=True)
class Contender:
    """A gateway as the tables name it. missing: why it could not be run."""

    name: str
    title: str
    version: str
    missing: str | None = None


def by_round(samples: tuple[Sample, ...]) -> list[Mapping[str, Figures]]:
    """The figures of each round, by gateway: what was measured within minutes of each other."""
    numbers = sorted({sample.round for sample in samples})
    return [{each.gateway: each.figures for each in samples if each.round == number} for number in numbers]
