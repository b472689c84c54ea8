"""A run's file: the machine, the versions, every sample, and what follows from them. Nothing is measured here."""

import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.cores import Cores
from bench.figures import Contender, Figure, Figures, Sample, by_round
from bench.verdicts import Row, judge
from tests.prove.yardsticks import Yardsticks


@dataclass(frozen=True, slots=True)
class Machine:
    """What it ran on."""

    processor: str
    cores: int
    memory_gib: float
    kernel: str
    gateway_core: int
    beside_core: int
    yardsticks: Yardsticks

    @classmethod
    def here(cls, cores: Cores, yardsticks: Yardsticks) -> "Machine":
        """What the machine tells of itself."""
        told = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.partition(":")[2].strip() for line in told if line.startswith("model name")]
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1024**3
        return cls(
            processor=names[0] if names else platform.machine(),
            cores=os.cpu_count() or 1,
            memory_gib=round(memory, 1),
            kernel=platform.release(),
            gateway_core=cores.gateway,
            beside_core=cores.beside,
            yardsticks=yardsticks,
        )

    def __str__(self) -> str:
        return f"{self.processor}, {self.cores} cores, {self.memory_gib:g} GiB, Linux {self.kernel}; {self.yardsticks}"


@dataclass(frozen=True, slots=True)
class Results:
    """Everything of one run. at: when it began, in ISO 8601."""

    at: str
    commit: str
    rounds: int
    machine: Machine
    contenders: tuple[Contender, ...]
    samples: tuple[Sample, ...]

    @property
    def rows(self) -> tuple[Row, ...]:
        """Each figure that is promised, with its verdict."""
        return judge(by_round(self.samples))

    def write(self, path: Path) -> None:
        """Replace the file at `path` whole."""
        path.parent.mkdir(parents=True, exist_ok=True)
        body = asdict(self) | {"rows": [asdict(row) for row in self.rows]}
        draft = path.with_suffix(".draft")
        draft.write_text(json.dumps(body, indent=1, ensure_ascii=False) + "\n")
        draft.replace(path)


def read(path: Path) -> Results:
    """What `write` wrote."""
    body: dict[str, Any] = json.loads(path.read_text())
    machine: dict[str, Any] = body["machine"]
    return Results(
        at=body["at"],
        commit=body["commit"],
        rounds=body["rounds"],
        machine=Machine(**machine | {"yardsticks": Yardsticks(**machine["yardsticks"])}),
        contenders=tuple(Contender(**each) for each in body["contenders"]),
        samples=tuple(Sample(**each | {"figures": _figures(each["figures"])}) for each in body["samples"]),
    )


def _figures(told: Mapping[str, float]) -> Figures:
    return {Figure(name): value for name, value in told.items()}
