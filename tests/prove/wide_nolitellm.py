"""Proof that a serving process never holds litellm or a client of somebody else's, whatever it was asked to do."""

import asyncio
import subprocess
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from bench.cores import resident_mib
from tests.fakes.translators import translator_python
from tests.prove.proofs import Bench, NotRun, Outcome, proof
from tests.prove.server import Gateway, Simulator

FORBIDDEN = ("litellm", "openai", "httpx", "requests")
_START_SECONDS_MAX = 3.0
_IDLE_MIB_MAX = 150.0
_IDLE_AFTER_SECONDS = 2.0
_STARTS = 3
_AWAKE_SECONDS = 60.0
# They come with litellm and are no Python, so that the list of what is mapped shows them.
_COMPANIONS = ("jiter", "tiktoken", "tokenizers", "fastuuid")
# Every interpreter runs this before anything of ours. A hook cannot be taken off again, and whichever way a module
# comes in, it is named by one of these events before its first line runs.
_WITNESS = """
import os, sys

def _testify(file):
    def hear(event, given):
        if event == "import":
            os.write(file, f"import {given[0]}\\n".encode())
        elif event == "exec" and hasattr(given[0], "co_filename"):
            os.write(file, f"exec {given[0].co_filename}\\n".encode())
    return hear

sys.addaudithook(_testify(os.open(os.environ["WITNESS_FILE"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)))
"""
_COMPANY = """
departments: [{{name: proof}}]
use_cases: [{{name: proving, purpose: Proving what is promised}}]
apps: [{{name: proof-app, department: proof, use_cases: [proving]}}]
providers:
  - {{name: openai, dialect: openai, base_url: "{url}/v1", credential: sim}}
  - {{name: anthropic, dialect: anthropic, base_url: "{url}/v1", credential: sim}}
  - {{name: gemini, dialect: translated, translate_as: gemini, base_url: "{url}/v1beta", credential: sim}}
models:
  - {{name: of-openai, provider: openai, upstream_model: sim-small, output_tokens_max: 256}}
  - {{name: of-openai-embed, provider: openai, upstream_model: sim-embed, output_tokens_max: 256}}
  - {{name: of-anthropic, provider: anthropic, upstream_model: sim-small, output_tokens_max: 256}}
  - {{name: of-gemini, provider: gemini, upstream_model: sim-small, output_tokens_max: 256}}
prices:
  - {{name: of-openai, model: of-openai, usd_per_million_tokens: {{input: "1", output: "4"}}}}
  - {{name: of-openai-embed, model: of-openai-embed, usd_per_million_tokens: {{input: "1", output: "0"}}}}
  - name: of-anthropic
    model: of-anthropic
    usd_per_million_tokens: {{input: "1", cache_write: "2", cache_write_1h: "2", output: "4"}}
  - {{name: of-gemini, model: of-gemini, usd_per_million_tokens: {{input: "1", output: "4"}}}}
policies:
  - name: all
    models: [of-openai, of-openai-embed, of-anthropic, of-gemini, sandbox]
    departments: [proof]
    use_cases: [proving]
    data_class: internal
"""
Asked = tuple[str, dict[str, Any]]

_SAID: dict[str, Any] = {"max_tokens": 16, "messages": [{"role": "user", "content": "Hello"}]}
CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"
_OWN_WIRE: tuple[Asked, ...] = (
    (CHAT, {"model": "of-openai", **_SAID}),
    (CHAT, {"model": "of-openai", "stream": True, **_SAID}),
    (CHAT, {"model": "sandbox", "stream": True, **_SAID}),
    (MESSAGES, {"model": "of-anthropic", **_SAID}),
    (MESSAGES, {"model": "of-anthropic", "stream": True, **_SAID}),
    ("/v1/messages/count_tokens", {"model": "of-anthropic", "messages": _SAID["messages"]}),
    ("/v1/completions", {"model": "of-openai", "prompt": "Hello", "max_tokens": 16}),
    ("/v1/completions", {"model": "of-openai", "prompt": "Hello", "max_tokens": 16, "stream": True}),
    ("/v1/embeddings", {"model": "of-openai-embed", "input": "Hello"}),
)
_TRANSLATED: tuple[Asked, ...] = (
    (CHAT, {"model": "of-gemini", **_SAID}),
    (CHAT, {"model": "of-gemini", "stream": True, **_SAID}),
    (CHAT, {"model": "of-anthropic", **_SAID}),
    (MESSAGES, {"model": "of-openai", **_SAID}),
    (MESSAGES, {"model": "of-openai", "stream": True, **_SAID}),
)


