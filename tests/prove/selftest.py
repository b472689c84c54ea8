"""Proofs of the runner itself, run only when named: `python -m tests.prove --only selftest`."""

from tests.prove.proofs import Bench, NotRun, Outcome, proof
from tests.prove.server import Simulator


@proof("selftest.simulator", what="the simulator starts, answers /sim/stats and stops", must="exit status 0")
async def simulator(bench: Bench) -> Outcome:
    async with Simulator(bench.workdir, root=bench.root) as upstream:
        stats = await upstream.stats()
        bench.figure("requests seen", stats["requests"])
        status = await upstream.terminate()
    return Outcome(status == 0)


@proof("selftest.blocking", what="a proof that does not await", must="be met")
def blocking(bench: Bench) -> Outcome:
    bench.note("said on the way")
    return Outcome(bench.workdir.is_dir(), f"seed {bench.seed}")


@proof("selftest.absent", what="a proof whose ground is missing", must="be not run")
async def absent(_bench: Bench) -> Outcome:
    raise NotRun("nothing like it is here")
