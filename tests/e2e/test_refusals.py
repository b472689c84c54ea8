"""Mistakes and mischief, each with the answer that helps and the record that is kept."""

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from tests.prove.company import chat
from tests.prove.server import ROOT, Gateway, Refused

HELLO = [{"role": "user", "content": "Hello"}]


def records(gateway: Gateway, event: str) -> list[str]:
    connection = sqlite3.connect(f"file:{gateway.data_dir / 'penstock.db'}?mode=ro", uri=True)
    found = [body for (body,) in connection.execute("SELECT body FROM audit WHERE event = ?", (event,))]
    connection.close()
    return found


def command(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gateway", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
        check=False,
    )


async def test_whoever_has_no_key_cannot_fill_the_trail(gateway: Gateway) -> None:
    for _ in range(80):
        assert (await chat(gateway, "pk-nobody", HELLO)).status == 401
    assert 60 <= len(records(gateway, "turn.refused")) <= 120  # a minute may end in between


async def test_a_key_without_an_app_is_refused_and_recorded(gateway: Gateway) -> None:
    refused = await chat(gateway, gateway.quickstart.admin_key, HELLO, model="sandbox")
    assert (refused.status, refused.code) == (403, "app_key_required")
    assert len(records(gateway, "turn.refused")) == 1


async def test_what_a_caller_calls_its_hints_is_not_kept(gateway: Gateway) -> None:
    refused = await chat(gateway, gateway.quickstart.app_key, HELLO, penstock={"canary 4111111111111111": 1})
    assert refused.status == 400
    assert "4111" not in str(refused.body)
    assert "4111" not in "".join(records(gateway, "turn.refused"))


@pytest.mark.parametrize(
    "declared",
    [
        'budgets: [{name: typo, scope: app, of: demo-ap, period: day, limit_usd: "1"}]',
        'prices: [{name: typo, model: sandbocks, usd_per_million_tokens: {input: "1", output: "1"}}]',
        "policies: [{name: typo, models: [sandbocks], departments: [demo], use_cases: ['*'], data_class: public}]",
        "policies: [{name: typo, models: [sandbox], departments: [demmo], use_cases: ['*'], data_class: public}]",
        "policies: [{name: typo, models: [sandbox], departments: [demo], use_cases: [tryal], data_class: public}]",
    ],
)
async def test_a_misspelt_name_is_refused_and_named(gateway: Gateway, declared: str) -> None:
    with pytest.raises(Refused, match="which is not declared") as refused:
        await gateway.apply(declared)
    assert refused.value.status == 422


async def test_pruning_everything_by_an_empty_file_is_refused(gateway: Gateway) -> None:
    with pytest.raises(Refused, match="withdraw everything"):
        await gateway.ask("POST", "/api/apply?prune=true", key=gateway.quickstart.admin_key, text="")
    assert (await chat(gateway, gateway.quickstart.app_key, HELLO, model="sandbox")).status == 200


async def test_metrics_can_be_closed(tmp_path: Path) -> None:
    async with Gateway(tmp_path, environment={"PENSTOCK_METRICS_TOKEN": "scrape-me"}) as gateway:
        for token, status in (("", 401), ("Bearer wrong", 401), ("Bearer \u00e9", 401), ("Bearer scrape-me", 200)):
            async with gateway.session.get(f"{gateway.url}/metrics", headers={"Authorization": token}) as answer:
                assert answer.status == status


def test_a_mistake_at_the_command_line_is_one_line_that_names_the_cure(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "latin.yaml").write_bytes(b"apps: [\xff]")
    for environment, arguments in [
        ({"PENSTOCK_DATA_DIR": str(tmp_path / "nowhere")}, ("keys", "list")),
        ({"PENSTOCK_DATA_DIR": str(tmp_path / "file")}, ("serve",)),
        ({"PENSTOCK_DATABASE_URL": "mysql://x"}, ("keys", "list")),
        ({"PENSTOCK_PORT": "0"}, ("serve",)),
        ({"PENSTOCK_DATA_DIR": str(tmp_path)}, ("keys", "create", "x", "--role", "king")),
        ({"PENSTOCK_DATA_DIR": str(tmp_path)}, ("plan", "-f", str(tmp_path))),
        ({"PENSTOCK_DATA_DIR": str(tmp_path)}, ("credential", "x", "--from-file", str(tmp_path / "none"))),
    ]:
        done = command({"PATH": "", "PYTHONPATH": str(ROOT), **environment}, *arguments)
        assert done.returncode != 0, arguments
        assert "Traceback" not in done.stderr, (arguments, done.stderr)
        assert done.stderr.strip(), arguments
    assert not (tmp_path / "nowhere").exists()


def test_the_doctor_leaves_nothing_behind(tmp_path: Path) -> None:
    done = command({"PATH": "", "PYTHONPATH": str(ROOT), "PENSTOCK_DATA_DIR": str(tmp_path / "empty")}, "doctor")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "empty").exists()
