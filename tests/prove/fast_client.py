"""Proofs of the clients that carry requests to providers: both of them, on one suite, on both event loops."""

import asyncio
import os
import re
import xml.etree.ElementTree as ET
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tests.prove.proofs import Bench, Outcome, proof

CARRIERS = ("http1", "aiohttp")
LOOPS = ("uvloop", "asyncio")
CASES_MIN = 200
SPLIT_ANSWERS = 10
RUNS_MIN = 300
SLOW_SECONDS = 10
ONCE = "test_an_accepted_post_is_never_sent_twice"


@dataclass
class Report:
    """What a run of the suite found. cases, failed: by carrier; properties: by carrier and name, summed."""

    cases: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    properties: Counter[tuple[str, str]] = field(default_factory=Counter)
    split_answers: Counter[str] = field(default_factory=Counter)
    once: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, path: Path) -> "Report":
        found = cls()
        for case in ET.parse(path).iter("testcase"):
            name = case.get("name", "")
            carrier = next((each for each in CARRIERS if re.search(rf"\[{each}\b", name)), None)
            if carrier is None:  # the sandbox, and what belongs to one carrier alone, must pass all the same
                carrier = "others"
            is_good = not any(case.find(each) is not None for each in ("failure", "error", "skipped"))
            found.cases[carrier] += 1
            found.failed[carrier] += not is_good
            found.split_answers[carrier] += is_good and "wherever_it_is_cut" in name
            found.once[carrier] += is_good and name.startswith(ONCE)
            for each in case.iter("property"):
                found.properties[carrier, each.get("name", "")] += int(each.get("value", "0"))
        return found

    def is_met(self) -> bool:
        """Whether nothing failed, and all that must be shown was."""
        shown = (
            self.cases[each] >= CASES_MIN
            and self.split_answers[each] >= SPLIT_ANSWERS
            and self.once[each] == 1
            and self.properties[each, "runs"] >= RUNS_MIN
            for each in CARRIERS
        )
        return not self.failed.total() and all(shown)


async def _run(bench: Bench, loop: str) -> Report:
    """The whole suite on this event loop, with somebody who reads nothing for ten seconds."""
    path = bench.workdir / f"{loop}.xml"
    suite = sorted(str(each) for each in (bench.root / "tests" / "contract").glob("test_upstream_*.py"))
    process = await asyncio.create_subprocess_exec(
        *(bench.python, "-m", "pytest", *suite, f"--junitxml={path}", "-o", "junit_family=xunit1"),
        f"--basetemp={bench.workdir / loop}",
        cwd=bench.root,
        env={
            **os.environ,
            "PYTHONPATH": str(bench.root),
            "PENSTOCK_TEST_LOOP": loop,
            "PENSTOCK_TEST_SEED": str(bench.seed),
            "PENSTOCK_TEST_SLOW_SECONDS": str(SLOW_SECONDS),
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        said, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    for line in said.decode().splitlines():
        if line.startswith(("FAILED", "ERROR")):
            bench.note(line)
    return Report.of(path)


@proof(
    "fast.client",
    what=(
        "the upstream clients' contract suite, 200 cases each incl. every byte-split of ten answers, stale and "
        "half-closed connections, TLS failures, slow readers; on uvloop and on asyncio's own loop"
    ),
    must="both clients pass; an accepted POST is never sent twice",
)
async def client(bench: Bench) -> Outcome:
    """Run the suite on both loops and count."""
    is_met = True
    for loop in LOOPS:
        report = await _run(bench, loop)
        is_met = is_met and report.is_met()
        told = ", ".join(f"{each} {report.cases[each] - report.failed[each]}" for each in CARRIERS)
        bench.figure(f"passed on {loop}", f"{told} of {report.cases[CARRIERS[0]]} each")
        splits = sum(report.properties[each, "splits"] for each in CARRIERS)
        runs = sum(report.properties[each, "runs"] for each in CARRIERS)
        bench.note(f"{loop}: {splits} splits, {runs} runs of random faults, {report.cases['others']} other cases")
    bench.figure("byte-splits", splits)
    bench.figure("sent twice", "never" if report.once.total() == len(CARRIERS) else "see the run")
    return Outcome(is_met)
