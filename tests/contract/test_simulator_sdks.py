"""The vendors' own SDKs accept the simulator, and what they say was used is what it billed.

They run in an environment of their own: the one of requirements/clients.lock or, to try others, the interpreter that
PENSTOCK_CLIENTS_PYTHON names. An SDK that it does not hold is not run.
"""

import asyncio
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.clients.environment import clients_python
from tests.prove.server import Simulator

CHECKS = Path(__file__).parents[1] / "sim" / "checks"


@pytest.fixture(scope="module")
def python() -> str:
    named = os.environ.get("PENSTOCK_CLIENTS_PYTHON")
    if named:
        return named
    try:
        return str(clients_python())
    except subprocess.CalledProcessError:
        missing = "not run: the environment of the SDKs could not be installed"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)


def holds(python: str, sdk: str) -> bool:
    return subprocess.run([python, "-c", f"import {sdk}"], check=False, capture_output=True).returncode == 0


async def judged(python: str, name: str, folder: Path) -> tuple[dict[str, Any], dict[str, dict[str, int]]]:
    """What the SDK's checks say, and the simulator's invoice by request."""
    out = folder / "verdicts.json"
    async with Simulator(folder) as simulator:
        given = ["--url", simulator.url, "--key", simulator.key, "--out", str(out)]
        running = await asyncio.create_subprocess_exec(
            python, str(CHECKS / f"{name}_checks.py"), *given, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        said, _ = await running.communicate()
        assert out.exists(), said.decode()
        return json.loads(out.read_text()), {
            line.provider_request_id: {part: getattr(line.tokens, part) for part in line.tokens.__struct_fields__}
            for line in simulator.invoice()
        }


@pytest.mark.parametrize(
    ("name", "sdk"), [("openai", "openai"), ("anthropic", "anthropic"), ("gemini", "google.genai")]
)
async def test_the_vendors_sdk_accepts_the_simulator_and_agrees_with_its_invoice(python, name, sdk, tmp_path):
    if not holds(python, sdk):
        pytest.skip(f"not run: the environment of the SDKs holds no {sdk}")
    verdicts, invoice = await judged(python, name, tmp_path)
    assert [check for check in verdicts["checks"] if check["verdict"] != "pass"] == []
    assert len(verdicts["used"]) >= 5
    for request_id, used in verdicts["used"].items():
        assert {part: count for part, count in used.items() if count} == {
            part: count for part, count in invoice[request_id].items() if count
        }
