"""The simulator as a process, over real sockets: it bills before it tells, and does what scripts ask."""

import asyncio
import contextlib
import json
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import aiohttp
import pytest

from tests.prove.server import Simulator
from tests.sim.invoice import Finish, Line


@pytest.fixture
async def simulator(tmp_path: Path) -> AsyncIterator[Simulator]:
    async with Simulator(tmp_path) as running:
        yield running


def body_of(script: dict | str, **fields) -> bytes:
    message = script if isinstance(script, str) else "sim: " + json.dumps(script)
    return json.dumps({"model": "sim-small", "messages": [{"role": "user", "content": message}]} | fields).encode()


class Raw:
    """One connection, byte by byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def connect(cls, simulator: Simulator) -> "Raw":
        return cls(*await asyncio.open_connection("127.0.0.1", simulator.port))

    @classmethod
    async def ask(cls, simulator: Simulator, script: dict | str, **fields) -> "Raw":
        raw = await cls.connect(simulator)
        raw.post(body_of(script, **fields), key=simulator.key)
        return raw

    def post(self, body: bytes, *, key: str) -> None:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n"
        head += f"X-Client-Request-Id: turn_1/1\r\nContent-Length: {len(body)}\r\n\r\n"
        self.writer.write(head.encode() + body)

    async def until(self, mark: bytes) -> bytes:
        async with asyncio.timeout(5):
            return await self.reader.readuntil(mark)

    async def rest(self) -> bytes:
        async with asyncio.timeout(5):
            return await self.reader.read()

    async def leave(self) -> None:
        self.writer.transport.abort()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()


async def eventually(holds: Callable[[], Awaitable[bool]]) -> None:
    for _ in range(1000):
        if await holds():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never came true")


async def answering(simulator: Simulator) -> None:
    async def holds() -> bool:
        return (await simulator.stats())["answering"] > 0

    await eventually(holds)


async def billed(simulator: Simulator, lines: int = 1) -> list[Line]:
    """The invoice, once it has so many lines."""

    async def holds() -> bool:
        return len(simulator.invoice()) >= lines

    await eventually(holds)
    return simulator.invoice()


async def test_a_stream_is_billed_before_its_last_token_can_be_read(simulator):
    raw = await Raw.ask(simulator, {"tokens": 3, "pace_ms": 5, "text": "the sea was "}, stream=True)
    await raw.until(b'"content":"was "')
    (line,) = simulator.invoice()
    assert (line.finish, line.tokens.output, line.client_request_id) == (Finish.STOP, 3, "turn_1/1")
    await raw.leave()


async def test_an_answer_is_billed_before_its_status_line_can_be_read(simulator):
    raw = await Raw.ask(simulator, "hello")
    head = await raw.until(b"\r\n\r\n")
    (line,) = simulator.invoice()
    assert f"x-request-id: {line.provider_request_id}".encode() in head
    await raw.leave()


async def test_a_client_that_leaves_is_billed_for_what_was_generated(simulator):
    raw = await Raw.ask(simulator, {"tokens": 1000, "pace_ms": 2, "reasoning": 7}, stream=True)
    for _ in range(5):
        await raw.until(b'"content":')
    await raw.leave()
    (line,) = await billed(simulator)
    assert line.finish is Finish.CANCELLED
    assert 4 <= line.tokens.output < 1000
    assert line.tokens.reasoning == 7
    stats = await simulator.stats()
    assert (stats["cancelled"], stats["answering"]) == (1, 0)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_before_the_first_byte_is_noticed(simulator, stream):
    raw = await Raw.ask(simulator, {"first_ms": 60_000}, stream=stream)
    await answering(simulator)
    await raw.leave()
    (line,) = await billed(simulator)
    assert (line.finish, line.tokens.output) == (Finish.CANCELLED, 0)


async def test_a_stalled_stream_is_billed_when_its_client_gives_up(simulator):
    raw = await Raw.ask(simulator, {"tokens": 9, "stall_at": 3, "ping_ms": 1}, stream=True)
    await raw.until(b": ping\n\n")
    assert simulator.invoice() == []
    await raw.leave()
    assert [(line.finish, line.tokens.output) for line in await billed(simulator)] == [(Finish.CANCELLED, 2)]


async def test_a_stalled_whole_answer_is_billed_when_its_client_gives_up(simulator):
    raw = await Raw.ask(simulator, {"tokens": 9, "stall_at": 3})
    await answering(simulator)
    await raw.leave()
    assert [(line.finish, line.tokens.output) for line in await billed(simulator)] == [(Finish.CANCELLED, 3)]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("place", [-1, 3])
async def test_a_connection_is_reset_at_its_place(simulator, stream, place):
    raw = await Raw.ask(simulator, {"tokens": 9, "rst_at": place, "pace_ms": 1}, stream=stream)
    with pytest.raises(ConnectionResetError):
        await raw.rest()
    (line,) = await billed(simulator)
    assert line.finish is Finish.CUT
    await raw.leave()


@pytest.mark.parametrize("fault", ["fin_at", "end_at"])
async def test_a_stream_ends_without_its_end(simulator, fault):
    raw = await Raw.ask(simulator, {"tokens": 9, fault: 3}, stream=True)
    said = await (raw.rest() if fault == "fin_at" else raw.until(b"\r\n0\r\n\r\n"))
    assert said.count(b"data: ") == 3
    assert b"[DONE]" not in said
    assert said.endswith(b"\r\n0\r\n\r\n") == (fault == "end_at")
    assert [(line.finish, line.tokens.output) for line in await billed(simulator)] == [(Finish.CUT, 2)]
    await raw.leave()


async def test_an_error_comes_in_a_stream_that_began_well(simulator):
    raw = await Raw.ask(simulator, {"tokens": 9, "error_at": 3}, stream=True)
    said = await raw.until(b"\r\n0\r\n\r\n")
    assert said.startswith(b"HTTP/1.1 200")
    assert b'data: {"error":{' in said
    assert b"[DONE]" not in said
    assert simulator.invoice()[0].finish is Finish.ERROR
    await raw.leave()


async def test_a_malformed_event_stands_between_good_ones(simulator):
    raw = await Raw.ask(simulator, {"tokens": 9, "malformed_at": 3}, stream=True)
    said = await raw.until(b"[DONE]")
    data = [part.partition(b"\n")[0] for part in said.split(b"data: ")[1:-1]]
    bad = [at for at, text in enumerate(data) if not _is_json(text)]
    assert bad == [3]
    await raw.leave()


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


async def test_a_split_answer_is_the_same_answer(simulator):
    headers = {"Authorization": f"Bearer {simulator.key}"}
    heard = []
    for script in (
        {"text": "Grüße, 世界"},
        {"text": "Grüße, 世界", "split": "byte"},
        {"text": "Grüße, 世界", "split": 3},
    ):
        asked = body_of(script, stream=True, stream_options={"include_usage": True})
        async with simulator.session.post(f"{simulator.base_url}/chat/completions", data=asked, headers=headers) as got:
            events = [json.loads(line[6:]) for line in (await got.text()).splitlines() if line.startswith("data: {")]
        heard.append("".join(event["choices"][0]["delta"].get("content", "") for event in events if event["choices"]))
    assert heard == ["Grüße, 世界"] * 3


async def test_error_statuses_are_not_billed_unless_scripted(simulator):
    headers = {"Authorization": f"Bearer {simulator.key}"}
    url = f"{simulator.base_url}/chat/completions"
    scripts = (
        {"status": 429, "retry_after": 2},
        {"status": 503},
        {"status": 500, "bill_errors": True},
        {"error_at": 1},
    )
    statuses = []
    for script in scripts:
        async with simulator.session.post(url, data=body_of(script), headers=headers) as got:
            statuses.append((got.status, got.headers.get("retry-after")))
    assert statuses == [(429, "2"), (503, None), (500, None), (500, None)]
    assert [line.finish for line in simulator.invoice()] == [Finish.ERROR]


async def test_wrong_keys_unknown_paths_and_bad_bodies_are_refused(simulator):
    right, wrong = {"Authorization": f"Bearer {simulator.key}"}, {"Authorization": "Bearer sk-wrong"}
    cases = [
        ("GET", "/v1/models", wrong, 401),
        ("POST", "/v1/chat/completions", {}, 401),
        ("POST", "/v1/chat/completions", right, 400),
        ("GET", "/v1/chat/completions", right, 405),
        ("POST", "/v1/videos", right, 404),
        ("GET", "/v1/models", right, 200),
    ]
    for method, path, headers, status in cases:
        async with simulator.session.request(method, simulator.url + path, headers=headers) as got:
            assert (got.status, path) == (status, path)
            assert got.headers["x-request-id"].startswith("req_")
            if status >= 400:
                assert set((await got.json())["error"]) == {"message", "type", "param", "code"}
    assert simulator.invoice() == []


async def test_requests_in_a_row_are_answered_in_order_on_one_connection(simulator):
    raw = await Raw.connect(simulator)
    for text in ("one", "two", "three"):
        raw.post(body_of({"text": text, "first_ms": 2}), key=simulator.key)
    said = await raw.until(b'"three"')
    await raw.until(b"}}}")
    assert said.index(b'"one"') < said.index(b'"two"') < said.index(b'"three"')
    assert (await simulator.stats())["max_concurrent"] == 1
    await raw.leave()


async def test_what_is_no_http_is_refused(simulator):
    raw = await Raw.connect(simulator)
    raw.writer.write(b"\x16\x03\x01 nonsense\r\n\r\n")
    assert (await raw.rest()).startswith(b"HTTP/1.1 400")
    await raw.leave()


async def test_retries_are_counted_and_a_reset_forgets_them(simulator):
    headers = {"Authorization": f"Bearer {simulator.key}", "x-stainless-retry-count": "2"}
    async with simulator.session.get(f"{simulator.base_url}/models", headers=headers):
        pass
    stats = await simulator.stats()
    assert (stats["requests"], stats["retries"]) == (1, {"2": 1})
    await simulator.reset()
    assert (await simulator.stats())["requests"] == 0


async def test_told_to_stop_it_closes_every_bill_and_ends_well(simulator):
    raw = await Raw.ask(simulator, {"tokens": 9, "stall_at": 3}, stream=True)
    await raw.until(b'"content":"sea "')
    assert await simulator.process.stop(signal.SIGTERM) == 0
    assert [line.tokens.output for line in simulator.invoice()] == [2]
    await raw.leave()


async def test_ids_stay_unique_after_a_restart_with_the_same_invoice(simulator):
    for _ in range(2):
        raw = await Raw.ask(simulator, "hello")
        await raw.until(b"}}}")
        await raw.leave()
        await simulator.terminate()
        await simulator.start()
    assert len({line.provider_request_id for line in simulator.invoice()}) == 2


async def test_a_client_that_does_not_read_holds_up_only_itself(simulator):
    slow = await Raw.ask(simulator, {"tokens": 2, "event_bytes": 20_000_000}, stream=True)
    timeout = aiohttp.ClientTimeout(total=5)
    headers = {"Authorization": f"Bearer {simulator.key}"}
    url = f"{simulator.base_url}/chat/completions"
    async with simulator.session.post(url, data=body_of("hello"), headers=headers, timeout=timeout) as got:
        assert got.status == 200
    await slow.leave()
    finishes = {line.finish for line in await billed(simulator, 2)}
    assert finishes == {Finish.STOP, Finish.CANCELLED}
