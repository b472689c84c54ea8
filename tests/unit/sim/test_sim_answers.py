"""The simulator's pure parts: what it reads from a request, what it answers, how it counts."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.sim.ask import MODELS, Ask
from tests.sim.invoice import Finish, Tokens
from tests.sim.openai import Chat, error_of
from tests.sim.openai_ask import read_chat
from tests.sim.refusal import Refusal, scripted_refusal
from tests.sim.schema import instance
from tests.sim.script import Fault, Script, read_script
from tests.sim.tokens import count, cut, words

texts = st.text(st.characters(codec="utf-8"), max_size=200)


def ask(message="hello", **fields) -> Ask:
    body = {"model": "sim-small", "messages": [{"role": "user", "content": message}]} | fields
    return read_chat(json.dumps(body).encode())


def scripted(**script) -> Chat:
    return Chat(ask("sim: " + json.dumps(script), stream=True), "1", 1)


def events_of(answer: Chat) -> list[dict]:
    return [json.loads(event.data) for event in answer.events()]


@given(texts)
def test_there_are_never_more_tokens_than_bytes(text):
    size = len(text.encode())
    assert count(text) <= size
    assert len(cut(text)) <= size


@given(texts)
def test_the_tokens_of_an_answer_joined_are_the_answer(text):
    assert "".join(cut(text)) == text
    assert all(len(piece.encode()) <= 4 for piece in cut(text))


def test_as_many_words_as_tokens():
    assert count("".join(words(57))) == len(words(57)) == 57


def test_a_prompt_counts_the_text_of_all_messages_and_parts():
    messages = [{"role": "system", "content": "12345"}, {"role": "user", "content": [{"type": "text", "text": "1234"}]}]
    assert ask(messages=messages).prompt.total == 3


def test_the_ceiling_cuts_the_answer_and_says_length():
    answer = Chat(ask('sim: {"tokens": 50}', max_tokens=20), "1", 1)
    assert answer.total == 20
    assert answer.finish is Finish.LENGTH
    assert json.loads(answer.body())["choices"][0]["finish_reason"] == "length"


def test_the_newer_name_of_the_ceiling_wins():
    assert len(ask('sim: {"tokens": 50}', max_tokens=20, max_completion_tokens=10).pieces) == 10


def test_reasoning_lives_under_the_same_ceiling():
    asked = ask('sim: {"tokens": 50, "reasoning": 15}', max_tokens=20)
    assert (asked.reasoning, len(asked.pieces)) == (15, 5)


def test_components_are_disjoint_and_sum_to_the_totals():
    answer = scripted(tokens=7, cached=3, cache_write=2, reasoning=5)
    usage = json.loads(answer.body())["usage"]
    tokens = answer.tokens(answer.total)
    assert usage["prompt_tokens"] == tokens.input + tokens.cached_input + tokens.cache_write
    assert usage["completion_tokens"] == tokens.output + tokens.reasoning == 12
    assert usage["prompt_tokens_details"]["cached_tokens"] == tokens.cached_input == 3
    assert usage["prompt_tokens_details"]["cache_write_tokens"] == tokens.cache_write == 2


def test_more_cached_than_asked_is_all_of_the_prompt():
    tokens = scripted(cached=10_000, cache_write=5).tokens(0)
    assert (tokens.input, tokens.cache_write) == (0, 0)


def test_zero_usage_is_reported_and_billed_as_zero():
    answer = scripted(tokens=7, usage="zero")
    assert json.loads(answer.body())["usage"]["total_tokens"] == 0
    assert answer.tokens(answer.total) == Tokens()


def test_a_stream_joined_is_the_whole_answer():
    answer = scripted(text="Grüße, 世界")
    joined = "".join(event["choices"][0]["delta"].get("content") or "" for event in events_of(answer))
    assert joined == "Grüße, 世界" == json.loads(answer.body())["choices"][0]["message"]["content"]


def test_usage_comes_last_and_only_where_it_was_asked_for():
    plain = events_of(scripted(tokens=2))
    assert all("usage" not in event for event in plain)
    asked = events_of(Chat(ask(stream=True, stream_options={"include_usage": True}), "1", 1))
    assert all(event["usage"] is None for event in asked[:-1])
    assert asked[-1]["choices"] == []
    assert asked[-1]["usage"]["completion_tokens"] == 11


@pytest.mark.parametrize(("manner", "times"), [("normal", 1), ("missing", 0), ("duplicate", 2)])
def test_usage_may_be_missing_or_come_twice(manner, times):
    asked = ask("sim: " + json.dumps({"usage": manner}), stream=True, stream_options={"include_usage": True})
    assert sum(bool(event.get("usage")) for event in events_of(Chat(asked, "1", 1))) == times


def test_cumulative_usage_grows_to_the_total():
    told = [event["usage"]["completion_tokens"] for event in events_of(scripted(tokens=3, usage="cumulative"))]
    assert told == [0, 1, 2, 3, 3]


def test_events_say_how_much_was_generated():
    asked = ask('sim: {"tokens": 2}', stream=True, n=2)
    assert [event.generated for event in Chat(asked, "1", 1).events()] == [0, 0, 1, 2, 3, 4, 4, 4]


def test_each_choice_has_its_role_its_text_and_its_end():
    events = events_of(Chat(ask(stream=True, n=2), "1", 1))
    for index in (0, 1):
        mine = [event["choices"][0] for event in events if event["choices"][0]["index"] == index]
        assert mine[0]["delta"]["role"] == "assistant"
        assert [choice["finish_reason"] for choice in mine][-1] == "stop"


def test_a_huge_event_costs_no_token_more():
    answer = scripted(tokens=2, event_bytes=100_000)
    first = next(answer.events())
    assert len(first.data) > 100_000
    assert answer.total == 2


TOOL = {"type": "function", "function": {"name": "tide", "parameters": {"type": "object"}}}


def test_the_first_tool_is_called_until_one_has_answered():
    assert ask(tools=[TOOL]).tool == "tide"
    assert ask(tools=[TOOL], tool_choice="none").tool is None
    told = [{"role": "user", "content": "x"}, {"role": "tool", "tool_call_id": "c", "content": "y"}]
    assert ask(tools=[TOOL], messages=told).tool is None


def test_the_named_tool_is_called():
    other = {"type": "function", "function": {"name": "wind"}}
    assert ask(tools=[TOOL, other], tool_choice={"type": "function", "function": {"name": "wind"}}).tool == "wind"
    with pytest.raises(Refusal):
        ask(tools=[TOOL], tool_choice={"type": "function", "function": {"name": "rain"}})


def test_streamed_arguments_joined_are_the_call():
    schema = {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]}
    tool = {"type": "function", "function": {"name": "tide", "parameters": schema}}
    answer = Chat(ask(tools=[tool], stream=True), "1", 1)
    calls = [call for event in events_of(answer) for call in event["choices"][0]["delta"].get("tool_calls", ())]
    assert json.loads("".join(call["function"]["arguments"] for call in calls)) == {"place": "x"}
    assert json.loads(answer.body())["choices"][0]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"type": "object", "properties": {"a": {"type": "integer"}, "b": {}}, "required": ["a"]}, {"a": 1}),
        ({"type": "array", "items": {"type": "boolean"}, "minItems": 2}, [True, True]),
        ({"enum": ["low", "high"]}, "low"),
        ({"anyOf": [{"type": "number", "minimum": 3}, {"type": "null"}]}, 3),
        ({"type": ["string", "null"], "minLength": 3}, "xxx"),
        ({"$ref": "#/$defs/T", "$defs": {"T": {"const": 9}}}, 9),
    ],
)
def test_an_instance_satisfies_its_schema(schema, value):
    assert instance(schema) == value


def test_a_schema_without_end_is_refused():
    with pytest.raises(Refusal):
        instance({"$ref": "#"})


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "x"}, "messages"),
        ({"messages": [{"role": "nobody", "content": "x"}]}, "messages[0].role"),
        ({"n": 0}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stream": 3}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"model": None}, "model"),
    ],
)
def test_a_bad_body_is_refused_with_the_field_at_fault(fields, param):
    with pytest.raises(Refusal) as caught:
        ask(**fields)
    assert (caught.value.status, caught.value.param) == (400, param)
    assert set(error_of(caught.value)["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"model": "sim-small"}', b"\xff"])
def test_what_is_no_request_is_refused(body):
    with pytest.raises(Refusal) as caught:
        read_chat(body)
    assert caught.value.status == 400


def test_an_unknown_model_does_not_exist():
    with pytest.raises(Refusal) as caught:
        ask(model="gpt-9")
    assert (caught.value.status, caught.value.code) == (404, "model_not_found")
    assert ask(model=MODELS[1]).model == "sim-large"


def test_only_the_last_user_message_is_a_script():
    assert read_script("sim is a word") == Script()
    messages = [{"role": "user", "content": 'sim: {"tokens": 1}'}, {"role": "user", "content": "hello"}]
    assert ask(messages=messages).script == Script()


@pytest.mark.parametrize(
    "script", ['{"tokns": 1}', '{"tokens": -1}', '{"error_at": -1}', "nonsense", '{"status": 200}']
)
def test_a_script_with_a_slip_is_refused(script):
    with pytest.raises(Refusal):
        ask(f"sim: {script}")


def test_a_fault_happens_at_its_place_only():
    script = Script(rst_at=3)
    assert [script.fault_after(events) for events in (-1, 2, 3, 4)] == [None, None, Fault.RST, None]


def test_a_scripted_status_carries_the_wait():
    refusal = scripted_refusal(Script(status=429, retry_after=2))
    assert (refusal.status, refusal.code, refusal.retry_after_seconds) == (429, "rate_limit_exceeded", 2)
    assert scripted_refusal(Script()) is None
