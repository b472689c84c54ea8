"""Traces of turns: which are made, what their spans say, and what they never say."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from random import Random

import msgspec
import pytest

from gateway.telemetry import Parent, Span, Telemetry
from gateway.trace import Trace
from gateway.wiring import Platform
from governance import NewKey
from router import UpstreamRefused, UpstreamUnreachable
from tests.fakes.chats import ROLE, TAIL, WORD, RawCaller, Scripted, chat_with, company

PARENT = f"00-{0xABC:032x}-{0xDEF:016x}-01"
CANARY = "canary-of-somebody"


class Sink:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.turns: list[Sequence[Span]] = []
        self.is_running = False

    def start(self) -> None:
        self.is_running = True

    def add(self, spans: Sequence[Span]) -> None:
        self.turns.append(spans)

    def stop(self) -> None:
        self.is_running = False


class House:
    """A platform that is traced, and its log."""

    def __init__(self, platform: Platform, ratio: float) -> None:
        self.platform = platform
        self.sink = Sink()
        self.lines: list[dict] = []
        edge = platform.edge
        self.told_before_the_line: list[int] = []
        edge.log = self._log
        self.trace_with(ratio)

    def _log(self, _logger: str, _message: str, facts: Mapping[str, object]) -> None:
        self.lines.append(dict(facts))
        self.told_before_the_line.append(len(self.sink.turns))

    def trace_with(self, ratio: float) -> None:
        edge = self.platform.edge
        edge.telemetry = Telemetry(
            lambda: self.sink, ratio=ratio, catalogue=edge.catalogue, clock=edge.clock, dice=Random(7)
        )
        edge.telemetry.start()

    async def ask(self, scripts: dict[str, list], traceparent: str | None = None, **members: object) -> RawCaller:
        self.platform.edge.chat = chat_with(self.platform, Scripted(**scripts))
        key = await self.platform.keys.create(NewKey(name="k", app="a"), by="test")
        body = {"model": "one", "messages": [{"role": "user", "content": CANARY}], **members}
        caller = RawCaller(self.platform, key.key, msgspec.json.encode(body)).start()
        if traceparent is not None:
            caller.headers["traceparent"] = traceparent
        await caller.ended()
        if caller.rests_until is not None:
            await caller.rests_until  # the spans are told once the books are durable
        await asyncio.sleep(0)
        return caller


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with company(tmp_path) as platform:
        yield House(platform, ratio=1)


@pytest.mark.parametrize(
    ("header", "read"),
    [
        (PARENT, Parent(0xABC, 0xDEF, is_sampled=True)),
        (PARENT[:-2] + "00", Parent(0xABC, 0xDEF, is_sampled=False)),
        (PARENT[:-2] + "03", Parent(0xABC, 0xDEF, is_sampled=True)),
        ("cc" + PARENT[2:] + "-what-comes-later", Parent(0xABC, 0xDEF, is_sampled=True)),
        (PARENT + "-more", None),
        ("ff" + PARENT[2:], None),
        (PARENT.upper(), None),
        (f"00-{0:032x}-{1:016x}-01", None),
        (f"00-{1:032x}-{0:016x}-01", None),
        (f"{PARENT}, {PARENT}", None),
        ("", None),
    ],
)
def test_a_traceparent_is_read_as_the_standard_says(header: str, read: Parent | None) -> None:
    assert Parent.read(header) == read


async def test_spans_stand_within_the_turn_and_follow_each_other(house: House) -> None:
    await house.ask({"two": [WORD, TAIL]}, model="two")
    [spans] = house.sink.turns
    turn, *parts = spans
    names = [span.name for span in spans]
    assert names == ["chat two", "identify", "admit", "hold", "do", "chat two", "settle"]
    identify, admit, hold, do, attempt, settle = parts
    assert {span.trace_id for span in spans} == {turn.trace_id}
    assert len({span.span_id for span in spans}) == len(spans)
    assert [span.parent_id for span in parts] == [turn.span_id] * 4 + [do.span_id, turn.span_id]
    assert turn.parent_id is None
    assert turn.began == identify.began <= identify.ended == admit.began <= admit.ended == hold.began
    assert hold.ended == do.began == attempt.began <= attempt.ended == do.ended <= turn.ended
    assert turn.ended <= settle.began <= settle.ended
    at = house.platform.edge.clock.now().timestamp() * 1e9
    assert at - 5e9 < turn.began <= at


async def test_spans_are_told_when_the_books_are_durable_and_not_before(house: House) -> None:
    await house.ask({"one": [WORD, TAIL]})
    assert house.told_before_the_line == [0]
    settle = house.sink.turns[0][-1]
    assert settle.ended > settle.began


async def test_an_attempt_says_what_the_conventions_ask_for(house: House) -> None:
    await house.ask({"one": [ROLE, WORD, TAIL]}, stream=True, max_tokens=50)
    attempt = house.sink.turns[0][5]
    told = dict(attempt.attributes)
    assert attempt.kind == "client"
    assert attempt.error is None
    assert told.pop("gen_ai.response.time_to_first_chunk") >= 0
    assert told == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "sandbox",
        "gen_ai.request.model": "one",
        "gen_ai.request.max_tokens": 50,
        "gen_ai.request.stream": True,
        "gen_ai.usage.input_tokens": 5,
        "gen_ai.usage.output_tokens": 7,
        "penstock.attempt": 1,
        "penstock.target": "one",
        "penstock.provider": "s",
        "penstock.provider_request_id": "up-1",
        "penstock.held_nano_usd": told["penstock.held_nano_usd"],
        "penstock.cost_nano_usd": 19_000,
        "penstock.estimated": False,
        "penstock.end": "post",
    }


async def test_the_turn_says_who_asked_for_what_and_how_it_ended(house: House) -> None:
    caller = await house.ask({"one": [UpstreamUnreachable("x")], "two": [WORD, TAIL]}, model="both")
    turn = house.sink.turns[0][0]
    told = dict(turn.attributes)
    assert turn.kind == "server"
    assert told.pop("penstock.key_id").startswith("key_")
    assert told.pop("penstock.turn_id") in caller.head.decode()
    assert told == {
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "both",
        "gen_ai.response.model": "two",
        "penstock.attempts": 2,
        "penstock.cost_nano_usd": 43_000,
        "penstock.app": "a",
        "penstock.department": "d",
        "penstock.use_case": "u",
        "penstock.data_class": "internal",
    }


async def test_a_failed_attempt_and_the_hold_of_the_next_stand_in_the_doing(house: House) -> None:
    await house.ask({"one": [UpstreamUnreachable("x")], "two": [WORD, TAIL]}, model="both")
    [spans] = house.sink.turns
    assert [span.name for span in spans] == [
        "chat both", "identify", "admit", "hold", "do", "chat one", "hold", "chat two", "settle"
    ]  # fmt: skip
    do, first, again, second = spans[4:8]
    assert {span.parent_id for span in (first, again, second)} == {do.span_id}
    assert first.error == first.attributes["error.type"] == "not_sent"
    assert first.attributes["penstock.end"] == "void"
    assert second.error is None
    assert first.ended <= again.began <= again.ended == second.began
    assert (do.began, do.ended) == (first.began, second.ended)


async def test_a_refused_turn_is_a_short_trace_with_the_reason(house: House) -> None:
    await house.ask({}, model="secret")
    turn, identify, admit = house.sink.turns[0]
    assert (identify.name, admit.name) == ("identify", "admit")
    assert turn.attributes["http.response.status_code"] == 404
    assert turn.attributes["error.type"] == "model_not_found"
    assert turn.error is None, "what a caller does wrong is no fault of the server"


async def test_every_target_failing_is_a_fault(house: House) -> None:
    await house.ask({"one": [UpstreamUnreachable("x")]})
    assert house.sink.turns[0][0].error == "upstream_unreachable"


async def test_nothing_that_a_caller_or_a_provider_wrote_is_told(house: House) -> None:
    said = UpstreamRefused(CANARY, status=400, code=f"you said {CANARY}")
    await house.ask({"one": [said]})
    await house.ask({}, model=CANARY)
    assert CANARY not in str(house.sink.turns)
    assert house.sink.turns[0][5].error == "invalid_request", "its code is ours where it is more than a word"


async def test_a_name_that_nobody_declares_any_more_is_not_told(house: House) -> None:
    trace = Trace(house.platform.edge.clock)
    trace.facts["requested"] = CANARY
    assert house.platform.edge.telemetry.turn(trace, 404, None)
    [[turn, admit]] = house.sink.turns
    assert (turn.name, admit.name) == ("chat", "admit")
    assert CANARY not in str(turn)


async def test_the_callers_trace_is_the_parent_and_its_flag_decides(house: House) -> None:
    house.trace_with(0)
    await house.ask({"one": [WORD, TAIL]}, PARENT)
    await house.ask({"one": [WORD, TAIL]}, PARENT[:-2] + "00")
    await house.ask({"one": [WORD, TAIL]})
    [spans] = house.sink.turns
    assert {span.trace_id for span in spans} == {0xABC}
    assert spans[0].parent_id == 0xDEF
    assert spans[0].is_remote
    assert [line.get("trace") for line in house.lines] == [f"{0xABC:032x}", None, None]


async def test_a_caller_who_does_not_want_it_is_not_traced(house: House) -> None:
    await house.ask({"one": [WORD, TAIL]}, PARENT[:-2] + "00")
    await house.ask({"one": [WORD, TAIL]}, "nonsense")
    assert len(house.sink.turns) == 1
    assert house.lines[1]["trace"] == f"{house.sink.turns[0][0].trace_id:032x}"


async def test_the_share_is_drawn(house: House) -> None:
    house.trace_with(0.25)
    for _ in range(40):
        await house.ask({"one": [WORD, TAIL]})
    assert 3 <= len(house.sink.turns) <= 18


async def test_nothing_is_traced_unless_somebody_wants_it(tmp_path: Path) -> None:
    async with company(tmp_path) as platform:
        platform.edge.chat = chat_with(platform, Scripted(one=[WORD, TAIL]))
        key = await platform.keys.create(NewKey(name="k", app="a"), by="test")
        lines: list[dict] = []
        platform.edge.log = lambda _logger, _message, facts: lines.append(dict(facts))
        body = {"model": "one", "messages": [{"role": "user", "content": "hi"}]}
        caller = RawCaller(platform, key.key, msgspec.json.encode(body)).start()
        caller.headers["traceparent"] = PARENT
        assert (await caller.ended()).status == 200
        assert "trace" not in lines[0]


async def test_the_end_stops_the_sink_and_later_turns_are_let_go(house: House) -> None:
    await house.platform.edge.telemetry.close()
    assert not house.sink.is_running
    assert (await house.ask({"one": [WORD, TAIL]})).status == 200
    assert house.sink.turns == []
