"""What the doors beside chat make of a body: bounds that hold, refusals that name the member."""

import tracemalloc
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.dialect import read_chat, read_completion, read_embedding
from gateway.errors import InvalidRequest
from gateway.messages import read_count, read_message
from kernel import ModelRequest, Operation

Reader = Callable[[bytes, dict[str, str]], ModelRequest]
HI = [{"role": "user", "content": "hi"}]


def message(**members: object) -> bytes:
    return msgspec.json.encode({"model": "m", "max_tokens": 9, "messages": HI, **members})


def content(*blocks: dict[str, Any]) -> bytes:
    return message(messages=[{"role": "user", "content": list(blocks)}])


def completion(**members: object) -> bytes:
    return msgspec.json.encode({"model": "m", "prompt": "hi", **members})


def embedding(told: object, **members: object) -> bytes:
    return msgspec.json.encode({"model": "m", "input": told, **members})


@pytest.mark.parametrize(
    ("read", "body", "param"),
    [
        (read_message, message(max_tokens=0), "max_tokens"),
        (read_message, msgspec.json.encode({"model": "m", "messages": HI}), "max_tokens"),
        (read_message, msgspec.json.encode({"model": "m", "max_tokens": 1}), "messages"),
        (read_message, message(messages=[]), "messages"),
        (read_message, message(messages=[{"role": "user", "content": 7}]), "messages[0].content"),
        (read_message, message(messages=[{"content": "x"}]), "messages[0].role"),
        (read_message, message(model=""), "model"),
        (read_message, message(stream="yes"), "stream"),
        (read_message, message(mcp_servers=[]), "mcp_servers"),
        (read_message, message(container="c"), "container"),
        (read_message, message(speed="fast"), "speed"),
        (read_message, message(inference_geo="us"), "inference_geo"),
        (read_message, message(fallbacks="default"), "fallbacks"),
        (read_message, message(fallback_credit_token="x"), "fallback_credit_token"),
        (read_message, message(billing_policy={"type": "billing_policy"}), "billing_policy"),
        (read_message, message(thread={"type": "continue", "previous_message_id": "m"}), "thread"),
        (read_message, message(compaction={"type": "summary"}), "compaction"),
        (
            read_message,
            message(context_management={"edits": [{"type": "clear_thinking_20251015"}, {"type": "compact_20260112"}]}),
            "context_management.edits[1].type",
        ),
        (read_message, message(context_management=7), "context_management"),
        (read_message, message(tools=7), "tools"),
        (read_message, message(tools=[{"name": "a", "type": 7}]), "tools[0].type"),
        (read_message, message(tools=[{"name": "a"}] * 2001), "tools"),
        (read_message, message(tools=[{"type": "customer_search_20270101"}]), "tools[0].type"),
        (read_message, message(tools=[{"name": "a"}, {"type": "web_search_20250305"}]), "tools[1].type"),
        (read_message, message(tools=[{"type": "code_execution_20250825"}]), "tools[0].type"),
        (read_message, message(penstock={"nonsense": 1}), "penstock"),
        (read_count, message(stream=True), "stream"),
        (read_completion, completion(prompt=None), "prompt"),
        (read_completion, completion(prompt={"a": 1}), "prompt"),
        (read_completion, completion(prompt=["x"] * 129), "prompt"),
        (read_completion, completion(prompt=["x" * 1_100_000]), "prompt"),
        (read_completion, completion(best_of=2), "best_of"),
        (read_completion, msgspec.json.encode({"model": "m"}), "prompt"),
        (read_completion, completion(prompt_embeds=["AAAA"] * 9), "prompt_embeds"),
        (read_completion, completion(kv_transfer_params={"remote_host": "h"}), "kv_transfer_params"),
        (read_embedding, embedding([{"image": "https://x/y.png"}]), "input"),
        (read_embedding, embedding([[{"role": "user", "content": []}]]), "input"),
        (read_embedding, embedding(["{", "x", {"a": "b"}]), "input"),
        (read_embedding, embedding(7), "input"),
        (read_embedding, embedding({"a": 1}), "input"),
        (read_embedding, embedding("x", stream=True), "stream"),
    ],
)
def test_what_is_wrong_is_refused_by_its_name(read: Reader, body: bytes, param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        read(body, {})
    assert refused.value.param == param


@pytest.mark.parametrize(
    ("blocks", "is_text"),
    [
        ([{"type": "text", "text": "x"}], True),
        ([{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}], True),
        ([{"type": "tool_use", "id": "t", "name": "n", "input": {}}], True),
        ([{"type": "thinking", "thinking": "x", "signature": "s"}], True),
        ([{"type": "tool_result", "tool_use_id": "t", "content": "x"}], True),
        ([{"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "x"}]}], True),
        ([{"type": "tool_result", "tool_use_id": "t"}], True),
        ([{"type": "tool_result", "tool_use_id": "t", "content": [{"type": "image", "source": {}}]}], False),
        ([{"type": "image", "source": {}}], False),
        ([{"type": "document", "source": {}}], False),
        ([{"type": "text", "text": "x"}, {"type": "future"}], False),
    ],
)
def test_only_what_is_certainly_text_is_bounded_by_its_bytes(blocks: list[dict[str, Any]], *, is_text: bool) -> None:
    assert (read_message(content(*blocks), {}).input_tokens_max is not None) is is_text


@pytest.mark.parametrize(
    ("system", "is_text"),
    [
        ("x", True),
        (None, True),
        ([{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}], True),
        ([{"type": "document", "source": {"type": "url", "url": "https://x/y.pdf"}}], False),
        ([{"type": "text", "text": "x"}, {"type": "image", "source": {}}], False),
        (7, False),
    ],
)
def test_a_system_prompt_is_bounded_by_its_bytes_only_where_it_is_text(system: object, *, is_text: bool) -> None:
    assert (read_message(message(system=system), {}).input_tokens_max is not None) is is_text


def test_what_the_provider_says_of_its_own_kinds_of_tools_is_set_aside() -> None:
    # Anthropic adds some 2,200 tokens for these three, of which 150 bytes say nothing.
    tools = [{"type": "bash_20250124", "name": "bash"}, {"type": "text_editor_20250728", "name": "editor"}]
    tools.append({"type": "computer_20251124", "name": "computer"})
    for each in (3, 1):
        bound = read_message(message(tools=tools[:each]), {}).input_tokens_max
        assert bound is not None
        assert bound >= 1024 + each * 2048
    own = [{"name": f"t{number}", "input_schema": {}} for number in range(3)]
    bound = read_message(message(tools=own), {}).input_tokens_max
    assert bound is not None
    assert bound < 2048, "the caller's own are told byte for byte"


def test_edits_that_only_clear_are_handed_on() -> None:
    edits = {"edits": [{"type": "clear_tool_uses_20250919", "keep": {"type": "tool_uses", "value": 3}}]}
    request = read_message(message(context_management=edits), {})
    assert msgspec.json.decode(request.fields["context_management"]) == edits


def test_a_format_is_explained_to_the_model_by_the_provider() -> None:
    with_format = read_message(message(output_config={"format": {"type": "json_schema", "schema": {}}}), {})
    assert (with_format.input_tokens_max or 0) > 1024


def test_no_member_that_is_read_takes_many_times_the_bodys_memory() -> None:
    for member in ("tools", "system"):
        body = message(**{member: []}).replace(b"[]}", b"[" + b"{}," * 1_000_000 + b"{}]}")
        tracemalloc.start()
        with pytest.raises(InvalidRequest) as refused:
            read_message(body, {})
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert refused.value.param == member
        assert most < 3 * len(body)


@pytest.mark.parametrize("read", [read_message, read_chat])
def test_a_long_text_full_of_braces_is_a_text(read: Reader) -> None:
    request = read(message(messages=[{"role": "user", "content": '{"a": 1}' * 100_001}]), {})
    assert request.input_tokens_max is not None


def test_hints_in_the_metadata_are_not_handed_on_to_who_would_refuse_them() -> None:
    request = read_message(message(metadata={"user_id": "u", "use_case": "h", "data_class": "internal"}), {})
    assert request.hints.use_case == "h"
    assert msgspec.json.decode(request.fields["metadata"]) == {"user_id": "u"}
    unchanged = read_message(message(metadata={"user_id": "u"}), {})
    assert bytes(unchanged.fields["metadata"]) == b'{"user_id":"u"}'


@given(st.text(), st.text(), st.lists(st.text(), min_size=1, max_size=4))
def test_no_text_has_more_tokens_than_its_bound(system: str, text: str, several: list[str]) -> None:
    request = read_message(message(system=system, messages=[{"role": "user", "content": text}]), {})
    assert request.input_tokens_max is not None
    assert request.input_tokens_max >= len((system + text).encode())
    for read, body in ((read_completion, completion(prompt=several)), (read_embedding, embedding(several))):
        bound = read(body, {}).input_tokens_max
        assert bound is not None
        assert bound >= len("".join(several).encode())


def test_conversations_are_not_embedded() -> None:
    assert "messages" not in read_embedding(embedding("x", messages=HI), {}).fields


@pytest.mark.parametrize("told", ["{", ["{", '\\"{'], [1, 2], [[1], [2]], []])
def test_texts_with_braces_and_tokens_are_embedded(told: object) -> None:
    assert read_embedding(embedding(told), {}).input_tokens_max is not None


@given(st.lists(st.lists(st.integers(0, 300_000), min_size=1, max_size=9), min_size=1, max_size=5))
def test_of_tokens_each_counts(several: list[list[int]]) -> None:
    bound = read_embedding(embedding(several), {}).input_tokens_max
    assert bound is not None
    assert bound >= sum(map(len, several))


@pytest.mark.parametrize(
    ("prompt", "n", "choices"),
    [("x", 1, 1), ("x", 3, 3), (["x", "y"], 3, 6), ([1, 2, 3], 2, 2), ([[1, 2], [3]], 2, 4), ([], 1, 1)],
)
def test_every_prompt_has_its_choices(prompt: object, n: int, choices: int) -> None:
    assert read_completion(completion(prompt=prompt, n=n), {}).choices == choices


def test_a_completion_that_says_nothing_is_as_short_as_at_openai() -> None:
    assert read_completion(completion(), {}).output_tokens_max == 16
    assert read_completion(completion(max_tokens=5), {}).output_tokens_max == 5


def test_what_has_no_answer_sets_no_output_aside_and_counting_nothing_at_all() -> None:
    assert read_embedding(embedding("x"), {}).output_tokens_max == 0
    counted = read_count(message(), {})
    assert (counted.input_tokens_max, counted.output_tokens_max) == (0, 0)


def test_a_message_is_handed_on_byte_for_byte_but_for_what_is_ours() -> None:
    raw = message(penstock={"use_case": "h"}, service_tier="auto", top_k=3)
    request = read_message(raw.replace(b'"top_k":3', b'"top_k": 3e0'), {"anthropic-version": "2026-10-21"})
    assert bytes(request.fields["top_k"]) == b"3e0"
    assert "penstock" not in request.fields
    assert bytes(request.fields["service_tier"]) == b'"standard_only"'
    assert (request.operation, request.hints.use_case) == (Operation.MESSAGES, "h")
    assert request.headers == {"anthropic-version": "2026-10-21"}


def test_the_version_has_a_default_and_headers_that_cannot_be_sent_are_refused() -> None:
    assert read_message(message(), {}).headers == {"anthropic-version": "2023-06-01"}
    with pytest.raises(InvalidRequest, match="anthropic-beta"):
        read_message(message(), {"anthropic-beta": "a\x01"})
    with pytest.raises(InvalidRequest, match="anthropic-beta"):
        read_message(message(), {"anthropic-beta": "a" * 3000})


@pytest.mark.parametrize("read", [read_message, read_count, read_completion, read_embedding])
@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{", b'{"model":1}', b'{"model":"m","model":"m"}', b"\xff", b'{"a":1e999}', b"null"]
)
def test_no_door_takes_what_is_no_request(read: Reader, body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        read(body, {})
