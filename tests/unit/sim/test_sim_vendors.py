"""What is one vendor's own: its events and their order, its usage, its errors, its doors beside chat."""

import base64
import json
import struct
from typing import Any

import pytest

from tests.sim.answer import Answer
from tests.sim.anthropic import Anthropic
from tests.sim.azure import Azure
from tests.sim.connection import Request
from tests.sim.gemini import Gemini
from tests.sim.openai import OpenAI
from tests.sim.provider import WIRES
from tests.sim.refusal import Refusal
from tests.sim.wire import Wire

OPENAI, ANTHROPIC, GEMINI, AZURE = OpenAI(), Anthropic(), Gemini(), Azure()
THINKING = {"thinking": {"type": "enabled", "budget_tokens": 1024}}
TOOL = {"name": "tide", "input_schema": {"type": "object", "properties": {"at": {"const": 3}}, "required": ["at"]}}


def told(wire: Wire, path: str, body: dict[str, Any], method: str = "POST") -> Answer:
    path, _, query = path.partition("?")
    members = dict(each.split("=") for each in query.split("&") if each)
    return wire.answer(Request(method, path, members, {}, json.dumps(body).encode()), "1", 1)


def whole(wire: Wire, path: str, **body: Any) -> dict[str, Any]:
    return json.loads(told(wire, path, body).body())


def message(text: str = "hello", **fields: Any) -> dict[str, Any]:
    return {"model": "sim-small", "max_tokens": 99, "messages": [{"role": "user", "content": text}]} | fields


def events(wire: Wire, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    return [json.loads(event.data) for event in told(wire, path, body).events()]


def generate(text: str = "hello", **fields: Any) -> dict[str, Any]:
    return {"contents": [{"role": "user", "parts": [{"text": text}]}]} | fields


@pytest.mark.parametrize(
    ("path", "headers", "wire"),
    [
        ("/v1/models", {}, OpenAI),
        ("/v1/models", {"anthropic-version": "2023-06-01"}, Anthropic),
        ("/v1/messages", {}, Anthropic),
        ("/v1/chat/completions", {}, OpenAI),
        ("/v1beta/models", {}, Gemini),
        ("/v1/models/sim-small:generateContent", {}, Gemini),
        ("/openai/deployments/sim-small/embeddings", {}, Azure),
        ("/nowhere", {}, OpenAI),
    ],
)
def test_each_request_is_for_one_vendor(path, headers, wire):
    request = Request("GET", path, {}, headers)
    assert type(next(each for each in WIRES if each.speaks(request))) is wire


@pytest.mark.parametrize("wire", [OPENAI, ANTHROPIC, GEMINI, AZURE], ids=lambda wire: type(wire).__name__)
def test_a_path_that_no_door_has_and_a_wrong_method_are_refused(wire):
    paths = {OPENAI: "/v1/chat/completions", ANTHROPIC: "/v1/messages", GEMINI: "/v1beta/models"}
    path = paths.get(wire, "/openai/deployments/sim-small/embeddings?api-version=1")
    for where, method, status in (("/v1/nowhere", "POST", 404), (path, "DELETE", 405)):
        with pytest.raises(Refusal) as caught:
            told(wire, where, {}, method)
        assert caught.value.status == status


# Anthropic


def test_a_message_streams_thinking_then_text_each_in_a_block():
    asked = message('sim: {"tokens": 2, "reasoning": 3}') | THINKING
    said = events(ANTHROPIC, "/v1/messages", asked)
    assert [event["type"].removeprefix("content_block_") for event in said] == [
        *("message_start", "start", "ping", "delta", "delta", "stop"),
        *("start", "delta", "delta", "stop", "message_delta", "message_stop"),
    ]
    assert [event["index"] for event in said if "index" in event] == [0, 0, 0, 0, 1, 1, 1, 1]
    assert [event.name for event in told(ANTHROPIC, "/v1/messages", asked).events()] == [each["type"] for each in said]


def test_a_message_starts_with_a_first_count_that_the_last_one_includes():
    said = events(ANTHROPIC, "/v1/messages", message('sim: {"tokens": 5, "cache_write_1h": 2}'))
    first, last = said[0]["message"]["usage"], said[-2]["usage"]
    assert (first["output_tokens"], last["output_tokens"]) == (1, 5)
    assert first["cache_creation"]["ephemeral_1h_input_tokens"] == last["cache_creation_input_tokens"] == 2
    assert "cache_creation" not in last


def test_hidden_thinking_is_billed_all_the_same():
    reply = whole(ANTHROPIC, "/v1/messages", **message('sim: {"tokens": 2, "reasoning": 3}'))
    assert [block["type"] for block in reply["content"]] == ["text"]
    assert reply["usage"]["output_tokens"] == 5


def test_a_streamed_call_joined_is_the_call():
    asked = message(tools=[TOOL])
    said = events(ANTHROPIC, "/v1/messages", asked)
    start = next(event["content_block"] for event in said if event["type"] == "content_block_start")
    assert (start["type"], start["input"]) == ("tool_use", {})
    joined = "".join(event["delta"].get("partial_json", "") for event in said if event["type"] == "content_block_delta")
    assert json.loads(joined) == whole(ANTHROPIC, "/v1/messages", **asked)["content"][0]["input"] == {"at": 3}


def test_a_call_that_was_cut_short_has_no_arguments():
    reply = whole(ANTHROPIC, "/v1/messages", **message(tools=[TOOL], max_tokens=1))
    assert (reply["stop_reason"], reply["content"][0]["input"]) == ("max_tokens", {})


def test_a_tool_that_answered_is_not_called_again_and_the_script_still_holds():
    result = {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "12345678"}]}
    messages = [
        {"role": "user", "content": 'sim: {"text": "done"}'},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "tide", "input": {}}]},
        {"role": "user", "content": [result]},
    ]
    reply = whole(ANTHROPIC, "/v1/messages", **message(tools=[TOOL], messages=messages, system="1234"))
    assert (reply["content"][0]["text"], reply["usage"]["input_tokens"]) == ("done", 6 + 2 + 1)


