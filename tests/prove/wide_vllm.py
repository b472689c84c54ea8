"""Proof with a real vLLM on this machine's CPU: the doors it speaks natively, its own counters, its end.

The model is made here and knows nothing; what is proven is counted, not read. The environment is vLLM's own, three
gigabytes made once from deploy/vllm/cpu.in and kept.
"""

import asyncio
import hashlib
import json
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from tests.prove.books import open_holds, read_attempts
from tests.prove.proofs import Bench, NotRun, Outcome, proof
from tests.prove.server import Gateway, Process, free_port

_START_SECONDS = 600.0
_NEEDED_BYTES = 6 * 1024**3
_CONTEXT_TOKENS = 1024
_SPOIL_THE_CPU_BUILD = ("torchvision", "torchaudio", "torchcodec")  # built for another torch, and not needed
_KEY = "sk-proof-vllm"
_COMPANY = """
departments: [{{name: lab}}]
use_cases: [{{name: proving, purpose: Proving what is promised}}]
apps: [{{name: lab-app, department: lab, use_cases: [proving]}}]
providers:
  - {{name: vllm, dialect: vllm, base_url: "{url}/v1", credential: vllm}}
  - {{name: stand-in, dialect: sandbox}}
models:
  - {{name: tiny, provider: vllm, context_tokens: 8192, output_tokens_max: 256}}
  - {{name: tiny-legal, provider: vllm, upstream_model: legal, base: tiny, context_tokens: 8192}}
  - {{name: unheard, provider: vllm, upstream_model: unheard-of, context_tokens: 8192, unpriced: true}}
  - {{name: spare, provider: stand-in, unpriced: true}}
aliases:
  - {{name: assured, targets: [tiny, spare]}}
  - {{name: idlest, targets: [tiny, spare], choose: least_outstanding}}
prices:
  - {{name: tiny, model: tiny, usd_per_million_tokens: {{input: "1", cached_input: "0.5", output: "4"}}}}
policies:
  - {{name: lab, models: [tiny, unheard, spare], departments: [lab], use_cases: [proving], data_class: internal}}
"""
_LONG = " ".join(["ba ku"] * 120)
_USAGE_TOO = {"stream_options": {"include_usage": True}}
_TOOL = {
    "type": "function",
    "function": {
        "name": "choose",
        "strict": True,  # or vLLM takes any JSON for arguments
        "parameters": {
            "type": "object",
            "properties": {"one": {"type": "string", "enum": ["red", "green"]}},
            "required": ["one"],
            "additionalProperties": False,
        },
    },
}


@proof(
    "wide.vllm",
    what="real vLLM on the CPU with a tiny model, its adapter beside it: chat, stream, tools, completions, messages, "
    "refusals; then killed",
    must="work; our usage and the ledger equal vLLM's own counters to the token; its load counts; once dead it is "
    "passed over within 10 s",
    seconds_max=2400,
)
async def vllm(bench: Bench) -> Outcome:
    """One server behind one gateway; whatever vLLM counted in between was asked by us."""
    python = await _environment(bench)
    async with _served(bench, python) as server, Gateway(bench.workdir) as gateway:
        caller = Caller(gateway, await _found(gateway, server))
        steps = Steps(bench)
        before = await server.counters()
        told = await _converse(caller, steps)
        told += await _converse_at_once(caller, steps)
        after = await server.counters()
        await _refused(caller, steps)
        steps.expect("refusals are not counted", await server.counters() == after)
        counted = Counted(*(int(after[name] - before[name]) for name in _COUNTERS))
        booked = await _booked(gateway)
        bench.figure("tokens in and out by vLLM", f"{counted.into} + {counted.out}")
        steps.expect(f"callers were told {told}", told == counted)
        steps.expect(f"the ledger has {booked}", booked == counted)
        await _busy(caller, server, steps)
        await _killed(caller, server, steps, bench)
        bench.figure("steps", f"{steps.good} of {steps.taken} as they must be")
        return Outcome(steps.good == steps.taken)


_COUNTERS = ("vllm:prompt_tokens_total", "vllm:generation_tokens_total")


@dataclass(frozen=True, slots=True)
class Counted:
    """Tokens that went in, cached or not, and that came out."""

    into: int
    out: int

    def __add__(self, other: "Counted") -> "Counted":
        return Counted(self.into + other.into, self.out + other.out)


