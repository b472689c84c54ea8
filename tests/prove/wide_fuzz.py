"""Proof that what machines make up breaks no promise: requests out of the OpenAPI document, bytes out of coverage."""

import asyncio
import json
import os
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.clients.environment import clients_python
from tests.fuzz import corpora
from tests.prove.proofs import Bench, NotRun, Outcome, proof
from tests.prove.server import Gateway

CASES_MIN = 2000
RUNS_MIN = 1_000_000
_LONG_FACTOR = 10
_SEED = 20_261_121
# By how fast they are; all of them together are a little more than what must be.
_RUNS = {
    "reply": 340_000,
    "answer": 240_000,
    "invoice": 150_000,
    "body": 180_000,
    "sse": 50_000,
    "declared": 30_000,
    "http": 20_000,
}
_EXAMPLES = 15
# Names that the generator likes to begin with, so that its turns are answered.
_ALIASES = 'aliases: [{name: "0", targets: [sandbox]}, {name: "00", targets: [sandbox-priced]}]\n'
# A header more is no fault of anybody's. What is wrong in itself is 400; what is wrong here and now, which no schema
# says, is 402, 404, 422 or 429. A declared file is read kindly: 0 is false there, and "5" is five.
_SETTINGS = """
[generation]
allow-extra-parameters = false

[checks.positive_data_acceptance]
expected-statuses = ["2xx", "401", "402", "403", "404", "422", "429"]

[[operations]]
include-path-regex = "^/api/(plan|apply)$"
checks.negative_data_rejection.enabled = false
"""


@dataclass(slots=True)
class Found:
    """What came of it. faults: in words; fuzzed: runs by target."""

    statuses: Counter[int] = field(default_factory=Counter)
    operations: int = 0
    fuzzed: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


@proof(
    "wide.fuzz",
    what=(
        "schemathesis over /v1 and /api of a real gateway, with an app's key and an administrator's, all of its "
        "checks; atheris on what reads bytes from outside: events, answers and usage in both wires, bodies at every "
        "door, declared files, invoices, HTTP"
    ),
    must=(
        f"{CASES_MIN} requests and {RUNS_MIN:,} runs or more: no answer of 500, none of an undocumented status or "
        "shape, any split is the same events and requests, no exception but those that are promised"
    ),
    seconds_max=900,
)
async def fuzz(bench: Bench) -> Outcome:
    """First the app's key, which breaks nothing; the administrator's prunes what is declared."""
    python, found = await asyncio.to_thread(_environment, bench), Found()
    async with Gateway(bench.workdir) as gateway:
        await gateway.apply(_ALIASES)
        for whose in ("app", "admin"):
            await _ask(bench, python, gateway, whose=whose, found=found)
        if not gateway.process.alive:
            found.faults.append("the gateway ended")
        bugs = gateway.logs.count('"exception"')
    for target, runs in _RUNS.items():
        await _run(bench, python, target, runs=runs * (_LONG_FACTOR if bench.long else 1), found=found)
    for fault in found.faults:
        bench.note(fault[:1000])
    cases, runs = found.statuses.total(), found.fuzzed.total()
    told = ", ".join(f"{status}: {count}" for status, count in sorted(found.statuses.items()))
    bench.figure("requests", f"{cases} ({told}) at {found.operations} operations")
    bench.figure("answers of 500", found.statuses[500])
    bench.figure("fuzzer's runs", f"{runs:,}")
    bench.figure("faults", len(found.faults))
    is_enough = cases >= CASES_MIN and runs >= RUNS_MIN
    return Outcome(is_enough and not found.faults and not found.statuses[500] and not bugs)


async def _ask(bench: Bench, python: Path, gateway: Gateway, *, whose: str, found: Found) -> None:
    """Everything that schemathesis makes of the document, asked with this one's key."""
    key, folder = getattr(gateway.quickstart, f"{whose}_key"), bench.workdir / f"asked-by-{whose}"
    folder.mkdir()
    (folder / "schemathesis.toml").write_text(_SETTINGS)
    await _said(
        folder,
        bench.root,
        *(
            str(python.parent / "st"),
            "run",
            f"{gateway.url}/api/openapi.json",
            "--header",
            f"Authorization: Bearer {key}",
        ),
        *("--seed", str(_SEED), "--max-examples", str(_EXAMPLES * (_LONG_FACTOR if bench.long else 1))),
        *("--generation-database", "none", "--continue-on-failure", "--suppress-health-check", "all", "--no-color"),
        *("--report", "har,json", "--report-har-path", "har.json", "--report-json-path", "report.json"),
    )
    report = json.loads((folder / "report.json").read_text())
    for each in (*report["failures"], *report["errors"]):
        found.faults.append(f"{each['title']} at {', '.join(each.get('operations', ()))}; {folder}/log tells")
    if not report["complete"] or report["operations"]["tested"] < report["operations"]["total"]:
        found.faults.append(f"not everything was asked: {report['stop_reason']}")
    found.operations = max(found.operations, report["operations"]["tested"])
    for entry in json.loads((folder / "har.json").read_text())["log"]["entries"]:
        found.statuses[entry["response"]["status"]] += 1


async def _run(bench: Bench, python: Path, target: str, *, runs: int, found: Found) -> None:
    """Fuzz from the committed corpus on."""
    folder = bench.workdir / target
    corpora.unpack(target, folder / "corpus")
    limits = ["-max_len=4096", "-timeout=20", "-rss_limit_mb=2048", "-print_final_stats=1"]
    arguments = [str(python), "-m", "tests.fuzz", target, f"-runs={runs}", f"-seed={bench.seed}", *limits, "corpus"]
    status = await _said(folder, bench.root, *arguments)
    log = (folder / "log").read_text(errors="replace")
    if status:
        inputs = ", ".join(repr(path.read_bytes()[:300]) for path in _crashes(folder))
        why = re.search(r"(?:Uncaught Python exception: ===\n|SUMMARY: )(.*)", log)
        found.faults.append(f"{target}: {why[1] if why else f'ended with {status}'}; input {inputs}")
    counted = re.search(r"stat::number_of_executed_units: (\d+)", log)
    found.fuzzed[target] = int(counted[1]) if counted else 0


def _crashes(folder: Path) -> Iterator[Path]:
    yield from (path for path in folder.iterdir() if path.name.startswith(("crash-", "timeout-", "oom-", "slow-")))


async def _said(folder: Path, root: Path, *arguments: str) -> int:
    """Run it in the folder, with what it says in `log`; its exit status."""
    environment = {**os.environ, "PYTHONPATH": str(root), "SCHEMATHESIS_HOOKS": "tests.fuzz.hooks"}
    with (folder / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *arguments, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        return await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def _environment(bench: Bench) -> Path:
    lock = bench.root / "requirements/fuzz.lock"
    if not lock.exists():
        raise NotRun(f"{lock.name} is missing; make lock")
    try:
        return clients_python(lock, bench.root / ".cache/fuzz", python=bench.python)
    except subprocess.CalledProcessError as failed:
        raise NotRun(f"the environment could not be installed: {failed}") from failed