def test_only_the_callers_own_tools_are_called():
    server = {"type": "web_search_20250305", "name": "web_search"}
    assert whole(ANTHROPIC, "/v1/messages", **message(tools=[server]))["stop_reason"] == "end_turn"


@pytest.mark.parametrize("wrong", [{"max_tokens": None}, {"messages": []}, {"thinking": {"type": "often"}}])
def test_a_bad_message_is_refused(wrong):
    with pytest.raises(Refusal) as caught:
        whole(ANTHROPIC, "/v1/messages", **message() | wrong)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("status", "kind"),
    [(402, "billing_error"), (418, "invalid_request_error"), (529, "overloaded_error"), (507, "api_error")],
)
def test_anthropics_errors_have_a_type_and_the_requests_id(status, kind):
    error = json.loads(ANTHROPIC.error(Refusal(status, "why"), "1"))
    assert error == {"type": "error", "error": {"type": kind, "message": "why"}, "request_id": "req_1"}
    assert ANTHROPIC.headers("1") == (("request-id", "req_1"),)


def test_a_version_of_anthropics_wire_must_be_named_and_a_bearer_is_a_key():
    with pytest.raises(Refusal) as caught:
        ANTHROPIC.admit(Request(headers={"x-api-key": "k"}), "k")
    assert caught.value.status == 400
    ANTHROPIC.admit(Request(headers={"authorization": "Bearer k", "anthropic-version": "2023-06-01"}), "k")


# Gemini


def test_gemini_takes_snake_case_but_leaves_the_callers_own_names_alone():
    schema = {"type": "OBJECT", "properties": {"my_own": {"type": "STRING", "min_length": 2}}, "required": ["my_own"]}
    config = {"response_schema": schema, "max_output_tokens": 50}
    reply = whole(GEMINI, "/v1beta/models/sim-small:generateContent", **generate(generation_config=config))
    assert json.loads(reply["candidates"][0]["content"]["parts"][0]["text"]) == {"my_own": "xx"}


