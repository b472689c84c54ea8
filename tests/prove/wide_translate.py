"""Proof of the translator: providers of other wires, asked through the whole gateway, and billed as the books say."""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from tests.fakes.translators import Answered, called, translator_python
from tests.prove.books import compare, open_holds, read_attempts, write_invoice
from tests.prove.proofs import Bench, Outcome, proof
from tests.prove.server import Gateway, Simulator

CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"
# Who is asked, in which wire: of the gateway's dialects, all that goes through the translator.
WAYS = (
    ("gemini", CHAT),
    ("gemini", MESSAGES),
    ("azure", CHAT),
    ("azure", MESSAGES),
    ("anthropic", CHAT),
    ("openai", MESSAGES),
)
_COMPANY = """
departments: [{{name: proof}}]
use_cases: [{{name: proving, purpose: Proving what is promised}}]
apps: [{{name: proof-app, department: proof, use_cases: [proving]}}]
providers:
{providers}
models:
{models}
prices:
{prices}
policies:
  - {{name: all, models: [{names}], departments: [proof], use_cases: [proving], data_class: internal}}
"""
_VENDORS = {
    "gemini": 'dialect: translated, translate_as: gemini, base_url: "{url}/v1beta"',
    "azure": 'dialect: translated, translate_as: azure, api_version: "2024-10-21", base_url: "{url}"',
    "anthropic": 'dialect: anthropic, base_url: "{url}/v1"',
    "openai": 'dialect: openai, base_url: "{url}/v1"',
}
# Who fails counts against the health of whom was asked: each kind of failing has providers of its own.
_APART = ("", "-error", "-cut", "-abort")
_RATES = (
    '{input: "1", cached_input: "0.1", cache_write: "1.25", cache_write_1h: "2", audio_input: "3", image_input: "5", '
    'output: "4", reasoning: "6", audio_output: "7"}'
)
_WEATHER = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
_PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
_WAV = "UklGRiQAAABXQVZFZm10IBAAAAABAAEAQB8AAIA+AAACABAAZGF0YQAAAAA="
_SECONDS_MAX = 30


@dataclass(frozen=True)
class Exchange:
    """One scripted exchange. expect: whether the answer is right, given the wire. leaves: after so many seconds."""

    name: str
    script: Mapping[str, Any]
    expect: Callable[[Answered, str], bool]
    stream: bool = False
    tool: bool = False
    image: bool = False
    leaves: float | None = None


def _said(answer: Answered, path: str) -> str:
    if path == CHAT:
        return answer.text or ""
    if not answer.names:
        return "".join(block.get("text", "") for block in answer.json["content"])
    deltas = [event["delta"] for event in answer.events if event["type"] == "content_block_delta"]
    return "".join(delta.get("text", "") for delta in deltas)


def _ended(answer: Answered, path: str) -> bool:
    if answer.body.startswith(b"{"):
        return answer.status == 200
    last = answer.events[-1] if answer.events else None
    return not answer.cut and (last == "[DONE]" if path == CHAT else answer.names[-1:] == ["message_stop"])


def _says(text: str) -> Callable[[Answered, str], bool]:
    return lambda answer, path: answer.status == 200 and _said(answer, path) == text and _ended(answer, path)


def _calls(answer: Answered, path: str) -> bool:
    return answer.status == 200 and called(answer, path) == ("weather", {"city": "x"}) and _ended(answer, path)


def _refuses(status: int) -> Callable[[Answered, str], bool]:
    def refused(answer: Answered, _path: str) -> bool:
        return answer.status == status and bool(answer.json["error"]["message"])

    return refused


def _fails_loudly(answer: Answered, path: str) -> bool:
    broken = answer.status == 200 and (answer.cut or b'"error"' in answer.body)
    return not _ended(answer, path) and (broken or b"upstream_broken" in answer.body)


def _left(_answer: Answered, _path: str) -> bool:
    return True


