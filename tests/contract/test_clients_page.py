"""The page that tells which clients work."""

import json
import re
from pathlib import Path

from tests.clients.clients import CLIENTS, Row
from tests.clients.compatibility import EVERYWHERE, TOLD, missing, page

ROOT = Path(__file__).parents[2]
ROWS = (
    Row("one", "1.0", "chat", ok=True),
    Row("one", "1.0", "two_choices", ok=True),
    Row("other", "2.0", "chat", ok=False, detail="nothing came"),
)


def test_a_case_that_failed_is_told_and_one_that_was_not_tried_is_no_success() -> None:
    lines = page(ROWS).splitlines()
    assert f"| {TOLD['chat']} | yes | no |" in lines
    assert f"| {TOLD['stream']} | - | - |" in lines
    assert "- one: two choices." in lines


def test_a_case_that_a_script_lost_is_missed() -> None:
    whole = [Row(client, "1.0", case, ok=True) for client in ("one", "other") for case in TOLD]
    assert missing(whole) == []
    assert missing([row for row in whole if row != Row("other", "1.0", "cancel", ok=True)]) == ["other: cancel"]
    assert missing([row for row in whole if row.case != "count_tokens"]) == ["count_tokens"]
    assert TOLD.keys() >= EVERYWHERE


def test_the_same_findings_make_the_same_bytes() -> None:
    assert page(ROWS) == page(list(ROWS))
    assert not re.search(r"20\d\d-\d\d", page(ROWS)), "a date would change it from run to run"


def test_npm_packages_are_pinned_with_their_integrity() -> None:
    lock = json.loads((ROOT / "tests/clients/node/package-lock.json").read_text())
    packages = {name: each for name, each in lock["packages"].items() if name}
    assert {"node_modules/openai", "node_modules/@anthropic-ai/sdk"} <= packages.keys()
    assert all(each["integrity"].startswith("sha512-") for each in packages.values())
    wanted = json.loads((ROOT / "tests/clients/node/package.json").read_text())["dependencies"]
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", version) for version in wanted.values()), "a range is no pin"


def test_each_client_is_tried_by_a_script_that_exists() -> None:
    for client in CLIENTS:
        folder = ROOT / "tests/clients" / ("node" if client.script.endswith(".mjs") else "")
        assert (folder / client.script).is_file(), client.script
