"""Every door leads through all five beats, and speaks its own wire in answers, events and errors."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.wiring import Platform
from governance import NewKey
from kernel import DataClass, InvalidDeclaration
from tests.fakes.chats import RawCaller, company

CARD = "my card is 4111 1111 1111 1111"
MESSAGE = {"role": "user", "content": "hi"}
ASKED: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [MESSAGE]},
    "/v1/completions": {"prompt": "hi"},
    "/v1/embeddings": {"input": ["hi", "there"]},
    "/v1/messages": {"messages": [MESSAGE], "max_tokens": 100},
    "/v1/messages/count_tokens": {"messages": [MESSAGE]},
}
WITH_CARD: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": CARD}]},
    "/v1/completions": {"prompt": CARD},
    "/v1/embeddings": {"input": [CARD]},
    "/v1/messages": {"messages": [MESSAGE], "system": CARD, "max_tokens": 100},
    "/v1/messages/count_tokens": {"messages": [MESSAGE], "system": CARD},
}
STREAMED = ["/v1/chat/completions", "/v1/completions", "/v1/messages"]
FREE = {"/v1/messages/count_tokens"}


@pytest.fixture
async def platform(tmp_path: Path) -> AsyncIterator[Platform]:
    async with company(tmp_path) as made:
        yield made


async def ask(platform: Platform, path: str, *, app: str = "a", model: str = "one", **members: object) -> RawCaller:
    key = await platform.keys.create(NewKey(name="k", app=app), by="test")
    body = msgspec.json.encode({"model": model, **ASKED[path], **members})
    caller = RawCaller(platform, key.key, body, path=path).start()
    await caller.ended()
    if caller.rests_until is not None:
        await caller.rests_until  # until it is booked
    return caller


def said(caller: RawCaller) -> dict[str, Any]:
    return msgspec.json.decode(b"".join(caller.told))


def events(caller: RawCaller) -> list[tuple[str, str]]:
    """Name and data of each event, as they stand in the stream."""
    told = []
    for event in b"".join(caller.told).decode().split("\n\n"):
        lines = dict(line.split(": ", 1) for line in event.split("\n") if line)
        if lines:
            told.append((lines.get("event", ""), lines["data"]))
    return told


def turn_of(caller: RawCaller) -> str:
    return caller.head.decode().partition("x-request-id: ")[2].split("\r\n")[0]


async def trail_of(platform: Platform, caller: RawCaller) -> list[Any]:
    return list(await platform.trail.of_turn(turn_of(caller)))


async def entries_of(platform: Platform, caller: RawCaller) -> list[Any]:
    found = await platform.ledger.request(turn_of(caller))
    assert found is not None
    return list(found.entries)


def test_every_row_that_takes_a_post_is_a_door_that_these_tests_know(platform: Platform) -> None:
    doors = {row.path for row in platform.edge.endpoints if row.asks_model}
    assert doors == set(ASKED)
    for row in platform.edge.endpoints:
        assert (row.answer == platform.edge.turn) is row.asks_model
        assert row.asks_model or row.method == "GET", "whatever is asked of a model goes through `turn`"


@pytest.mark.parametrize("path", ASKED)
async def test_a_turn_leaves_its_hold_its_closing_and_its_record_behind(platform: Platform, path: str) -> None:
    caller = await ask(platform, path)
    assert caller.status == 200, caller.told
    admitted, ended = await trail_of(platform, caller)
    assert (admitted.event, ended.event) == ("turn.admitted", "turn.ended")
    assert {"identify", "admit"} <= admitted.body["milliseconds"].keys()
    assert {"scan", "policy", "limits", "plan"} <= admitted.body.keys()
    entries = await entries_of(platform, caller)
    assert [entry.kind for entry in entries] == ["hold", "post"]
    assert not entries[-1].estimated
    assert (entries[-1].amount_nano_usd == 0) is (path in FREE)


@pytest.mark.parametrize("path", ASKED)
async def test_policy_money_and_the_scan_stand_at_every_door(platform: Platform, path: str) -> None:
    denied = await ask(platform, path, model="shut")
    assert denied.status == 403
    hidden = await ask(platform, path, model="secret")
    assert hidden.status == 404
    spent = await ask(platform, path, app="poor")
    assert spent.status == (200 if path in FREE else 402)
    raised = await ask(platform, path, **WITH_CARD[path])
    assert (await trail_of(platform, raised))[0].body["scan"]["raised_to"] == DataClass.CONFIDENTIAL.label
    assert raised.status == 403, "the policy is for internal data"


@pytest.mark.parametrize("path", ASKED)
async def test_limits_stand_at_every_door(platform: Platform, path: str) -> None:
    limited = "apps: [{name: a, department: d, use_cases: [u], requests_per_minute: 1}]"
    await platform.register.apply(platform.register.parse(limited), by="test")
    await platform.feed.catch_up()
    assert (await ask(platform, path)).status == 200
    assert (await ask(platform, path)).status == 429


@pytest.mark.parametrize("path", ASKED)
async def test_errors_are_told_in_the_wire_of_the_door(platform: Platform, path: str) -> None:
    refused = await ask(platform, path, model="nobody")
    error = said(refused)
    if path.startswith("/v1/messages"):
        assert (error["type"], error["error"]["type"]) == ("error", "not_found_error")
        assert error["request_id"] == turn_of(refused)
        assert f"request-id: {turn_of(refused)}".encode() in refused.head
    else:
        assert error["error"].keys() == {"message", "type", "param", "code"}
    assert error["error"]["code"] == "model_not_found"
    assert b"x-should-retry: false" in refused.head


@pytest.mark.parametrize("path", STREAMED)
async def test_a_stream_ends_in_the_words_of_its_wire(platform: Platform, path: str) -> None:
    caller = await ask(platform, path, stream=True)
    told = events(caller)
    if path == "/v1/messages":
        names = [name for name, _ in told]
        assert names[:2] == ["message_start", "content_block_start"]
        assert names[-3:] == ["content_block_stop", "message_delta", "message_stop"]
        assert float(msgspec.json.decode(told[-1][1])["penstock"]["cost_usd"]) > 0
        assert all(msgspec.json.decode(data)["type"] == name for name, data in told)
    else:
        assert {name for name, _ in told} == {""}
        assert told[-1][1] == "[DONE]"
    entries = await entries_of(platform, caller)
    assert entries[-1].kind == "post"
    assert not entries[-1].estimated


@pytest.mark.parametrize("path", STREAMED)
async def test_a_stream_that_breaks_says_so_in_the_words_of_its_wire(platform: Platform, path: str) -> None:
    directive = 'sandbox: {"tokens": 20, "fail": "cut", "fail_after": 3}'
    text = {"prompt": directive} if "completions" in path and "chat" not in path else {
        "messages": [{"role": "user", "content": directive}]}  # fmt: skip
    caller = await ask(platform, path, stream=True, **text)
    name, data = events(caller)[-1]
    error = msgspec.json.decode(data)
    assert name == ("error" if path == "/v1/messages" else "")
    assert error["error"]["code"] == "upstream_broken"


async def test_embeddings_cost_what_went_in_and_nothing_else(platform: Platform) -> None:
    caller = await ask(platform, "/v1/embeddings", input=["one two", "three"], dimensions=3)
    reply = said(caller)
    assert [len(row["embedding"]) for row in reply["data"]] == [3, 3]
    post = (await entries_of(platform, caller))[-1]
    assert dict(post.tokens) == {"input": reply["usage"]["prompt_tokens"], "output": 0}


async def test_what_a_provider_does_not_do_is_refused_by_name(platform: Platform) -> None:
    declared = """
    providers: [{name: other, dialect: anthropic, base_url: "http://127.0.0.1:9"}]
    models: [{name: claude, provider: other}]
    prices:
      - {name: claude, model: claude,
         usd_per_million_tokens: {input: "1", cache_write: "1.25", cache_write_1h: "2", output: "2"}}
    policies: [{name: q, models: [claude], departments: [d], use_cases: ["*"], data_class: internal}]
    """
    await platform.register.apply(platform.register.parse(declared), by="test")
    await platform.feed.catch_up()
    refused = await ask(platform, "/v1/embeddings", model="claude")
    assert refused.status == 400
    assert said(refused)["error"]["code"] == "operation_not_offered"
    assert "chat, count_tokens, messages" in said(refused)["error"]["message"]


async def test_a_price_says_what_writing_to_the_cache_costs_where_that_is_billed(platform: Platform) -> None:
    declared = """
    providers:
      - {name: anthropic, dialect: anthropic, base_url: "http://127.0.0.1:9"}
      - {name: gemini, dialect: translated, translate_as: gemini}
    models: [{name: claude, provider: anthropic}, {name: pro, provider: gemini}]
    prices:
      - {name: pro, model: pro, usd_per_million_tokens: {input: "1", output: "2"}}
      - {name: claude, model: claude, usd_per_million_tokens: {input: "1", cache_write: "1.25", output: "2"}}
    """
    with pytest.raises(InvalidDeclaration, match=r"price 'claude': .* has no cache_write_1h, which"):
        await platform.register.apply(platform.register.parse(declared), by="test")
    await platform.register.apply(
        platform.register.parse(declared.replace("1.25", '1.25", cache_write_1h: "2')), by="test"
    )