class Steps:
    """What was expected, and how much of it came true."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self.taken = self.good = 0

    def expect(self, what: str, came: bool, seen: object = "") -> None:  # noqa: FBT001
        """Count it; say what went wrong."""
        self.taken += 1
        self.good += came
        if not came:
            self._bench.note(f"wrong: {what} {seen}"[:600])


class Server:
    """vLLM as deploy/vllm/serve.sh starts it."""

    def __init__(self, process: Process, session: aiohttp.ClientSession, port: int) -> None:
        self.process = process
        self.session = session
        self.url = f"http://127.0.0.1:{port}"

    async def counters(self) -> Mapping[str, float]:
        """Its counters and gauges, added up over their labels."""
        async with self.session.get(f"{self.url}/metrics") as answer:
            said = await answer.text()
        found: dict[str, float] = {}
        for name, value in re.findall(r"^(vllm:\w+)(?:\{.*\})? (\S+)$", said, re.MULTILINE):
            found[name] = found.get(name, 0.0) + float(value)
        return found

    async def until_it_serves(self) -> None:
        """Raises StartFailed."""
        async with asyncio.timeout(_START_SECONDS):
            while True:
                if not self.process.alive:
                    raise self.process.start_failed("vLLM ended")
                try:
                    async with self.session.get(f"{self.url}/health") as answer:
                        if answer.status == 200:
                            return
                except aiohttp.ClientError:
                    pass
                await asyncio.sleep(0.5)

    async def babble(self) -> None:
        """One long answer, asked for behind the gateway's back."""
        body = {"model": "tiny", "prompt": "ba", "max_tokens": _CONTEXT_TOKENS - 8, "ignore_eos": True}
        async with self.session.post(
            f"{self.url}/v1/completions", json=body, headers={"Authorization": f"Bearer {_KEY}"}
        ) as answer:
            await answer.read()

    async def kill(self) -> None:
        """kill -9 for it and the engine it started."""
        if self.process.alive:
            os.killpg(self.process.pid, signal.SIGKILL)
            await self.process.stop(signal.SIGKILL)


