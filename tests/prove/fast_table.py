"""Fast: every promise of our speed, on both stores, against the peers in the same run."""

from dataclasses import replace

from bench.__main__ import bench as run_bench
from bench.rounds import Plan
from bench.scenarios import SHORT
from bench.table import evidence
from tests.prove.proofs import Bench, NotRun, Outcome, proof

# The relay stands in where there is no nginx; direct is what a stream's first chunk is compared with.
_PLAN = Plan()
_SECONDS_MAX = 5400.0


@proof(
    "fast.table",
    what="every promise of speed (docs/decisions/0003-bench.md) on SQLite and on PostgreSQL + Redis, everything on, "
    "against the peers in the same run (short: 1 round, LONG: 5 rounds, medians)",
    must="each must be met; aims reported",
    seconds_max=_SECONDS_MAX,
)
async def table(bench: Bench) -> Outcome:
    plan = _PLAN if bench.long else replace(_PLAN, rounds=1, lengths=SHORT)
    results = await run_bench(plan, bench.workdir / "latest.json", say=bench.note)
    for row in results.rows:
        value = "-" if row.value is None else f"{row.value:.3g} {row.unit}".strip()
        bench.figure(f"{row.what} ({row.store})", f"{value}, must {row.must}: {row.verdict}")
    bench.note(evidence(results))
    if any(row.verdict == "not met" for row in results.rows):
        return Outcome(met=False)
    if absent := sorted({row.what for row in results.rows if row.verdict == "not run"}):
        raise NotRun(f"not measured here: {'; '.join(absent)}")
    return Outcome(met=True)
