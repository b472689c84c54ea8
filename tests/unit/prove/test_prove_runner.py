"""The runner of proofs: verdicts, limits, folders, the file and the table."""

import asyncio
import json
import time
from pathlib import Path
from types import ModuleType

import pytest

from tests.prove.__main__ import collect
from tests.prove.proofs import Bench, NotRun, Outcome, proof, proofs_of
from tests.prove.results import Commit, Results, Row, earlier_rows, merged, replace_table
from tests.prove.runner import Plan, run, run_all
from tests.prove.yardsticks import Yardsticks

STICKS = Yardsticks(fsync_ms=1.0, loopback_us=40.0, sha256_mb_per_second=900.0)


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return Plan(tmp_path, "abc", seed=7, limit_seconds=5)


def of(demonstration, **settings):
    return proof("walk.x", what="w", must="m", **settings)(demonstration)


def row(name="walk.x", verdict="met", figure="1", commit="abc") -> Row:
    return Row(name, "w", "m", figure, verdict, "", 7, 1.0, commit)


def test_a_proof_is_met_or_not_as_it_says(plan):
    assert run(of(lambda _: Outcome(met=True, figure="5 ms")), plan).verdict == "met"
    assert run(of(lambda _: Outcome(met=False)), plan).verdict == "not met"


def test_a_proof_may_await(plan):
    async def slowly(_bench: Bench) -> Outcome:
        await asyncio.sleep(0)
        return Outcome(met=True)

    assert run(of(slowly), plan).verdict == "met"


def test_what_cannot_be_run_is_not_run_with_its_reason(plan):
    def absent(_bench: Bench) -> Outcome:
        raise NotRun("no PostgreSQL")

    found = run(of(absent), plan)
    assert (found.verdict, found.reason) == ("not run", "no PostgreSQL")


def test_any_other_error_is_not_met_with_its_last_line(plan):
    def broken(_bench: Bench) -> Outcome:
        raise RuntimeError("first\nlast")

    found = run(of(broken), plan)
    assert (found.verdict, found.reason) == ("not met", "RuntimeError: last")


def test_figures_given_to_the_bench_stand_where_the_outcome_has_none(plan):
    def measured(bench: Bench) -> Outcome:
        bench.figure("turns", 100)
        bench.figure("usable", 0.98765)
        return Outcome(met=True)

    assert run(of(measured), plan).figure == "turns 100; usable 0.9877"


def test_the_best_of_three_is_tried_until_it_is_met(plan):
    tries = []

    def flaky(_bench: Bench) -> Outcome:
        tries.append(1)
        return Outcome(len(tries) == 2, "9 ms")

    found = run(of(flaky, best_of=3), plan)
    assert (found.verdict, len(tries), found.figure) == ("met", 2, "9 ms (run 2 of at most 3)")


def test_an_error_is_never_tried_again(plan):
    tries = []

    def broken(_bench: Bench) -> Outcome:
        tries.append(1)
        raise RuntimeError("x")

    assert run(of(broken, best_of=3), plan).verdict == "not met"
    assert len(tries) == 1


async def _awaits(_bench: Bench) -> Outcome:
    await asyncio.sleep(60)
    return Outcome(met=True)


def _blocks(_bench: Bench) -> Outcome:
    time.sleep(60)
    return Outcome(met=True)


@pytest.mark.parametrize("endless", [_awaits, _blocks])
def test_a_proof_that_does_not_end_is_stopped(plan, endless):
    limited = Plan(plan.root, plan.commit, plan.seed, limit_seconds=0.05)
    found = run(of(endless), limited)
    assert (found.verdict, found.reason) == ("not met", "TimeoutError: not finished within 0.05 s")
    assert found.seconds < 5


def test_the_folder_is_removed_after_success_and_kept_after_failure(plan, capsys):
    seen = []

    def works(bench: Bench) -> Outcome:
        (bench.workdir / "file").touch()
        seen.append(bench.workdir)
        return Outcome(met=len(seen) == 1)

    run(of(works), plan)
    run(of(works), plan)
    assert [folder.exists() for folder in seen] == [False, True]
    assert f"kept: {seen[1]}" in capsys.readouterr().out


def test_an_interrupt_passes_through_and_what_was_found_is_kept(plan):
    def interrupted(_bench: Bench) -> Outcome:
        raise KeyboardInterrupt

    rows: list[Row] = []
    with pytest.raises(KeyboardInterrupt):
        run_all([of(lambda _: Outcome(met=True)), of(interrupted)], plan, rows.append)
    assert [each.verdict for each in rows] == ["met"]


def test_proofs_are_found_in_the_order_of_writing():
    module = ModuleType("walk")
    module.second = proof("walk.b", what="", must="")(lambda _: Outcome(met=True))
    module.first = proof("walk.a", what="", must="")(lambda _: Outcome(met=True))
    module.other = 3
    assert [each.id for each in proofs_of(module)] == ["walk.b", "walk.a"]


def test_an_id_or_a_whole_prefix_asks_for_a_proof():
    each = proof("walk.budget", what="", must="")(lambda _: Outcome(met=True))
    asked = {only: each.asked_for((only,)) for only in ("walk", "walk.budget", "walk.b", "wal")}
    assert asked == {"walk": True, "walk.budget": True, "walk.b": False, "wal": False}
    assert each.asked_for(())


def test_the_self_test_is_run_only_when_named():
    assert all(not each.id.startswith("selftest") for each in collect(()))
    assert len(collect(("selftest",))) == 3


def test_the_file_can_be_read_back_and_merged(tmp_path):
    path = tmp_path / "proof" / "results.json"
    Results(Commit("abc", dirty=False), STICKS, (row("walk.a"), row("walk.b"))).write(path)
    earlier = earlier_rows(path)
    again = merged(earlier, (row("walk.b", commit="def"), row("walk.c", commit="def")))
    assert [(each.id, each.commit) for each in again] == [("walk.a", "abc"), ("walk.b", "def"), ("walk.c", "def")]
    assert set(json.loads(path.read_text())) == {"commit", "dirty", "yardsticks", "proofs"}
    assert earlier_rows(tmp_path / "absent.json") == ()


def test_the_table_replaces_what_stands_between_its_marks():
    results = Results(Commit("abc", dirty=True), STICKS, (row(figure="a|b\nc"), row("walk.y", commit="old")))
    page = "before\n<!-- proof:begin -->\nstale\n<!-- proof:end -->\nafter\n"
    made = replace_table(page, results.table())
    assert made.startswith("before\n<!-- proof:begin -->\n| id |")
    assert made.endswith("\n<!-- proof:end -->\nafter\n")
    assert "stale" not in made
    assert "a\\|b c" in made
    assert "met (at old)" in made
    assert "Commit abc with uncommitted changes. Machine: fsync 1.00 ms" in made
    assert replace_table(made, results.table()) == made


def test_a_page_without_marks_is_refused():
    with pytest.raises(ValueError, match="has no"):
        replace_table("nothing here", "| table |")
