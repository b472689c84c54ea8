"""What is made of a run's figures."""

from dataclasses import replace

import pytest

from bench import table
from bench.__main__ import plan_of
from bench.cores import Cores, cpu_seconds, on_core, resident_mib, tree
from bench.figures import Contender, Figure, Sample, Scenario, by_round
from bench.install import Missing, Peers, version_in
from bench.load import request_of
from bench.penstock import unseen
from bench.results import Machine, Results, read
from bench.rounds import NAMES
from bench.tally import Spread
from bench.verdicts import PROMISES, judge
from tests.prove.yardsticks import Yardsticks

OURS = {
    Figure.REQUEST_CPU_US: 90.0,
    Figure.REQUESTS_PER_SECOND: 10_000.0,
    Figure.LATENCY_P50_MS: 1.45,
    Figure.COMMIT_P50_MS: 0.5,
    Figure.CHUNK_CPU_US: 12.0,
    Figure.STREAM_FAILURES: 0.0,
    Figure.FIRST_CHUNK_P99_MS: 190.0,
    Figure.STREAMS_MIB: 210.0,
    Figure.START_SECONDS: 0.9,
    Figure.IDLE_MIB: 100.0,
}
THEIRS = {
    "direct": {Figure.FIRST_CHUNK_P99_MS: 110.0},
    "relay": {Figure.LATENCY_P50_MS: 0.3},
    "nginx": {Figure.LATENCY_P50_MS: 0.4},
    "tensorzero": {Figure.REQUEST_CPU_US: 150.0, Figure.CHUNK_CPU_US: 25.0},
    "portkey": {Figure.REQUESTS_PER_SECOND: 1_000.0},
    "litellm": {Figure.REQUESTS_PER_SECOND: 80.0},
}
TOLD = {
    "key": "key_1",
    "policy": {"targets": [{"policy": "p", "allowed": True}]},
    "limits": {"x-ratelimit-limit-requests": "1"},
    "attempts": [{"held_nano_usd": 5, "state": "posted", "price_id": "m@1"}],
    "outcome": "answered",
    "scan": {"found": []},
}


def seen(ours=OURS, **changed):
    return THEIRS | {"penstock-sqlite": ours} | changed


def figure(rounds, start):
    return next(row for row in judge(rounds) if row.store == "sqlite" and row.what.startswith(start))


@pytest.mark.parametrize(
    ("start", "value", "verdict"),
    [
        ("CPU per request", 0.6, "aim reached"),
        ("requests/s at 64 clients, against Portkey", 10, "met"),
        ("requests/s at 64 clients, against LiteLLM", 125, "aim reached"),
        ("CPU per streamed chunk", 0.48, "aim reached"),
        ("p50 at 20 requests/s", 0.55, "met"),
        ("1,000 streams x 10 events/s: failures", 0, "aim reached"),
        ("1,000 streams: p99", 80, "aim reached"),
        ("1,000 streams: memory", 210, "met"),
        ("start to first", 0.9, "aim reached"),
        ("memory when idle", 100, "met"),
    ],
)
def test_each_promise_has_its_figure_and_its_verdict(start, value, verdict):
    row = figure([seen()], start)
    assert row.value == pytest.approx(value)
    assert row.verdict == verdict


def test_all_that_is_promised_is_judged_here():
    assert len(PROMISES) == 10


def test_a_ratio_is_taken_within_a_round_and_then_the_median():
    slow = {name: {figure: 3 * value for figure, value in figures.items()} for name, figures in seen().items()}
    assert figure([seen(), slow, seen()], "CPU per request").value == pytest.approx(0.6)


def test_one_failed_stream_in_one_round_breaks_the_promise():
    failing = seen(OURS | {Figure.STREAM_FAILURES: 1.0})
    assert figure([seen(), failing, seen()], "1,000 streams x 10").verdict == "not met"


def test_what_a_peer_did_not_do_is_not_run_and_never_met():
    without = {name: figures for name, figures in seen().items() if name != "tensorzero"}
    assert figure([without], "CPU per request").verdict == "not run"
    assert figure([without, seen()], "CPU per request").verdict == "aim reached"


def test_without_nginx_the_relay_takes_its_place():
    assert figure([seen(nginx={})], "p50 at 20").value == pytest.approx(0.65)


