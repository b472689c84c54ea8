"""Which cores a measurement runs on, and what a process and its children used. Reads /proc; Linux only."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_MIB = 1024 * 1024
# Of what follows the name in /proc/PID/stat: user and system time, own and of children that were waited for.
_TIMES = slice(11, 15)


@dataclass(frozen=True, slots=True)
class Cores:
    """The core of the gateway, and the one of everything beside it: load, provider, PostgreSQL, Redis."""

    gateway: int
    beside: int

    @property
    def shared(self) -> bool:
        """Whether there is but one core for all, where no latency means anything."""
        return self.gateway == self.beside

    @classmethod
    def choose(cls) -> "Cores":
        """Two of the cores we may use, of different physical cores where there are such."""
        allowed = sorted(os.sched_getaffinity(0))
        first = allowed[0]
        others = [core for core in allowed if core != first]
        apart = [core for core in others if core not in _siblings(first)]
        return cls(first, next(iter(apart or others), first))


def _siblings(core: int) -> set[int]:
    told = Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list")
    found: set[int] = set()
    with suppress(OSError, ValueError):
        for part in told.read_text().strip().split(","):
            first, _, last = part.partition("-")
            found |= set(range(int(first), int(last or first) + 1))
    return found


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """Run on one core inside; processes started inside stay there."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def tree(pid: int) -> list[int]:
    """The process and all its descendants that live; none where it has ended."""
    found, waiting = [], [pid]
    while waiting:
        each = waiting.pop()
        with suppress(OSError):
            for told in Path(f"/proc/{each}/task").glob("*/children"):
                waiting += [int(child) for child in told.read_text().split()]
            found.append(each)
    return found


def named(names: tuple[str, ...], among: int) -> list[int]:
    """The descendants of a process that have one of these names."""
    found = []
    for pid in tree(among):
        with suppress(OSError):
            if Path(f"/proc/{pid}/comm").read_text().strip() in names:
                found.append(pid)
    return found


def cpu_seconds(pids: list[int]) -> float:
    """Time on a core that these processes used since they began, user and system."""
    ticks = 0
    for pid in pids:
        with suppress(OSError):
            told = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(int(each) for each in told[_TIMES])
    return ticks / _TICKS_PER_SECOND


def resident_mib(pids: list[int]) -> float:
    """Memory that these processes hold."""
    pages = 0
    for pid in pids:
        with suppress(OSError):
            pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * _PAGE_BYTES / _MIB