@proof(
    "wide.nolitellm",
    what="the serving process after chats, messages, completions, embeddings, streams, translated calls without a "
    "translator and with one: what it ran, by an audit hook; what it has mapped; its memory and its start",
    must="has never imported litellm, openai, httpx or requests; <= 150 MiB idle; <= 3 s to the first answer",
    seconds_max=300,
)
async def nolitellm(bench: Bench) -> Outcome:
    """Twice the same: under a witness, which costs time and memory, and then as it is for everybody."""
    try:
        python = await asyncio.to_thread(translator_python)
    except subprocess.CalledProcessError as failed:
        raise NotRun(f"the translator could not be installed: {failed}") from failed
    witness = _Witness(bench.workdir / "witness")
    if lost := await asyncio.to_thread(witness.overlooks, bench.python):
        raise AssertionError(f"the witness does not see {', '.join(lost)}, so what it says is worth nothing")
    wrong: list[str] = []
    async with _served(bench, "watched", python, witness.environment(bench.root)) as (gateway, script):
        wrong += await _everything(gateway, script, python)
        wrong += [f"mapped: {each}" for each in _foreign_maps(gateway.process.pid)]
    ran = witness.ran()
    bench.figure("modules run", len(ran))
    bench.figure("of them not ours to run", len(found := witness.forbidden()))
    wrong += [f"ran: {each}" for each in found]
    async with _served(bench, "plain", python, {}) as (gateway, script):
        wrong += await _everything(gateway, script, python)
        await asyncio.sleep(_IDLE_AFTER_SECONDS)
        idle = resident_mib([gateway.process.pid])
        wrong += [f"mapped: {each}" for each in _foreign_maps(gateway.process.pid)]
    first = min([await _start_seconds(bench, f"fresh-{number}") for number in range(_STARTS)])  # neighbours only add
    bench.figure("MiB idle afterwards", round(idle))
    bench.figure(f"s from start to first answer, least of {_STARTS}", round(first, 2))
    for each in wrong:
        bench.note(each)
    enough = any(each.endswith("gateway/chat.py") for each in ran)  # a witness who heard nothing saw nothing
    return Outcome(not wrong and enough and idle <= _IDLE_MIB_MAX and first <= _START_SECONDS_MAX)