def test_percentiles_are_of_what_was_measured():
    spread = Spread.of([millisecond * 1_000_000 for millisecond in range(1, 101)])
    assert spread == Spread(p50=51, p95=95, p99=99, max=100)
    assert Spread.of([]) is None


def test_a_request_says_how_long_it_is():
    assert request_of(1, "/p", b"{}", ["A: b"]).endswith(b"A: b\r\nContent-Length: 2\r\n\r\n{}")


def test_only_names_gateways_and_scenarios():
    plan = plan_of("nginx,penstock-sqlite,latency", quick=True)
    assert (plan.gateways, plan.scenarios) == (("nginx", "penstock-sqlite"), (Scenario.LATENCY,))
    assert plan.rounds == 1
    assert plan_of("").gateways == NAMES
    with pytest.raises(ValueError, match="nothing is called envoy"):
        plan_of("envoy")


def test_a_turn_that_lacks_a_check_is_told_of():
    assert unseen(TOLD) == []
    assert unseen({name: value for name, value in TOLD.items() if name != "scan"}) == ["content scan"]
    assert unseen(TOLD | {"attempts": [{"held_nano_usd": 0, "state": "voided"}]}) == ["hold", "ledger"]


@pytest.fixture
def results():
    cores = Cores(0, 1)
    machine = Machine("a processor", 2, 24.0, "6", 0, 1, Yardsticks(1, 2, 3))
    samples = tuple(Sample(1, name, figures) for name, figures in seen().items())
    contenders = tuple(Contender(name, name.title(), "1.0") for name in seen())
    assert not cores.shared
    return Results("2026-11-21T05:00:00+00:00", "abc", 1, machine, contenders, samples)


def test_a_file_of_results_reads_as_it_was_written(results, tmp_path):
    results.write(tmp_path / "latest.json")
    assert read(tmp_path / "latest.json") == results
    assert by_round(results.samples)[0]["portkey"] == THEIRS["portkey"]


def test_the_page_says_who_was_not_run_and_why(results):
    missing = Contender("litellm", "LiteLLM", "", "no network")
    alone = replace(results, contenders=(missing,), samples=())
    page = table.page(alone)
    assert "| LiteLLM | not run: no network |" in page
    assert page.count("not run") == 1 + 2 * len(PROMISES)


def test_the_page_names_a_check_that_was_not_seen(results):
    assert "No turn of ours" in table.evidence(results)
    blind = {name: value for name, value in TOLD.items() if name != "scan"}
    mine = Sample(1, "penstock-sqlite", OURS, told=blind)
    assert "but: content scan" in table.evidence(replace(results, samples=(mine,)))


def test_a_table_goes_between_its_marks_only():
    page = f"a\n{table.BEGIN}\nold\n{table.END}\nb\n"
    assert table.between_marks(page, "new") == f"a\n{table.BEGIN}\nnew\n{table.END}\nb\n"
    with pytest.raises(ValueError, match="has no"):
        table.between_marks("a page", "new")


async def test_a_peer_that_cannot_be_had_is_missing_with_its_reason(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    peers = Peers(tmp_path / "peers", lambda _: None)
    assert await peers.nginx() == Missing("nginx is not on the path")
    assert await peers.portkey() == Missing("node and npm are not on the path")


def test_a_version_is_read_from_the_lock(tmp_path):
    (tmp_path / "x.lock").write_text("abc==1\nab==2.5 ; python_version < '4' \\\n")
    assert version_in(tmp_path / "x.lock", "ab") == "2.5"
    with pytest.raises(ValueError, match="does not pin"):
        version_in(tmp_path / "x.lock", "a")


def test_cores_are_ours_and_given_back():
    import os  # noqa: PLC0415 - this test alone asks the system

    before = os.sched_getaffinity(0)
    cores = Cores.choose()
    assert {cores.gateway, cores.beside} <= before
    with on_core(cores.beside):
        assert os.sched_getaffinity(0) == {cores.beside}
    assert os.sched_getaffinity(0) == before
    assert os.getpid() in tree(os.getpid())
    assert cpu_seconds([os.getpid()]) > 0
    assert resident_mib([os.getpid()]) > 1
