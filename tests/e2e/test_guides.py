"""What the guides show works as it stands."""

import json
import re
from pathlib import Path

from tests.prove.company import chat
from tests.prove.server import ROOT, Gateway

GUIDES = ROOT / "docs/guides"


def blocks(guide: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (GUIDES / guide).read_text(), re.DOTALL)


async def test_the_operators_file_can_be_planned_applied_and_exported(gateway: Gateway, tmp_path: Path) -> None:
    file = tmp_path / "company.yaml"
    [declared] = blocks("operators.md", "yaml")
    file.write_text(declared)
    planned = json.loads(gateway.command("plan", "-f", str(file), "--json").stdout)
    assert {change["action"] for change in planned} == {"create"}
    assert gateway.command("apply", "-f", str(file)).returncode == 0
    assert "nothing to change" in gateway.command("plan", "-f", str(file)).stdout
    made = gateway.command("keys", "create", "crm-production", "--app", "crm")
    assert made.returncode == 0, made.stderr


async def test_the_invoice_line_in_the_guide_is_read(gateway: Gateway, tmp_path: Path) -> None:
    [line] = re.findall(r"`(\{\"provider_request_id.*?\})`", (GUIDES / "operators.md").read_text())
    file = tmp_path / "invoice.jsonl"
    file.write_text(line)
    [shown] = re.findall(r"^penstock (reconcile .*)$", (GUIDES / "operators.md").read_text(), re.MULTILINE)
    told = gateway.command(*shown.replace("invoice.jsonl", str(file)).split(), "--json")
    assert told.returncode == 0, told.stderr
    assert json.loads(told.stdout)[0]["unknown"] == 1
    for option in ("--provider", "--until"):
        words = shown.replace("invoice.jsonl", str(file)).split()
        at = words.index(option)
        refused = gateway.command(*words[:at], *words[at + 2 :])
        assert (refused.returncode, option in refused.stderr) == (1, True)


async def test_the_sandbox_does_what_the_developers_guide_says(gateway: Gateway) -> None:
    [shown] = [block for block in blocks("app-developers.md", "python") if "sandbox:" in block]
    content = re.search(r"'(sandbox: .*?)'", shown)
    assert content is not None
    messages = [{"role": "user", "content": content.group(1)}]
    answer = await chat(gateway, gateway.quickstart.app_key, messages, model="sandbox", stream=True)
    assert '"upstream_broken"' in answer.events[-1]
    assert len(answer.events) > 5


async def test_hints_in_the_body_are_read_as_the_developers_guide_shows(gateway: Gateway) -> None:
    told = await chat(
        gateway,
        gateway.quickstart.app_key,
        [{"role": "user", "content": "Hello"}],
        model="sandbox",
        penstock={"use_case": "trial", "data_class": "confidential"},
    )
    assert told.status == 200
    denied = await chat(
        gateway,
        gateway.quickstart.app_key,
        [{"role": "user", "content": "Hello"}],
        model="sandbox",
        penstock={"data_class": "restricted"},
    )
    assert denied.code == "policy_denied"
