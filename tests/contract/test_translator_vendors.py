"""The translator against the simulator's vendors: what is counted is what they bill, and what they say arrives."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from tests.contract.test_translator import assert_cut
from tests.fakes.translators import CHAT, ROOT, Answered, RunningTranslator, called, running_translator
from tests.sim.invoice import Finish, Line, read_invoice

MESSAGES = "/v1/messages"
BASES = {"anthropic": "", "gemini": "/v1beta", "azure": "", "openai": "/v1"}
VENDORS = list(BASES)
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
WAV = "UklGRiQAAABXQVZFZm10IBAAAAABAAEAQB8AAIA+AAACABAAZGF0YQAAAAA="
WEATHER = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


@pytest.fixture(scope="module")
def translator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningTranslator]:
    with running_translator(tmp_path_factory.mktemp("translator")) as running:
        yield running


class Billing:
    """A simulator for the whole module, and what it has billed since a test began."""

    def __init__(self, url: str, invoice: Path) -> None:
        self.url = url
        self._invoice = invoice
        self._before = 0

    def begin(self) -> None:
        self._before = len(read_invoice(self._invoice))

    def invoice(self) -> list[Line]:
        return read_invoice(self._invoice)[self._before :]

    async def requests(self) -> int:
        async with aiohttp.ClientSession() as session, session.get(f"{self.url}/sim/stats") as answer:
            return (await answer.json())["requests"]


@pytest.fixture(scope="module")
def running_simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Billing]:
    folder = tmp_path_factory.mktemp("simulator")
    invoice, ready = folder / "invoice.jsonl", folder / "ready.json"
    command = [sys.executable, "-m", "tests.sim.upstream", "--invoice", str(invoice), "--ready", str(ready)]
    process = subprocess.Popen(command, cwd=ROOT)
    while not ready.exists():
        assert process.poll() is None, "the simulator ended"
        time.sleep(0.02)
    yield Billing(f"http://127.0.0.1:{json.loads(ready.read_text())['port']}", invoice)
    process.terminate()
    process.wait(10)


@pytest.fixture
async def simulator(running_simulator: Billing) -> Billing:
    running_simulator.begin()
    async with aiohttp.ClientSession() as session, session.post(f"{running_simulator.url}/sim/reset"):
        return running_simulator


class Vendor:
    """One provider as the translator sees it, asked in either wire."""

    def __init__(self, name: str, translator: RunningTranslator, simulator: Billing) -> None:
        self.name = name
        self._translator = translator
        self.simulator = simulator

    async def ask(self, path: str, script: dict, *parts: Any, **more: Any) -> Answered:
        text = {"type": "text", "text": "sim:" + json.dumps(script) + " " * 160}
        messages = [{"role": "user", "content": [text, *parts]}]
        body = {"model": "sim-small", "max_tokens": 200, "messages": messages} | more
        headers = self._translator.headers(self.name, self.simulator.url + BASES[self.name])
        return await self._translator.ask(path, body, headers)

    @property
    def billed(self) -> list[dict[str, int]]:
        """The components of each line of the invoice that are not zero."""
        lines = [msgspec.to_builtins(line.tokens) for line in self.simulator.invoice()]
        return [{part: count for part, count in line.items() if count} for line in lines]


@pytest.fixture(params=VENDORS)
def vendor(request: pytest.FixtureRequest, translator: RunningTranslator, simulator: Billing) -> Vendor:
    return Vendor(request.param, translator, simulator)


@pytest.fixture(params=[(CHAT, False), (CHAT, True), (MESSAGES, False), (MESSAGES, True)], ids=str)
def way(request: pytest.FixtureRequest) -> tuple[str, bool]:
    return request.param


def usage_of(answer: Answered) -> dict[str, Any]:
    if answer.body.startswith(b"{"):
        return answer.json["usage"]
    return [event["usage"] for event in answer.events if event != "[DONE]" and event.get("usage")][-1]


def said_by(answer: Answered, path: str) -> str:
    """The text of the answer, in whichever wire."""
    if path == CHAT:
        return answer.text or ""
    if answer.body.startswith(b"{"):
        return "".join(block["text"] for block in answer.json["content"] if block["type"] == "text")
    deltas = [event["delta"] for event in answer.events if event["type"] == "content_block_delta"]
    return "".join(delta.get("text", "") for delta in deltas)


SCRIPTS = [
    {"tokens": 7},
    {"tokens": 0},
    {"tokens": 7, "cached": 11},
    {"tokens": 7, "cached": 5, "cache_write": 9, "cache_write_1h": 3},
    {"tokens": 5, "reasoning": 6},
    {"tokens": 5, "cached": 4, "reasoning": 2, "audio_output": 3},
    {"text": 'Grüße, 世界 🌍 "usage": {"input_tokens": 9}'},
    {"tokens": 300},
]  # fmt: skip


@pytest.mark.parametrize("script", SCRIPTS, ids=json.dumps)
async def test_what_is_counted_is_what_is_billed(vendor: Vendor, way: tuple[str, bool], script: dict) -> None:
    path, stream = way
    answer = await vendor.ask(path, script, stream=stream)
    assert answer.status == 200, answer.body
    (billed,) = vendor.billed
    assert usage_of(answer)["components"] == billed
    assert answer.headers["x-request-id"] == vendor.simulator.invoice()[0].provider_request_id
    said = said_by(answer, path)
    if "text" in script:
        assert said == script["text"]
    else:
        assert said.startswith("the sea "[: 4 * script["tokens"]])


@pytest.mark.parametrize("manner", ["duplicate", "cumulative"])
async def test_usage_that_comes_more_than_once_is_counted_once(
    vendor: Vendor, way: tuple[str, bool], manner: str
) -> None:
    path, stream = way
    answer = await vendor.ask(path, {"tokens": 4, "cached": 3, "usage": manner}, stream=stream)
    if vendor.name == "anthropic" and stream:
        assert_cut(answer)  # litellm takes the first count for the end, and loses what comes after it
    else:
        assert (said_by(answer, path), [usage_of(answer)["components"]]) == ("the sea was low ", vendor.billed)


async def test_images_are_counted_as_the_vendor_bills_them(vendor: Vendor, way: tuple[str, bool]) -> None:
    path, stream = way
    of_anthropic = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}}
    of_openai = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}}
    picture = of_openai if path == CHAT else of_anthropic
    answer = await vendor.ask(path, {"tokens": 3}, picture, stream=stream)
    assert answer.status == 200, answer.body
    assert [usage_of(answer)["components"]] == vendor.billed
    assert sum(vendor.billed[0].values()) > 258


@pytest.mark.parametrize("name", ["gemini", "azure", "openai"])
async def test_recordings_are_counted_as_the_vendor_bills_them(name, translator, simulator) -> None:
    vendor = Vendor(name, translator, simulator)
    recording = {"type": "input_audio", "input_audio": {"data": WAV, "format": "wav"}}
    answer = await vendor.ask(CHAT, {"tokens": 3}, recording)
    assert answer.status == 200, answer.body
    assert usage_of(answer)["components"]["audio_input"] == vendor.billed[0]["audio_input"]


async def test_tools_are_called_and_answered(vendor: Vendor, way: tuple[str, bool]) -> None:
    path, stream = way
    function = {"name": "weather", "description": "Of a city.", "parameters": WEATHER}
    of_openai = {"type": "function", "function": function}
    of_anthropic = {"name": "weather", "description": "Of a city.", "input_schema": WEATHER}
    answer = await vendor.ask(path, {}, stream=stream, tools=[of_openai if path == CHAT else of_anthropic])
    assert answer.status == 200, answer.body
    assert [usage_of(answer)["components"]] == vendor.billed
    assert called(answer, path) == ("weather", {"city": "x"})


@pytest.mark.parametrize("status", [400, 401, 403, 404, 429, 500, 503])
async def test_errors_keep_status_and_words(vendor: Vendor, way: tuple[str, bool], status: int) -> None:
    path, stream = way
    answer = await vendor.ask(path, {"status": status, "retry_after": 7}, stream=stream)
    assert (answer.status, answer.json["error"]["message"]) == (status, f"The script asked for {status}.")
    assert float(answer.headers["retry-after"]) == 7
    assert await vendor.simulator.requests() == 1


@pytest.mark.parametrize(
    "fault",
    [{"rst_at": 3}, {"fin_at": 3}, {"end_at": 3}, {"error_at": 3}, {"rst_at": -1}, {"fin_at": -1}],
    ids=json.dumps,
)
async def test_an_answer_that_was_cut_is_never_a_whole_one(vendor: Vendor, way: tuple[str, bool], fault: dict) -> None:
    path, stream = way
    answer = await vendor.ask(path, {"tokens": 8} | fault, stream=stream)
    if answer.status == 200 and stream:
        assert_cut(answer)
    elif "end_at" in fault and not stream:  # a whole body has no end before its end
        assert answer.status in {200, 504}
    else:
        assert answer.status == (500 if "error_at" in fault and not stream else 504), answer.body
    assert await vendor.simulator.requests() == 1


@pytest.mark.parametrize("split", [1, 7])
async def test_pieces_do_not_matter(vendor: Vendor, way: tuple[str, bool], split: int) -> None:
    path, stream = way
    answer = await vendor.ask(path, {"tokens": 4, "cached": 2, "reasoning": 1, "split": split}, stream=stream)
    assert (said_by(answer, path), [usage_of(answer)["components"]]) == ("the sea was low ", vendor.billed)


async def test_who_does_not_tell_what_was_used_is_not_helped(vendor: Vendor, way: tuple[str, bool]) -> None:
    path, stream = way
    answer = await vendor.ask(path, {"tokens": 4, "usage": "missing"}, stream=stream)
    assert answer.status == 200 or (vendor.name in {"anthropic", "gemini"} and answer.status == 504)  # it must be told
    assert b'"components"' not in answer.body


@pytest.mark.parametrize("name", ["gemini", "azure", "openai"])
async def test_embeddings_are_translated_and_counted(name, translator, simulator) -> None:
    headers = translator.headers(name, simulator.url + BASES[name])
    body = {"model": "sim-embed", "input": ["Hello there", "you"], "encoding_format": "base64"}
    answer = await translator.ask("/v1/embeddings", body, headers)
    assert answer.status == 200, answer.body
    vendor = Vendor(name, translator, simulator)
    assert [answer.json["usage"]["components"]] == vendor.billed
    assert [isinstance(each["embedding"], str) for each in answer.json["data"]] == [True, True]


async def test_a_client_that_leaves_is_billed_for_no_more_than_it_had(translator, simulator) -> None:
    vendor = Vendor("gemini", translator, simulator)
    answer = await translator.ask(
        CHAT,
        {"model": "sim-small", "stream": True,
         "messages": [{"role": "user", "content": 'sim:{"tokens": 500, "pace_ms": 20}'}]},
        translator.headers("gemini", simulator.url + "/v1beta", X_Penstock_Seconds="0.5"),
    )  # fmt: skip
    assert_cut(answer)
    (line,) = vendor.simulator.invoice()
    assert (line.finish, line.tokens.output < 60) == (Finish.CANCELLED, True)