@dataclass(frozen=True, slots=True)
class Heard:
    """An answer: its JSON, or a stream's events."""

    status: int
    headers: Mapping[str, str]
    body: dict[str, Any]
    events: tuple[str, ...] = ()

    @property
    def data(self) -> list[dict[str, Any]]:
        """The events' JSON."""
        return [json.loads(event) for event in self.events if event != "[DONE]"]

    @property
    def kinds(self) -> list[str]:
        """What the events are, in Anthropic's wire."""
        return [str(each.get("type")) for each in self.data]

    @property
    def usage(self) -> Counted:
        """What the caller was told, in either wire; a stream's last word."""
        found: dict[str, int] = {}
        for said in (self.body, *self.data):
            usage = said.get("usage") or said.get("message", {}).get("usage") or {}
            found |= {name: count for name, count in usage.items() if isinstance(count, int)}
        into = ("prompt_tokens", "input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
        return Counted(
            sum(found.get(name, 0) for name in into), found.get("completion_tokens", 0) + found.get("output_tokens", 0)
        )


class Caller:
    """An app that asks over the gateway."""

    def __init__(self, gateway: Gateway, key: str) -> None:
        self.gateway = gateway
        self._headers = {"Authorization": f"Bearer {key}"}

    async def ask(self, path: str, **body: object) -> Heard:
        """One request, read to its end."""
        body = {"model": "tiny", "max_tokens": 24, **body}
        async with self.gateway.session.post(f"{self.gateway.url}{path}", json=body, headers=self._headers) as answer:
            raw = (await answer.read()).decode()
            headers = {name.lower(): value for name, value in answer.headers.items()}
            if answer.content_type != "text/event-stream":
                return Heard(answer.status, headers, json.loads(raw))
            events = tuple(line[6:] for line in raw.splitlines() if line.startswith("data: "))
            return Heard(answer.status, headers, {}, events)

    async def chat(self, text: str = "ba ku", **body: object) -> Heard:
        """A chat turn."""
        return await self.ask("/v1/chat/completions", messages=[{"role": "user", "content": text}], **body)

    async def message(self, text: str = "ba ku", **body: object) -> Heard:
        """The same in Anthropic's wire."""
        return await self.ask("/v1/messages", messages=[{"role": "user", "content": text}], **body)


async def _converse(caller: Caller, steps: Steps) -> Counted:
    """Every door, whole and streamed; what callers were told, and the ledger's word where they were told nothing."""
    total = Counted(0, 0)

    def expect(what: str, heard: Heard, is_right: Callable[[Heard], bool]) -> None:
        nonlocal total
        total += heard.usage
        steps.expect(what, heard.status == 200 and heard.usage.out > 0 and is_right(heard), heard)

    expect("chat", await caller.chat(), lambda heard: heard.body["object"] == "chat.completion")
    streamed = await caller.chat(stream=True, **_USAGE_TOO)
    expect("stream", streamed, lambda heard: heard.events[-1] == "[DONE]" and heard.data[-1]["choices"] == [])
    named = await caller.chat(model="tiny-legal")
    expect("adapter", named, lambda heard: heard.headers["x-penstock-model"] == "tiny-legal")
    called = await caller.chat(tools=[_TOOL], tool_choice="required", max_tokens=200)
    expect("tool", called, lambda heard: _chosen(heard) in {"red", "green"})
    completed = await caller.ask("/v1/completions", prompt="ba ku")
    expect("completion", completed, lambda heard: heard.body["object"] == "text_completion")
    running = await caller.ask("/v1/completions", prompt="ba ku", stream=True, **_USAGE_TOO)
    expect("completion, streamed", running, lambda heard: heard.events[-1] == "[DONE]")
    message = await caller.message()
    expect("message", message, lambda heard: (heard.body["type"], heard.body["role"]) == ("message", "assistant"))
    told = await caller.message(stream=True)
    expect("message, streamed", told, lambda heard: heard.kinds[0] + heard.kinds[-1] == "message_startmessage_stop")
    repeated = await caller.chat(_LONG)
    expect("a long prompt", repeated, lambda heard: heard.usage.into > 200)
    expect("the same again", await caller.chat(_LONG), lambda heard: heard.usage.into == repeated.usage.into)
    expect("and in the other wire", await caller.message(text=_LONG), lambda heard: heard.usage.into > 200)
    silent = await caller.chat(stream=True)
    steps.expect("usage unasked is not told", silent.usage == Counted(0, 0) and silent.events[-1] == "[DONE]", silent)
    return total + await _of_the_last_turn(caller, silent)


def _chosen(heard: Heard) -> object:
    calls = heard.body["choices"][0]["message"]["tool_calls"]
    return json.loads(calls[0]["function"]["arguments"])["one"]


async def _of_the_last_turn(caller: Caller, heard: Heard) -> Counted:
    """What the ledger says of a turn whose caller was told nothing."""
    await _closed(caller.gateway)
    found = read_attempts(caller.gateway.data_dir)
    return _sum([found[reference] for reference in found if reference.startswith(heard.headers["x-request-id"])])


async def _converse_at_once(caller: Caller, steps: Steps) -> Counted:
    """Many together, whole and streamed: batched in the engine, each with its own count."""
    asked = [
        caller.chat(f"ba {number}", max_tokens=8 + number, **({"stream": True, **_USAGE_TOO} if number % 2 else {}))
        for number in range(24)
    ]
    heard = await asyncio.gather(*asked)
    steps.expect("24 at once", all(each.status == 200 and each.usage.out for each in heard))
    total = Counted(0, 0)
    for each in heard:
        total += each.usage
    return total


async def _refused(caller: Caller, steps: Steps) -> None:
    """What vLLM itself refuses reaches the caller as its own error, in the door's wire."""
    unknown = await caller.chat(model="unheard")
    steps.expect(
        "a model vLLM does not serve: 502", "status 404" in str(unknown.body) and unknown.status == 502, unknown
    )
    undeclared = await caller.chat(model="nobody-declared-it")
    steps.expect("a model nobody declared: 404", undeclared.status == 404, undeclared)
    overflow = await caller.chat(" ".join(["zq"] * _CONTEXT_TOKENS))
    steps.expect("context overflow: 400", overflow.status == 400 and "context" in str(overflow.body), overflow)
    message = await caller.message(" ".join(["zq"] * _CONTEXT_TOKENS))
    steps.expect("and in the other wire: 400", (message.status, message.body["type"]) == (400, "error"), message)


async def _busy(caller: Caller, server: Server, steps: Steps) -> None:
    """What others make vLLM do counts where the target with the least to do is chosen."""
    others = [asyncio.create_task(server.babble()) for _ in range(64)]
    try:
        await asyncio.sleep(4)  # longer than from one look to the next
        busy = await server.counters()
        heard = [await caller.chat(model="idlest") for _ in range(8)]
        still = await server.counters()
    finally:
        for each in others:
            each.cancel()
        await asyncio.gather(*others, return_exceptions=True)
    at_work = [seen["vllm:num_requests_running"] + seen["vllm:num_requests_waiting"] for seen in (busy, still)]
    chosen = {each.headers.get("x-penstock-model") for each in heard}
    steps.expect(f"busy with {at_work}, the other is chosen", min(at_work) > 0 and chosen == {"spare"}, chosen)


async def _killed(caller: Caller, server: Server, steps: Steps, bench: Bench) -> None:
    """Its target is passed over before anybody has asked it in vain five times."""
    steps.expect("healthy until then", await _health(caller) == 1)
    await server.kill()
    began = time.monotonic()
    while await _health(caller) != 0 and time.monotonic() - began < 60:
        await asyncio.sleep(0.1)
    seconds = time.monotonic() - began
    bench.figure("seconds until it is passed over", round(seconds, 1))
    steps.expect("seen within 10 s", seconds < 10, seconds)
    assured = await caller.chat(model="assured")
    attempts = assured.headers.get("x-penstock-attempts", "1")
    steps.expect(
        "the fallback answers", assured.headers.get("x-penstock-model") == "spare" and attempts == "1", assured
    )
    alone = await caller.chat()
    steps.expect("alone it is 503", (alone.status, alone.body["error"]["code"]) == (503, "targets_resting"), alone)


async def _health(caller: Caller) -> float:
    async with caller.gateway.session.get(f"{caller.gateway.url}/metrics") as answer:
        found = re.search(r'^penstock_target_health\{target="tiny"\} (\S+)$', await answer.text(), re.MULTILINE)
    return float(found[1]) if found else -1.0


async def _booked(gateway: Gateway) -> Counted:
    """All that the ledger has of vLLM's models, once every hold is closed; nothing of it is estimated."""
    await _closed(gateway)
    attempts = [attempt for attempt in read_attempts(gateway.data_dir).values() if attempt.state == "post"]
    if any(attempt.estimated for attempt in attempts):
        return Counted(-1, -1)
    return _sum(attempts)


async def _closed(gateway: Gateway) -> None:
    """Until every hold is."""
    async with asyncio.timeout(10):
        while open_holds(gateway.data_dir):
            await asyncio.sleep(0.05)


def _sum(attempts: list[Any]) -> Counted:
    total = Counted(0, 0)
    for attempt in attempts:
        out = sum(count for part, count in attempt.tokens.items() if part in {"output", "reasoning"})
        total += Counted(sum(attempt.tokens.values()) - out, out)
    return total


async def _found(gateway: Gateway, server: Server) -> str:
    await gateway.put_credential("vllm", _KEY)
    await gateway.apply(_COMPANY.format(url=server.url))
    return await gateway.create_key(name="lab-key", app="lab-app")


@asynccontextmanager
async def _served(bench: Bench, python: Path) -> AsyncIterator[Server]:
    models, port = bench.workdir / "models", free_port()
    await _run(str(python), str(Path(__file__).with_name("_tiny_model.py")), str(models))
    environment = {
        "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": "",  # our folders have names that others use too
        "MODEL": str(models / "tiny"),
        "LORA_MODULES": f"legal={models / 'adapter'}",
        "TOOL_PARSER": "hermes",
        "MAX_MODEL_LEN": str(_CONTEXT_TOKENS),
        "MAX_NUM_SEQS": "16",
        "PORT": str(port),
        "VLLM_API_KEY": _KEY,
        "VLLM_TARGET_DEVICE": "cpu",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "HF_HUB_OFFLINE": "1",
    }
    command = ["sh", "deploy/vllm/serve.sh", "--enforce-eager", "--dtype", "bfloat16"]
    process = Process(command, bench.workdir / "vllm.log", root=bench.root, environment=environment)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), trust_env=False) as session:
        server = Server(process, session, port)
        began = time.monotonic()
        await process.start()
        try:
            await server.until_it_serves()
            bench.figure("vLLM started in seconds", round(time.monotonic() - began))
            yield server
        finally:
            await server.kill()


