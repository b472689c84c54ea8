"""`penstock prices import` and `penstock translator` as commands, on a store of their own."""

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.fakes.translators import ROOT, START_SECONDS, TOKEN, translator_python

DECLARED = """
providers:
  - {name: google, dialect: translated, translate_as: gemini, credential: google}
  - {name: openai, dialect: openai, base_url: "https://api.openai.com/v1", credential: openai}
  - {name: own, dialect: openai, base_url: "http://127.0.0.1:9/v1"}
models:
  - {name: flash, provider: google, upstream_model: gemini-2.5-flash}
  - {name: gpt-4o, provider: openai}
  - {name: mine, provider: own}
  - {name: priced, provider: own}
prices: [{name: priced, model: priced, usd_per_million_tokens: {input: "1", output: "1"}}]
"""
MAP = {
    "gemini/gemini-2.5-flash": {
        "mode": "chat",
        "litellm_provider": "gemini",
        "input_cost_per_token": 3e-07,
        "cache_read_input_token_cost": 3e-08,
        "output_cost_per_token": 2.5e-06,
        "output_cost_per_reasoning_token": 2.5e-06,
        "search_context_cost_per_query": {"search_context_size_low": 0.035},
    },
    "gpt-4o": {"mode": "chat", "litellm_provider": "openai", "input_cost_per_token": 2.5e-06,
               "output_cost_per_token": 1e-05, "input_cost_per_request": 0.01},
    "mine": {"mode": "chat", "litellm_provider": "groq", "input_cost_per_token": 5e-08, "output_cost_per_token": 8e-08},
}  # fmt: skip


@pytest.fixture
def penstock(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    environment = {"PATH": os.defpath, "PYTHONPATH": str(ROOT), "PENSTOCK_DATA_DIR": str(tmp_path / "data")}

    def run(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "gateway", *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, cwd=tmp_path, env=environment | more, check=False, timeout=90
        )

    (tmp_path / "company.yaml").write_text(DECLARED)
    (tmp_path / "map.json").write_text(json.dumps(MAP))
    assert run("migrate").returncode == 0
    assert run("apply", "-f", "company.yaml").returncode == 0
    return run


def test_prices_are_printed_as_a_file_that_apply_takes(penstock, tmp_path) -> None:
    printed = penstock("prices", "import", "--file", "map.json")
    assert printed.returncode == 0, printed.stderr
    (price,) = yaml.safe_load(printed.stdout)["prices"]
    rates = {"input": "0.3", "cached_input": "0.03", "output": "2.5", "reasoning": "2.5"}
    assert (price["name"], price["usd_per_million_tokens"]) == ("flash", rates)
    assert price["source"] == "litellm's map in map.json: gemini/gemini-2.5-flash"
    assert "gpt-4o is left out: gpt-4o is also charged by input_cost_per_request" in printed.stderr
    assert "mine is left out: the map has no name for it" in printed.stderr
    assert "flash: web search is charged by the query" in printed.stderr
    assert "priced" not in printed.stdout + printed.stderr
    (tmp_path / "prices.yaml").write_text(printed.stdout)
    assert penstock("apply", "-f", "prices.yaml").returncode == 0
    assert "price" not in penstock("prices", "import", "--file", "map.json").stdout


def test_prices_are_declared_at_once_where_that_is_wanted(penstock) -> None:
    done = penstock("prices", "import", "mine", "--as", "mine=mine", "--file", "map.json", "--apply", "--json")
    assert done.returncode == 0, done.stderr
    (change,) = json.loads(done.stdout)
    assert (change["kind"], change["name"]) == ("price", "mine")
    assert "0.05" in penstock("export").stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nobody", "--file", "map.json"), "declare a model of that name first"),
        (("mine", "--as", "mine", "--file", "map.json"), "MODEL=NAME"),
        (("--file", "company.yaml"), "no JSON object"),
        ((), "make translator"),
    ],
)
def test_what_is_missing_is_said_with_its_cure(penstock, arguments: tuple[str, ...], said: str) -> None:
    refused = penstock("prices", "import", *arguments)
    assert refused.returncode != 0
    assert said in " ".join(refused.stderr.split())


def test_the_map_is_the_translators_own(penstock) -> None:
    printed = penstock("prices", "import", PENSTOCK_TRANSLATOR_PYTHON=str(translator_python()))
    assert printed.returncode == 0, printed.stderr
    assert {price["name"] for price in yaml.safe_load(printed.stdout)["prices"]} == {"flash", "gpt-4o"}


async def test_the_translator_runs_in_the_foreground_for_deployment_beside(tmp_path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {"PATH": os.defpath, "PYTHONPATH": str(ROOT), "PENSTOCK_TRANSLATOR_TOKEN": TOKEN}
    environment["PENSTOCK_TRANSLATOR_PYTHON"] = str(await asyncio.to_thread(translator_python))
    running = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway", "translator", "--port", str(port)), env=environment, cwd=tmp_path
    )
    try:
        until = time.monotonic() + START_SECONDS
        while not await asyncio.to_thread(_is_alive, port):
            assert running.returncode is None
            assert time.monotonic() < until
            await asyncio.sleep(0.1)
    finally:
        running.terminate()
        assert await running.wait() in {0, -15}  # as uvicorn ends


def _is_alive(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def test_a_translator_that_is_not_installed_says_how_to_install_it(tmp_path) -> None:
    environment = {"PATH": os.defpath, "PYTHONPATH": str(ROOT), "PENSTOCK_TRANSLATOR_TOKEN": TOKEN}
    command = [sys.executable, "-m", "gateway", "translator"]
    refused = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
    assert refused.returncode == 1
    assert "make translator" in refused.stderr