def test_gemini_leaves_out_what_is_zero_and_counts_thoughts_beside_candidates():
    path = "/v1beta/models/sim-small:generateContent"
    plain = whole(GEMINI, path, **generate())["usageMetadata"]
    assert not {"thoughtsTokenCount", "cachedContentTokenCount", "cacheTokensDetails"} & plain.keys()
    usage = whole(GEMINI, path, **generate('sim: {"tokens": 2, "reasoning": 3, "cached": 4}'))["usageMetadata"]
    assert (usage["candidatesTokenCount"], usage["thoughtsTokenCount"], usage["cachedContentTokenCount"]) == (2, 3, 4)
    assert usage["totalTokenCount"] == usage["promptTokenCount"] + 5
    assert whole(GEMINI, path, **generate('sim: {"usage": "zero"}'))["usageMetadata"] == {}


def test_each_event_of_gemini_tells_the_usage_until_then():
    path = "/v1beta/models/sim-small:streamGenerateContent?alt=sse"
    said = events(GEMINI, path, generate('sim: {"tokens": 3}'))
    assert [event["usageMetadata"]["candidatesTokenCount"] for event in said] == [1, 2, 3, 3]
    assert "finishReason" not in said[2]["candidates"][0]
    assert said[3]["candidates"][0]["finishReason"] == "STOP"


def test_a_function_call_of_gemini_comes_in_one_event():
    functions = {"functionDeclarations": [{"name": "tide", "parameters": TOOL["input_schema"]}]}
    path = "/v1beta/models/sim-small:streamGenerateContent?alt=sse"
    said = events(GEMINI, path, generate(tools=[functions]))
    assert said[0]["candidates"][0]["content"]["parts"][0]["functionCall"]["args"] == {"at": 3}
    assert said[0]["usageMetadata"] == said[-1]["usageMetadata"]
    short = events(GEMINI, path, generate(tools=[functions], generationConfig={"maxOutputTokens": 1}))
    assert [event["candidates"][0]["content"]["parts"] for event in short] == [[{"text": ""}], [{"text": ""}]]
    assert short[-1]["candidates"][0]["finishReason"] == "MAX_TOKENS"


def test_gemini_streams_events_only():
    with pytest.raises(Refusal) as caught:
        told(GEMINI, "/v1beta/models/sim-small:streamGenerateContent", generate())
    assert caught.value.status == 400


def test_gemini_takes_either_base64_and_nothing_else():
    def look(data: str) -> dict[str, Any]:
        part = {"inlineData": {"mimeType": "image/png", "data": data}}
        return whole(GEMINI, "/v1beta/models/sim-small:generateContent", contents=[{"parts": [part]}])

    assert look("_-8=")["usageMetadata"] == look("/+8=")["usageMetadata"]
    with pytest.raises(Refusal):
        look("%%%")


def test_gemini_says_a_wrong_key_is_a_bad_request_and_tells_the_wait_in_the_body():
    for request, status in ((Request(), 403), (Request(query={"key": "x"}), 400)):
        with pytest.raises(Refusal) as caught:
            GEMINI.admit(request, "k")
        assert caught.value.status == status
    GEMINI.admit(Request(query={"key": "k"}), "k")
    error = json.loads(GEMINI.error(Refusal(429, "wait", retry_after_seconds=1.5), "1"))["error"]
    assert (error["code"], error["status"], error["details"][0]["retryDelay"]) == (429, "RESOURCE_EXHAUSTED", "1.5s")


def test_gemini_embeds_one_or_many_and_tells_what_it_counted():
    content = {"content": {"parts": [{"text": "12345678"}]}, "outputDimensionality": 8}
    one = whole(GEMINI, "/v1beta/models/sim-embed:embedContent", **content)
    many = whole(GEMINI, "/v1beta/models/sim-embed:batchEmbedContents", requests=[content, content])
    assert many["embeddings"] == [one["embedding"]] * 2
    assert (one["usageMetadata"]["promptTokenCount"], many["usageMetadata"]["promptTokenCount"]) == (2, 4)
    with pytest.raises(Refusal):
        whole(GEMINI, "/v1beta/models/sim-embed:batchEmbedContents", requests=[])


# Azure

CHAT = "/openai/deployments/sim-small/chat/completions?api-version=2024-10-21"


