"""The two commands and what they promise, as far as a test can see without a second machine."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_ci_calls_make_and_nothing_clever() -> None:
    lines = [line for line in (ROOT / ".ci/run").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[-1] == "make check test"


def test_every_test_directory_has_its_target() -> None:
    targets = set(re.findall(r"^test-([a-z0-9]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert targets == {"house", "unit", "contract", "e2e"}
    assert all((ROOT / "tests" / target).is_dir() for target in targets)


def test_the_architecture_points_at_what_exists() -> None:
    rows = re.findall(r"^\| .* \| `([a-z_/]+\.py):(\w+)` \|$", (ROOT / "ARCHITECTURE.md").read_text(), re.MULTILINE)
    assert len(rows) >= 10
    for file, name in rows:
        assert re.search(rf"(def|class) {name}\b", (ROOT / file).read_text()), f"{file} has no {name}"


def test_the_core_stays_light() -> None:
    lock = (ROOT / "requirements/core.lock").read_text()
    for heavy in ("litellm", "torch", "numpy", "onnxruntime", "mlflow", "feast", "openai", "httpx"):
        assert not re.search(rf"^{heavy}==", lock, re.MULTILINE), f"{heavy} is not part of the core"