EXCHANGES = (
    Exchange("whole", {"tokens": 5}, _says("the sea was low and ")),
    Exchange("stream", {"tokens": 5}, _says("the sea was low and "), stream=True),
    Exchange("cached", {"tokens": 3, "cached": 9, "cache_write": 4, "cache_write_1h": 2}, _says("the sea was ")),
    Exchange("reasoning", {"tokens": 3, "cached": 5, "reasoning": 7}, _says("the sea was "), stream=True),
    Exchange("tool", {}, _calls, tool=True),
    Exchange("tool, streamed", {}, _calls, stream=True, tool=True),
    Exchange("image", {"tokens": 3, "audio_output": 2}, _says("the sea was "), image=True),
    Exchange("abort", {"tokens": 200, "reasoning": 4, "pace_ms": 20}, _left, stream=True, leaves=1.5),
    Exchange("error", {"status": 429, "retry_after": 2}, _refuses(429)),
    Exchange("cut", {"tokens": 30, "reasoning": 3, "fin_at": 5}, _fails_loudly, stream=True),
)


@dataclass
class Asking:
    """Puts exchanges to a gateway, each by an unmodified request of its wire."""

    gateway: Gateway
    key: str
    wrong: list[str] = field(default_factory=list)

    async def exchange(self, vendor: str, path: str, wanted: Exchange) -> None:
        body = _body(vendor, path, wanted)
        answer = await self._answer(path, body, wanted.leaves)
        if not wanted.expect(answer, path):
            self.wrong.append(f"{wanted.name} of {vendor} by {path}: {answer.status} {answer.body[-200:]!r}")

    async def _answer(self, path: str, body: object, leaves: float | None) -> Answered:
        headers = {"Authorization": f"Bearer {self.key}", "anthropic-version": "2023-06-01"}
        limit = aiohttp.ClientTimeout(total=leaves or _SECONDS_MAX)
        came, cut, status, told = bytearray(), False, 0, dict[str, str]()
        try:
            async with self.gateway.session.post(
                self.gateway.url + path, json=body, headers=headers, timeout=limit
            ) as answer:
                status, told = answer.status, dict(answer.headers)
                async for piece in answer.content.iter_any():
                    came += piece
        except (TimeoutError, aiohttp.ClientError):
            cut = True
        return Answered(status, told, bytes(came), cut)


def _body(vendor: str, path: str, wanted: Exchange) -> dict[str, Any]:
    text = {"type": "text", "text": "sim:" + json.dumps(wanted.script) + " " * 160}
    of_openai = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{_PIXEL}"}}
    of_anthropic = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": _PIXEL}}
    picture = of_openai if path == CHAT else of_anthropic
    recording = {"type": "input_audio", "input_audio": {"data": _WAV, "format": "wav"}}
    media = [picture, recording] if path == CHAT and vendor != "anthropic" else [picture]
    content = [text, *media] if wanted.image else [text]
    body = {
        "model": f"{vendor}-{wanted.name}" if f"-{wanted.name}" in _APART else vendor,
        "max_tokens": 240,
        "messages": [{"role": "user", "content": content}],
    }
    function = {"name": "weather", "description": "Of a city."}
    tool = (
        {"type": "function", "function": function | {"parameters": _WEATHER}}
        if path == CHAT
        else function | {"input_schema": _WEATHER}
    )
    return body | ({"stream": True} if wanted.stream else {}) | ({"tools": [tool]} if wanted.tool else {})