def test_azure_begins_a_stream_with_an_event_about_the_prompt_and_filters_each_piece():
    first, role, piece, *_, last = events(AZURE, CHAT, message("hello", stream=True))
    assert (first["choices"], first["id"], list(first)[-1]) == ([], "", "prompt_filter_results")
    assert role["choices"][0]["delta"]["role"] == "assistant"
    assert last["choices"][0]["content_filter_results"] == {}
    assert piece["choices"][0]["content_filter_results"]["violence"] == {"filtered": False, "severity": "safe"}


def test_azure_names_the_model_by_its_deployment_and_needs_a_version():
    asked = {"messages": [{"role": "user", "content": "x"}], "model": "something else"}
    assert told(AZURE, CHAT, asked).ask.model == "sim-small"
    with pytest.raises(Refusal) as caught:
        told(AZURE, CHAT.partition("?")[0], asked)
    assert caught.value.status == 404


def test_azure_has_errors_of_its_own_but_for_what_the_model_refuses():
    assert json.loads(AZURE.error(Refusal(404, "m", "model_not_found"), "1"))["error"]["code"] == "DeploymentNotFound"
    assert json.loads(AZURE.error(Refusal(429, "m"), "1")) == {"error": {"code": "429", "message": "m"}}
    assert set(json.loads(AZURE.error(Refusal(400, "m"), "1"))["error"]) == {"message", "type", "param", "code"}
    assert dict(AZURE.headers("1"))["apim-request-id"] != AZURE.request_id("1")


# OpenAI beside chat


def complete(prompt: Any, **fields: Any) -> dict[str, Any]:
    return whole(OPENAI, "/v1/completions", model="sim-small", prompt=prompt, **fields)


def test_a_completion_answers_each_prompt_and_bills_what_it_does_not_show():
    reply = complete(["one", 'sim: {"tokens": 2}'], n=2, best_of=3)
    assert [choice["index"] for choice in reply["choices"]] == [0, 1, 2, 3]
    assert reply["usage"]["completion_tokens"] == 2 * 3 * 2


def test_a_completion_without_a_ceiling_ends_after_sixteen_tokens():
    reply = complete('sim: {"tokens": 99}')
    assert (reply["usage"]["completion_tokens"], reply["choices"][0]["finish_reason"]) == (16, "length")


def test_token_ids_are_counted_one_by_one():
    assert complete([1, 2, 3])["usage"]["prompt_tokens"] == 3
    assert complete([[1, 2, 3], [4]])["usage"]["prompt_tokens"] == 4


@pytest.mark.parametrize("wrong", [{"n": 3, "best_of": 2}, {"best_of": 2, "stream": True}, {"echo": True}])
def test_a_bad_completion_is_refused(wrong):
    with pytest.raises(Refusal):
        complete("x", **wrong)


def embed(given: Any, **fields: Any) -> dict[str, Any]:
    return whole(OPENAI, "/v1/embeddings", model="sim-embed", input=given, **fields)


def test_an_embedding_is_the_same_vector_of_length_one_every_time_and_in_base64():
    first, second = (each["embedding"] for each in embed(["a", "b"], dimensions=32)["data"])
    assert len(first) == 32
    assert sum(number * number for number in first) == pytest.approx(1)
    assert first != second
    packed = embed("a", dimensions=32, encoding_format="base64")["data"][0]["embedding"]
    assert list(struct.unpack("<32f", base64.b64decode(packed))) == first


def test_an_embedding_bills_what_went_in_and_nothing_else():
    answer = told(OPENAI, "/v1/embeddings", {"model": "sim-embed", "input": ["1234", 'sim: {"cached": 3}']})
    assert json.loads(answer.body())["usage"] == {"prompt_tokens": 6, "total_tokens": 6}
    assert (answer.tokens(0).input, answer.tokens(0).cached_input, answer.total) == (6, 0, 0)


@pytest.mark.parametrize("given", ["", [], [""], ["a", 1], [[]], [1, [2]]])
def test_a_bad_input_is_refused(given):
    with pytest.raises(Refusal) as caught:
        embed(given)
    assert caught.value.status == 400