async def _environment(bench: Bench) -> Path:
    """The interpreter of vLLM's environment, which the first call makes. Raises NotRun where it cannot be made."""
    wanted = bench.root / "deploy" / "vllm" / "cpu.in"
    version = "".join(str(part) for part in sys.version_info[:2])
    folder = bench.root / ".cache" / "vllm" / f"{hashlib.sha256(wanted.read_bytes()).hexdigest()[:16]}-{version}"
    python, complete = folder / "bin" / "python", folder / "complete"
    if complete.exists():
        return python
    shutil.rmtree(folder, ignore_errors=True)  # whatever an interrupted installation left is not trusted
    folder.parent.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(folder.parent).free < _NEEDED_BYTES:
        raise NotRun("vLLM's environment needs 6 GB of disk")
    bench.note("making vLLM's environment: 3 GB, minutes")
    pip = (str(python), "-m", "pip", "--disable-pip-version-check", "--quiet")
    try:
        await _run(bench.python, "-m", "venv", str(folder))
        await _run(*pip, "install", "--requirement", str(wanted))
        await _run(*pip, "uninstall", "--yes", *_SPOIL_THE_CPU_BUILD)
    except ChildFailed as failed:
        raise NotRun(f"vLLM for CPUs cannot be installed: {failed}") from failed
    complete.touch()
    return python


class ChildFailed(Exception):
    """A command ended with an error; the message is the last line it wrote."""


async def _run(*command: str) -> None:
    """Raises ChildFailed. A command that is no longer wanted is ended."""
    child = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, env={**os.environ, "PYTHONPATH": ""}
    )
    try:
        said, _ = await child.communicate()
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    if child.returncode:
        raise ChildFailed(([*filter(None, said.decode(errors="replace").splitlines())] or [command[0]])[-1])
