"""The same script on every wire, over real sockets: what goes wrong, what is billed, and what the wire says of both."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from tests.prove.server import Simulator
from tests.sim.invoice import Finish, Line
from tests.sim.subjects import SUBJECTS, Subject

pytestmark = pytest.mark.asyncio(loop_scope="module")
subjects = pytest.mark.parametrize("subject", SUBJECTS.values(), ids=SUBJECTS)


class Running:
    """One process for all tests here; each sees of the invoice what came during it."""

    def __init__(self, process: Simulator) -> None:
        self.url, self.session = process.url, process.session
        self._process, self._before = process, len(process.invoice())

    def invoice(self) -> list[Line]:
        return self._process.invoice()[self._before :]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def process(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Simulator]:
    async with Simulator(tmp_path_factory.mktemp("simulator")) as running:
        yield running


@pytest.fixture
def simulator(process: Simulator) -> Running:
    return Running(process)


async def said(simulator: Running, subject: Subject, *, stream: bool = True, **script: Any) -> tuple[int, str, Any]:
    """Status, all that could be read of the body, and the headers."""
    path, body = subject.request("sim: " + json.dumps(script), stream=stream)
    heard = b""
    headers = subject.headers | {"x-client-request-id": "turn_1/1"}
    async with asyncio.timeout(5), simulator.session.post(simulator.url + path, data=body, headers=headers) as got:
        try:
            async for part in got.content.iter_any():
                heard += part
        except aiohttp.ClientPayloadError:
            heard += b"(cut)"
        return got.status, heard.decode(), got.headers


def events_in(text: str) -> list[dict[str, Any]]:
    data = (line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: {"))
    return [json.loads(each) for each in data]


def only(simulator: Running) -> Line:
    (line,) = simulator.invoice()
    return line


@subjects
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_what_the_wire_tells_is_on_the_invoice_with_the_wires_own_id(simulator, subject, stream):
    script = {"tokens": 9, "reasoning": 5, "cached": 7, "cache_write": 3, "cache_write_1h": 2, "audio_output": 4}
    status, text, headers = await said(simulator, subject, stream=stream, **script)
    told = subject.stream_usage(events_in(text)) if stream else subject.usage(json.loads(text))
    line = only(simulator)
    assert (status, line.finish, line.model, line.stream) == (200, Finish.STOP, "sim-small", stream)
    assert subject.tokens(told) == line.tokens
    assert line.tokens.completion == 18
    own = headers.get("x-request-id") or headers.get("request-id") or f'"responseId":"{line.provider_request_id}"'
    assert own == line.provider_request_id or own in text
    assert line.client_request_id == "turn_1/1"


@subjects
async def test_a_stream_is_billed_before_its_last_token_can_be_read(simulator, subject):
    path, body = subject.request('sim: {"tokens": 2, "pace_ms": 20}', stream=True)
    async with simulator.session.post(simulator.url + path, data=body, headers=subject.headers) as got:
        await got.content.readuntil(b"sea ")
        assert only(simulator).tokens.output == 2


@subjects
@pytest.mark.parametrize("fault", ["fin_at", "end_at", "rst_at"])
async def test_a_stream_is_cut_at_its_place_and_billed_until_there(simulator, subject, fault):
    try:
        status, text, _ = await said(simulator, subject, tokens=9, pace_ms=1, **{fault: 6})
    except aiohttp.ClientError:
        text, status = "", 200
    line = only(simulator)
    assert (status, line.finish) == (200, Finish.CUT)
    assert 2 <= line.tokens.output <= 6
    if fault != "rst_at":
        assert len(events_in(text)) == 6
        assert ("(cut)" in text) == (fault == "fin_at")


@subjects
async def test_an_error_comes_in_a_stream_that_began_well_in_the_wires_own_words(simulator, subject):
    status, text, _ = await said(simulator, subject, tokens=9, error_at=4)
    error = events_in(text)[-1]["error"]
    assert status == 200
    assert ("event: error\n" in text) == (subject is SUBJECTS["anthropic"])
    kinds = {"anthropic": ("type", "api_error"), "gemini": ("status", "INTERNAL"), "azure": ("code", "500")}
    name = next(name for name, each in SUBJECTS.items() if each is subject)
    key, value = kinds.get(name, ("type", "server_error"))
    assert error[key] == value
    assert only(simulator).finish is Finish.ERROR


@subjects
async def test_a_malformed_event_stands_between_good_ones(simulator, subject):
    _, text, _ = await said(simulator, subject, tokens=4, malformed_at=3)
    broken = [line for line in text.splitlines() if line.startswith("data: {") and not _is_json(line[6:])]
    assert len(broken) == 1
    assert only(simulator).finish is Finish.STOP


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


@subjects
async def test_a_stalled_stream_is_kept_alive_in_the_wires_own_way(simulator, subject):
    path, body = subject.request('sim: {"tokens": 9, "stall_at": 5, "ping_ms": 2}', stream=True)
    async with simulator.session.post(simulator.url + path, data=body, headers=subject.headers) as got:
        ping = b"event: ping\n" if subject is SUBJECTS["anthropic"] else b": ping\n\n"
        for _ in range(3):
            await asyncio.wait_for(got.content.readuntil(ping), 2)
        assert simulator.invoice() == []
        got.close()
    for _ in range(400):
        if simulator.invoice():
            break
        await asyncio.sleep(0.005)
    assert only(simulator).finish is Finish.CANCELLED


@subjects
async def test_a_split_answer_is_the_same_answer(simulator, subject):
    heard = [
        (await said(simulator, subject, stream=stream, text="Grüße, 世界", split=split))[1]
        for stream in (True, False)
        for split in (0, 1, 3)
    ]
    numbers = [line.provider_request_id[-20:] for line in simulator.invoice()]
    same = {text.replace(number, "N") for text, number in zip(heard, numbers, strict=True)}
    assert len(_without_times(same)) == 2


def _without_times(texts: set[str]) -> set[str]:
    """Two answers may fall on both sides of a second."""
    return {"".join(part[part.find(",") :] for part in text.split('"created":')) for text in texts}


@subjects
async def test_error_statuses_come_with_the_wait_and_are_not_billed_unless_scripted(simulator, subject):
    for status in (400, 402, 429, 500, 503, 529):
        got, text, headers = await said(simulator, subject, status=status, retry_after=2)
        assert (got, headers["retry-after"]) == (status, "2")
        assert json.loads(text)["error"]["message"] == f"The script asked for {status}."
    assert simulator.invoice() == []
    await said(simulator, subject, status=500, bill_errors=True)
    assert only(simulator).finish is Finish.ERROR


@subjects
async def test_a_whole_answer_is_cut_or_broken_after_it_was_billed(simulator, subject):
    for script in ({"fin_at": 2}, {"malformed_at": 1}):
        _, text, _ = await said(simulator, subject, stream=False, **script)
        assert not _is_json(text)
    assert [line.finish for line in simulator.invoice()] == [Finish.CUT, Finish.STOP]


@subjects
async def test_wrong_keys_unknown_models_and_bad_bodies_earn_errors_of_their_wire(simulator, subject):
    wrong = {"gemini": 400}.get(_name(subject), 401)
    headers = {name: f"x{value}" for name, value in subject.headers.items()}
    path, body = subject.request("hello")
    model = path.replace("sim-small", "gpt-9"), body.replace(b"sim-small", b"gpt-9")
    for (where, what), given, status in (
        ((path, body), headers, wrong),
        (model, subject.headers, 404),
        ((path, b"{"), subject.headers, 400),
    ):
        async with simulator.session.post(simulator.url + where, data=what, headers=given) as got:
            assert (got.status, where) == (status, where)
            assert (await got.json())["error"]["message"]
    assert simulator.invoice() == []


def _name(subject: Subject) -> str:
    return next(name for name, each in SUBJECTS.items() if each is subject)


async def test_what_costs_nothing_is_not_billed(simulator):
    anthropic, gemini = SUBJECTS["anthropic"], SUBJECTS["gemini"]
    asked = {"model": "sim-small", "messages": [{"role": "user", "content": "12345678"}]}
    counts = []
    for path, body, headers in (
        ("/v1/messages/count_tokens", asked, anthropic.headers),
        ("/v1beta/models/sim-small:countTokens", {"contents": [{"parts": [{"text": "12345678"}]}]}, gemini.headers),
    ):
        async with simulator.session.post(simulator.url + path, json=body, headers=headers) as got:
            counts.append(await got.json())
    assert counts[0] == {"input_tokens": 2}
    assert counts[1]["totalTokens"] == 2
    for headers, path in ((anthropic.headers, "/v1/models"), (gemini.headers, "/v1beta/models")):
        async with simulator.session.get(simulator.url + path, headers=headers) as got:
            assert "sim-small" in await got.text()
    assert simulator.invoice() == []
