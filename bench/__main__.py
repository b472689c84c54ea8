"""`python -m bench`, which is `make bench`: installs the peers, runs everybody, writes the file, the table, the plots.

A run of everything replaces bench/results/latest.* and the README's table; a part of it, or one round, is written to
.bench/results/.
"""

import argparse
import asyncio
import signal
import sys
from dataclasses import replace
from pathlib import Path

from bench import plots, table
from bench.cores import Cores, on_core
from bench.figures import Sample, Scenario
from bench.install import Peers, Say
from bench.results import Machine, Results
from bench.rounds import NAMES, Plan, enter, run
from bench.scenarios import SHORT
from kernel import SystemClock
from tests.prove.results import Commit
from tests.prove.yardsticks import measure

ROOT = Path(__file__).parents[1]
HOME = ROOT / ".bench"
INTERRUPTED = 130
_PICTURE = "![CPU per request and per streamed chunk, on one core](bench/results/cpu.svg)"


def main() -> int:
    """0 whatever was found, since a proof judges it; 2 for a name that nobody has, 130 on Ctrl-C and SIGTERM."""
    given = _arguments()
    for number in (signal.SIGINT, signal.SIGTERM):  # whoever ends this ends what it started, also from the background
        signal.signal(number, signal.default_int_handler)
    try:
        plan = plan_of(given.only, quick=given.quick)
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    whole = plan == Plan()
    out: Path = given.out or (ROOT / "bench" / "results" if whole else HOME / "results") / "latest.json"
    try:
        results = asyncio.run(bench(plan, out))
    except KeyboardInterrupt:
        sys.stderr.write(f"interrupted; nothing of it runs any more. Samples until now: {out}\n")
        return INTERRUPTED
    page = table.page(results)
    out.with_suffix(".md").write_text(page)
    say(f"\n{page}")
    if whole and not given.out:
        readme = ROOT / "README.md"
        readme.write_text(table.between_marks(readme.read_text(), f"{table.promises(results)}\n\n{_PICTURE}"))
    say(f"written: {out}, .md and .svg beside it")
    return 0


def say(text: str) -> None:
    """Tell whoever waits what is being done."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


async def bench(plan: Plan, out: Path, say: Say = say) -> Results:
    """Run the plan and write what was found, after every sample, to `out`; the plots beside it at the end."""
    cores = Cores.choose()
    peers = Peers(HOME, say)
    commit = Commit.of(ROOT)
    entrants = await enter(plan.gateways, peers, commit.name[:12])
    for each in entrants:
        say(f"{each.contender.title} {each.contender.version}: {each.contender.missing or 'will be run'}")
    machine = Machine.here(cores, measure())
    say(f"{machine}\ngateways on core {cores.gateway}, everything else on core {cores.beside}")
    at = SystemClock().now().isoformat(timespec="seconds")
    results = Results(at, str(commit), plan.rounds, machine, tuple(each.contender for each in entrants), ())

    def found(sample: Sample) -> None:
        nonlocal results
        results = replace(results, samples=(*results.samples, sample))
        results.write(out)

    with on_core(cores.beside):
        await run(plan, entrants, cores, say, found)
    await plots.draw(out, peers, say)
    return results


def plan_of(only: str, *, quick: bool = False) -> Plan:
    """The plan for names of gateways and of scenarios, with commas. Raises ValueError for what is neither."""
    names = tuple(filter(None, only.split(",")))
    kinds = [str(scenario) for scenario in Scenario]
    if unknown := [name for name in names if name not in NAMES and name not in kinds]:
        known = ", ".join([*NAMES, *kinds])
        raise ValueError(f"nothing is called {', '.join(unknown)}; there are {known}")
    plan = Plan(
        gateways=tuple(name for name in NAMES if name in names) or NAMES,
        scenarios=tuple(scenario for scenario in Scenario if scenario in names) or tuple(Scenario),
    )
    return replace(plan, rounds=1, lengths=SHORT) if quick else plan


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Penstock beside its peers, on one core each.")
    parser.add_argument("--only", default="", help="names of gateways and of scenarios, with commas")
    parser.add_argument("--quick", action="store_true", help="one round, and shorter")
    parser.add_argument("--out", type=Path, help="the file of results; the table and the plots go beside it")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