@proof(
    "wide.translate",
    what=(
        "Gemini, Azure, Anthropic and OpenAI through the translator, by both wires: 60 scripted exchanges with tools, "
        "images, cached and reasoning tokens, errors, cuts, aborts"
    ),
    must="answers right; ledger equals the simulator's invoice by component",
    seconds_max=300,
)
async def translate(bench: Bench) -> Outcome:
    """Ask, wait until all is settled, compare with the invoice line by line, import it, compare again."""
    python = await asyncio.to_thread(translator_python)
    environment = {"PENSTOCK_TRANSLATOR_PYTHON": str(python)}
    async with Simulator(bench.workdir) as simulator, Gateway(bench.workdir, environment=environment) as gateway:
        asking = Asking(gateway, await _found(gateway, simulator))
        await asking.exchange(*WAYS[0], EXCHANGES[0])  # the first one waits for the translator to start
        begun = time.monotonic()
        for each in EXCHANGES:
            ways = WAYS[1:] if each is EXCHANGES[0] else WAYS
            await asyncio.gather(*[asking.exchange(vendor, path, each) for vendor, path in ways])
        bench.figure("exchanges", len(WAYS) * len(EXCHANGES))
        bench.figure("in s", round(time.monotonic() - begun, 1))
        await _settled(gateway)
        hung_up = (await simulator.stats())["cancelled"]
        before = compare(simulator.invoice(), read_attempts(gateway.data_dir))
        after = await asyncio.to_thread(_reconciled, bench, gateway, simulator)
        left, parts = open_holds(gateway.data_dir), _parts(simulator)
    for line in asking.wrong:
        bench.note(line)
    bench.figure("answers wrong", len(asking.wrong))
    bench.figure("aborts the provider saw", hung_up)
    bench.figure("invoice lines", len(simulator.invoice()))
    bench.figure("components", ", ".join(sorted(parts)))
    bench.figure("estimated", before.estimated)
    bench.figure("lines without attempt", len(before.without_attempt))
    bench.figure("inexact", len(before.inexact))
    bench.figure("below the invoice", len(before.understated))
    bench.figure("different after import", len(after.inexact))
    books = before.exact and after.exact and not left and before.estimated <= 2 * len(WAYS)
    lines = len(WAYS) * (len(EXCHANGES) - 1)  # nobody bills a refusal
    return Outcome(books and not asking.wrong and hung_up == len(WAYS) and len(simulator.invoice()) == lines)


async def _found(gateway: Gateway, simulator: Simulator) -> str:
    """Declare the company, models of each vendor, and return a key of its app."""
    names = [f"{name}{apart}" for name in _VENDORS for apart in _APART]
    kinds = {name: _VENDORS[name.partition("-")[0]].format(url=simulator.url) for name in names}
    limits = "upstream_model: sim-small, output_tokens_max: 256, context_tokens: 8192"
    declared = _COMPANY.format(
        providers="\n".join(f"  - {{name: of-{name}, credential: sim, {kind}}}" for name, kind in kinds.items()),
        models="\n".join(f"  - {{name: {name}, provider: of-{name}, {limits}}}" for name in names),
        prices="\n".join(f"  - {{name: {name}, model: {name}, usd_per_million_tokens: {_RATES}}}" for name in names),
        names=", ".join(names),
    )
    await gateway.put_credential("sim", simulator.key)
    await gateway.apply(declared)
    return await gateway.create_key(name="proof-key", app="proof-app")


async def _settled(gateway: Gateway) -> None:
    async with asyncio.timeout(_SECONDS_MAX):
        while open_holds(gateway.data_dir):
            await asyncio.sleep(0.05)


def _reconciled(bench: Bench, gateway: Gateway, simulator: Simulator) -> Any:
    path = bench.workdir / "import.jsonl"
    write_invoice(simulator.invoice(), path)
    command = [sys.executable, "-m", "gateway", "reconcile", "--file", str(path), "--json"]
    subprocess.run(command, check=True, capture_output=True, cwd=bench.root, env=gateway.environment)
    return compare(simulator.invoice(), read_attempts(gateway.data_dir), reconciled=True)


def _parts(simulator: Simulator) -> set[str]:
    """The components that were billed at all."""
    lines = [line.tokens for line in simulator.invoice()]
    return {name for tokens in lines for name in tokens.__struct_fields__ if getattr(tokens, name)}
