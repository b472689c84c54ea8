"""The sandbox: honest, counted to the token, obedient. How it fails is in the upstream contract."""

import json
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel import Component, ModelRequest
from router import Catalogue, UpstreamRefused, Upstreams, UpstreamUnreachable
from router.sandbox_question import TOKEN
from router.sandbox_schema import smallest_instance
from tests.fakes.routing import TARGET, Sent, catalogue, chat, upstreams_of

KNOWN = catalogue(dialect="sandbox")
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"enum": ["Ulm"]}}, "required": ["city"]},
    },
}
TIME = {"type": "function", "function": {"name": "time"}}


@pytest.fixture
async def upstreams(clock) -> AsyncIterator[Upstreams]:
    made = upstreams_of(KNOWN, lambda _: None, clock)
    yield made
    await made.close()


async def asked(upstreams: Upstreams, request: ModelRequest) -> dict:
    return json.loads((await upstreams.complete(TARGET, request, Sent().call())).body)


async def heard(upstreams: Upstreams, request: ModelRequest) -> list[dict]:
    return [json.loads(chunk.data) async for chunk in upstreams.stream(TARGET, request, Sent().call())]


def text_of(events: list[dict], index: int = 0) -> str:
    choices = [choice for event in events for choice in event["choices"] if choice["index"] == index]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


async def test_says_what_it_is(upstreams, clock):
    body = await asked(upstreams, chat())
    (choice,) = body["choices"]
    assert choice["message"]["content"].startswith("This is the Penstock sandbox, not a language model.")
    assert (choice["finish_reason"], body["object"], body["model"]) == ("stop", "chat.completion", "big")
    assert body["created"] == int(clock.now().timestamp())


async def test_counts_exactly_the_pieces_of_prompt_and_answer(upstreams):
    body = await asked(upstreams, chat('sandbox: {"text": "Hello, world!"}'))
    assert body["usage"]["completion_tokens"] == len(["Hell", "o", ",", " ", "worl", "d", "!"])
    parts = [{"type": "text", "text": "abcdefgh"}, {"type": "image_url", "image_url": {"url": "x"}}]
    body = await asked(upstreams, chat(messages=[{"role": "user", "content": parts}]))
    assert body["usage"]["prompt_tokens"] == 2


async def test_counts_a_long_prompt_to_the_end(upstreams):
    body = await asked(upstreams, chat("word" * 30_000))
    assert body["usage"]["prompt_tokens"] == 30_000


@given(st.text(max_size=80))
def test_pieces_lose_nothing_and_never_outnumber_the_bytes(text):
    pieces = TOKEN.findall(text)
    assert "".join(pieces) == text
    assert all(1 <= len(piece) <= 4 for piece in pieces)
    assert len(pieces) <= len(text.encode("utf-8", "surrogatepass"))


async def test_streams_one_token_an_event_and_the_same_answer(upstreams):
    request = chat('sandbox: {"tokens": 7}', stream=True)
    events = await heard(upstreams, request)
    tokens = [event for event in events for choice in event["choices"] if choice["delta"].get("content")]
    assert len(tokens) == 7
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert events[-2]["choices"][0]["finish_reason"] == "stop"
    assert events[-1]["choices"] == []
    assert events[-1]["usage"]["completion_tokens"] == 7
    whole = await asked(upstreams, chat('sandbox: {"tokens": 7}'))
    assert text_of(events) == whole["choices"][0]["message"]["content"]


@pytest.mark.parametrize("fields", [{"limit": 3}, {"limit": 3, "max_tokens": 900}])
async def test_stops_at_the_limit_that_was_paid_for(upstreams, fields):
    body = await asked(upstreams, chat('sandbox: {"tokens": 500}', **fields))
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["usage"]["completion_tokens"] == 3


async def test_stops_at_the_targets_ceiling(upstreams):
    body = await asked(upstreams, chat('sandbox: {"tokens": 1000000}'))
    assert body["usage"]["completion_tokens"] == TARGET.output_tokens_max


async def test_gives_as_many_choices_as_asked_for_and_counts_each(upstreams):
    body = await asked(upstreams, chat('sandbox: {"text": "hi"}', n=3))
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    assert body["usage"]["completion_tokens"] == 3
    events = await heard(upstreams, chat('sandbox: {"text": "hi"}', n=3, stream=True))
    assert [text_of(events, index) for index in range(3)] == ["hi"] * 3


ASK = [{"role": "user", "content": "x"}]
TOLD = [*ASK, {"role": "assistant", "content": None}, {"role": "tool", "content": "rain", "tool_call_id": "c"}]