class _Witness:
    """Writes down every module that an interpreter is asked for, and every file whose code it runs.

    Beside it lie packages of the forbidden names, first on the path: whoever tries to import one, in whatever way,
    finds one, and cannot be excused by its not being installed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = folder / "seen"
        for name in FORBIDDEN:
            (folder / name).mkdir(parents=True)
            (folder / name / "__init__.py").touch()
        (folder / "sitecustomize.py").write_text(_WITNESS)

    def environment(self, root: Path) -> dict[str, str]:
        """What makes an interpreter testify."""
        return {"PYTHONPATH": f"{self._folder}:{root}", "WITNESS_FILE": str(self._file)}

    def overlooks(self, python: str) -> list[str]:
        """The forbidden names whose import it would not notice, tried one by one and each in another way."""
        ways = {
            "litellm": "import litellm",
            "openai": "import importlib; importlib.import_module('openai')",
            "httpx": "exec('from httpx import *')",
            "requests": "import importlib.util as u; s = u.find_spec('requests'); "
            "s.loader.exec_module(u.module_from_spec(s))",
        }
        for program in ways.values():
            subprocess.run([python, "-c", program], env=self.environment(self._folder), check=True)
        seen = self.forbidden()
        self._file.unlink()
        return [name for name in ways if not any(name in each for each in seen)]

    def ran(self) -> set[str]:
        """The files whose code was run."""
        return {name for event, name in self._seen() if event == "exec"}

    def forbidden(self) -> list[str]:
        """What was asked for or run of the forbidden packages."""
        return sorted({name for _, name in self._seen() if _is_forbidden(name)})

    def _seen(self) -> Iterable[tuple[str, str]]:
        lines = self._file.read_text(errors="replace").splitlines() if self._file.exists() else []
        return [(event, name) for event, _, name in (line.partition(" ") for line in lines)]


def _is_forbidden(name: str) -> bool:
    """Whether it is a module of those packages, or a file in their folders."""
    return name.partition(".")[0] in FORBIDDEN or any(part in FORBIDDEN for part in Path(name).parts)


def _foreign_maps(pid: int) -> list[str]:
    """Files in the process's memory that only the forbidden packages bring."""
    mapped = {line.split(maxsplit=5)[5] for line in Path(f"/proc/{pid}/maps").read_text().splitlines() if "/" in line}
    return sorted(each for each in mapped if any(part.startswith(FORBIDDEN + _COMPANIONS) for part in Path(each).parts))


@asynccontextmanager
async def _served(
    bench: Bench, name: str, python: Path, environment: Mapping[str, str]
) -> AsyncIterator[tuple[Gateway, Path]]:
    """A gateway whose translator is not installed yet, and where it will be looked for."""
    folder = bench.workdir / name
    folder.mkdir()
    script = folder / "translator-python"
    settings = {"PENSTOCK_TRANSLATOR_PYTHON": str(script), **environment}
    async with Simulator(folder) as simulator, Gateway(folder, environment=settings) as gateway:
        await gateway.put_credential("sim", simulator.key)
        await gateway.apply(_COMPANY.format(url=simulator.url))
        yield gateway, script


async def _everything(gateway: Gateway, script: Path, python: Path) -> list[str]:
    """Ask in every way; what was not answered as it must be."""
    key = await gateway.create_key(name="proof-key", app="proof-app")
    wrong = await _otherwise(gateway, key, _OWN_WIRE, 200)
    wrong += await _otherwise(gateway, key, (_TRANSLATED[0], _TRANSLATED[3]), 502)
    script.write_text(f'#!/bin/sh\nexec "{python}" "$@"\n')
    script.chmod(0o700)
    async with asyncio.timeout(_AWAKE_SECONDS):
        while await _ask(gateway, key, *_TRANSLATED[0]) != 200:
            await asyncio.sleep(0.5)
    return wrong + await _otherwise(gateway, key, _TRANSLATED, 200)


async def _otherwise(gateway: Gateway, key: str, asked: Iterable[Asked], due: int) -> list[str]:
    """What was answered with another status than is due."""
    told = [(path, body["model"], await _ask(gateway, key, path, body)) for path, body in asked]
    return [f"{path} of {model}: {status}, not {due}" for path, model, status in told if status != due]


async def _ask(gateway: Gateway, key: str, path: str, body: Mapping[str, Any]) -> int:
    """The status of an answer that was read to its end; 599 for a stream that ends with an error."""
    headers = {"Authorization": f"Bearer {key}"}
    async with gateway.session.post(f"{gateway.url}{path}", json=body, headers=headers) as answer:
        said = await answer.text()
        return 599 if answer.status == 200 and '"error"' in said else answer.status


async def _start_seconds(bench: Bench, name: str) -> float:
    """From a process's start, on an empty store, to its first answer."""
    folder = bench.workdir / name
    folder.mkdir()
    began = time.monotonic()
    async with Gateway(folder) as gateway:
        status = await _ask(gateway, gateway.quickstart.app_key, CHAT, {"model": "sandbox", **_SAID})
        assert status == 200, status
        return time.monotonic() - began
