"""Runs proofs one after the other, each in a folder of its own and under a time limit. It decides no verdict itself."""

import asyncio
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

from tests.prove.proofs import Bench, NotRun, Outcome, Proof
from tests.prove.results import Row, Verdict

LIMIT_SECONDS = 240.0
LONG_LIMIT_SECONDS = 1800.0


@dataclass(frozen=True, slots=True)
class Plan:
    """How to run: where, from which seed, in full or in short, for how long at most each."""

    root: Path
    commit: str
    seed: int
    long: bool = False
    limit_seconds: float = LIMIT_SECONDS
    python: str = sys.executable


def fresh_seed() -> int:
    """A seed nobody chose."""
    return secrets.randbits(32)


def run_all(proofs: Iterable[Proof], plan: Plan, found: Callable[[Row], None]) -> None:
    """Run in order and hand over each row as it is found. Ctrl-C passes through; what was found is handed over."""
    for each in proofs:
        print(f"{each.id} ...", flush=True)
        row = run(each, plan)
        figure = f" [{row.figure}]" if row.figure else ""
        print(f"{each.id}: {row.verdict} in {row.seconds:.1f} s{figure} {row.reason}".rstrip(), flush=True)
        found(row)


def run(each: Proof, plan: Plan) -> Row:
    """Try the proof until it is met, as often as it allows. Only a figure is tried again, never an error."""
    started = time.monotonic()
    for attempt in range(1, each.best_of + 1):
        row = _attempt(each, plan)
        if row.verdict != "not met" or row.reason or attempt == each.best_of:
            break
    if each.best_of > 1 and row.figure:
        row = replace(row, figure=f"{row.figure} (run {attempt} of at most {each.best_of})")
    return replace(row, seconds=round(time.monotonic() - started, 3))


def _attempt(each: Proof, plan: Plan) -> Row:
    workdir = Path(tempfile.mkdtemp(prefix=f"proof-{each.id}-"))
    bench = Bench(workdir, plan.python, plan.root, plan.seed, plan.long)
    verdict: Verdict = "not met"
    figure = reason = ""
    try:
        outcome = _demonstrate(each, bench, max(plan.limit_seconds, each.seconds_max or 0))
        verdict = "met" if outcome.met else "not met"
        figure = outcome.figure or "; ".join(bench.figures)
    except NotRun as missing:
        verdict, reason = "not run", str(missing)
    except Exception as error:  # noqa: BLE001  # whatever goes wrong in a proof is its finding
        reason = _in_one_line(error)
        figure = "; ".join(bench.figures)
    finally:
        # Also what Ctrl-C interrupts may be looked into.
        if verdict == "not met":
            print(f"    kept: {workdir}", flush=True)
        else:
            shutil.rmtree(workdir, ignore_errors=True)
    return Row(each.id, each.what, each.must, figure, verdict, reason, plan.seed, 0.0, plan.commit)


def _demonstrate(each: Proof, bench: Bench, limit_seconds: float) -> Outcome:
    with _alarm(limit_seconds):
        begun = each.run(bench)
        if isinstance(begun, Outcome):
            return begun
    return asyncio.run(_within(begun, limit_seconds))


async def _within(begun: Awaitable[Outcome], limit_seconds: float) -> Outcome:
    limit = asyncio.timeout(limit_seconds)
    try:
        async with limit:
            return await begun
    except TimeoutError as error:
        if limit.expired():
            raise _over(limit_seconds) from error
        raise


@contextmanager
def _alarm(limit_seconds: float) -> Iterator[None]:
    """Interrupts a proof that blocks; one that awaits has a gentler limit of its own."""

    def ring(_signal: int, _frame: FrameType | None) -> None:
        raise _over(limit_seconds)

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, limit_seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _over(limit_seconds: float) -> TimeoutError:
    return TimeoutError(f"not finished within {limit_seconds:g} s")


def _in_one_line(error: Exception) -> str:
    """The type and the last line of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[-1]}" if lines else type(error).__name__
