"""`python -m tests.prove`: runs the proofs asked for, writes the file of results afresh, prints the table."""

import argparse
import importlib
import signal
import sys
from pathlib import Path

from tests.prove.proofs import Proof, proofs_of
from tests.prove.results import Commit, Results, Row, earlier_rows, merged, replace_table
from tests.prove.runner import LIMIT_SECONDS, LONG_LIMIT_SECONDS, Plan, fresh_seed, run_all
from tests.prove.yardsticks import measure

ROOT = Path(__file__).parents[2]
SELFTEST = "selftest"
INTERRUPTED = 130


def main() -> int:
    """0 when every proof that was run is met, 1 when one is not, 2 when none was found, 130 on Ctrl-C and SIGTERM."""
    given = _arguments()
    for number in (signal.SIGINT, signal.SIGTERM):  # whoever ends this ends what it started, also from the background
        signal.signal(number, signal.default_int_handler)
    only = tuple(filter(None, given.only.split(",")))
    proofs = collect(only)
    if not proofs:
        print(f"no proof is named {given.only or 'at all'}", file=sys.stderr)
        return 2
    commit = Commit.of(ROOT)
    limit_seconds = given.limit_seconds or (LONG_LIMIT_SECONDS if given.long else LIMIT_SECONDS)
    seed = fresh_seed() if given.seed is None else given.seed
    plan = Plan(ROOT, commit.name, seed, long=given.long, limit_seconds=limit_seconds)
    earlier = earlier_rows(given.out) if given.merge else ()
    yardsticks = measure()
    print(f"commit {commit}, seed {seed}, {yardsticks}", flush=True)
    rows: list[Row] = []

    def results() -> Results:
        return Results(commit, yardsticks, merged(earlier, tuple(rows)))

    def found(row: Row) -> None:
        rows.append(row)
        results().write(given.out)

    status = 0
    results().write(given.out)
    try:
        run_all(proofs, plan, found)
    except KeyboardInterrupt:
        print("interrupted; what was found until now is written", file=sys.stderr)
        status = INTERRUPTED
    _report(results(), given.table)
    return status or int(any(row.verdict == "not met" for row in rows))


def collect(only: tuple[str, ...]) -> list[Proof]:
    """The proofs asked for, module by module. The self-test is run when it is named, and only then."""
    names = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if not path.stem.startswith("_"))
    found: list[Proof] = []
    for name in names:
        if name != SELFTEST or any(wanted.startswith(SELFTEST) for wanted in only):
            found += proofs_of(importlib.import_module(f"tests.prove.{name}"))
    return [each for each in found if each.asked_for(only)]


def _report(results: Results, page: Path | None) -> None:
    print(f"\n{results.table()}")
    if page:
        page.write_text(replace_table(page.read_text(), results.table()))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.prove", description="Runs proofs on real parts.")
    parser.add_argument("--only", default="", help="ids or prefixes, with commas: walk or walk.budget,walk.kill")
    parser.add_argument("--long", action="store_true", help="the full numbers, where they take longer")
    parser.add_argument("--out", type=Path, default=ROOT / "proof" / "results.json")
    parser.add_argument("--merge", action="store_true", help="keep earlier rows that are not run again")
    parser.add_argument("--table", type=Path, help="a page whose table to replace")
    parser.add_argument("--seed", type=int, help="repeat a run's chances")
    parser.add_argument("--limit-seconds", type=float, help="time limit of one proof")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