@pytest.mark.parametrize(
    ("messages", "choice", "called"),
    [
        (ASK, "auto", "weather"),
        (ASK, None, "weather"),
        (ASK, "none", None),
        (ASK, "required", "weather"),
        (ASK, {"type": "function", "function": {"name": "time"}}, "time"),
        (ASK, {"type": "function", "function": {"name": "other"}}, None),
        ([*ASK, {"role": "assistant", "content": "y"}], "auto", None),
        ([*ASK, {"role": "assistant", "content": "y"}], "required", "weather"),
        (TOLD, "auto", None),
        (TOLD, "required", None),
        ([*TOLD, *ASK], "auto", "weather"),
    ],
)
async def test_calls_the_function_that_is_wanted(upstreams, messages, choice, called):
    request = {"messages": messages, "tools": [WEATHER, TIME], "tool_choice": choice}
    (answer,) = (await asked(upstreams, chat(**request)))["choices"]
    calls = answer["message"].get("tool_calls")
    assert (calls[0]["function"]["name"] if calls else None) == called
    assert answer["finish_reason"] == ("tool_calls" if called else "stop")
    events = await heard(upstreams, chat(**request, stream=True))
    assert bool(text_of(events)) is not bool(called)


async def test_makes_arguments_that_fit_and_streams_the_same(upstreams):
    (answer,) = (await asked(upstreams, chat(tools=[WEATHER])))["choices"]
    assert json.loads(answer["message"]["tool_calls"][0]["function"]["arguments"]) == {"city": "Ulm"}
    events = await heard(upstreams, chat(tools=[WEATHER], stream=True))
    calls = [call for event in events for each in event["choices"] for call in each["delta"].get("tool_calls", [])]
    assert json.loads("".join(call["function"]["arguments"] for call in calls)) == {"city": "Ulm"}
    assert calls[0]["function"]["name"] == "weather"
    assert calls[0]["id"]


@pytest.mark.parametrize(
    ("wanted", "answer"),
    [
        ({"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "array", "minItems": 1}}}, [None]),
        ({"type": "json_schema", "json_schema": {"schema": WEATHER["function"]["parameters"]}}, {"city": "Ulm"}),
        ({"type": "json_object"}, {"answer": "This is the Penstock sandbox, not a language model."}),
    ],
)
async def test_answers_in_json_where_that_is_wanted(upstreams, wanted, answer):
    body = await asked(upstreams, chat(response_format=wanted))
    assert json.loads(body["choices"][0]["message"]["content"]) == answer


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": []},
        {"messages": "x"},
        {"n": 0},
        {"n": 1000},
        {"text": "sandbox: {oops"},
        {"text": 'sandbox: {"unknown": 1}'},
        {"text": 'sandbox: {"tokens": -1}'},
        {"text": 'sandbox: {"fail": "418"}'},
        {"tools": 7},
    ],
)
async def test_refuses_what_it_cannot_read_and_says_where(upstreams, fields):
    with pytest.raises(UpstreamRefused) as caught:
        await asked(upstreams, chat(**fields))
    assert caught.value.message.startswith("The sandbox cannot read the request: ")
    assert caught.value.status == 400


async def test_a_target_whose_provider_was_withdrawn_is_unreachable_and_never_sent(clock):
    sent = Sent()
    upstreams = upstreams_of(Catalogue.of([]), lambda _: None, clock)
    with pytest.raises(UpstreamUnreachable) as caught:
        await upstreams.complete(TARGET, chat(), sent.call())
    assert (caught.value.unbilled, caught.value.curable, sent.times) == (True, True, 0)


async def test_reads_only_what_a_provider_would_be_sent(upstreams):
    request = ModelRequest("m", chat().fields, input_tokens_max=None, choices=9)
    reply = await upstreams.complete(TARGET, request, Sent().call())
    assert reply.usage.tokens[Component.INPUT] == len(TOKEN.findall("hello there"))
    assert len(json.loads(reply.body)["choices"]) == 1


@pytest.mark.parametrize(
    ("schema", "instance"),
    [
        ({}, None),
        (True, None),
        ({"type": "string"}, ""),
        ({"type": "string", "minLength": 3}, "xxx"),
        ({"type": "string", "format": "date"}, "2026-01-01"),
        ({"type": "integer"}, 0),
        ({"type": "integer", "minimum": 5}, 5),
        ({"type": "integer", "exclusiveMinimum": 5}, 6),
        ({"type": "number", "maximum": -2}, -2),
        ({"type": "boolean"}, False),
        ({"type": "null"}, None),
        ({"type": ["string", "null"]}, ""),
        ({"const": 7}, 7),
        ({"enum": ["a", "b"]}, "a"),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, 0),
        (
            {"allOf": [{"required": ["a"], "type": "object"}, {"required": ["b"], "type": "object"}]},
            {"a": None, "b": None},
        ),
        ({"type": "array", "items": {"type": "integer"}, "minItems": 2}, [0, 0]),
        ({"properties": {"a": {"type": "integer"}, "b": {}}, "required": ["a"]}, {"a": 0}),
        ({"$ref": "#/$defs/x", "$defs": {"x": {"type": "integer"}}}, 0),
        ({"$ref": "#/$defs/gone"}, None),
    ],
)
def test_the_smallest_instance(schema, instance):
    assert smallest_instance(schema) == instance


def test_a_schema_that_contains_itself_ends():
    bomb = {"$ref": "#/$defs/n", "$defs": {"n": {"type": "array", "minItems": 9999, "items": {"$ref": "#/$defs/n"}}}}
    assert len(json.dumps(smallest_instance(bomb))) < 1_000_000
