"""What callers may send, what the gate reads of it, and how it says no."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.dialect import read_chat
from gateway.errors import InvalidRequest
from kernel import DataClass


def body(**members: object) -> bytes:
    return msgspec.json.encode({"model": "m", "messages": [{"role": "user", "content": "hi"}], **members})


@pytest.mark.parametrize(
    ("raw", "param"),
    [
        (b"{", None),
        (b"[]", None),
        (b"\xff", None),
        (b'{"messages": []}', "model"),
        (b'{"model": 3, "messages": []}', "model"),
        (b'{"model": "", "messages": [{"role": "user", "content": "x"}]}', "model"),
        (b'{"model": "m", "messages": []}', "messages"),
        (b'{"model": "m", "messages": [{"content": "x"}]}', "messages[0].role"),
        (b'{"model": "m", "messages": [{"role": "user", "content": 7}]}', "messages[0].content"),
        (b'{"model": "m", "messages": [{"role": "user", "content": NaN}]}', None),
        (b'{"model": "m", "messages": ' + b"[" * 50_000 + b"]" * 50_000 + b"}", None),
        (body(n=0), "n"),
        (body(max_tokens=0), "max_tokens"),
        (body(stream="yes"), "stream"),
        (body(penstock={"colour": "red"}), "penstock"),
        (body(service_tier="priority"), "service_tier"),
        (body(prediction={"type": "content", "content": "x"}), "prediction"),
        (body(web_search_options={}), "web_search_options"),
        (body(chat_template="{{ 7 * 7 }}"), "chat_template"),
        (body(penstock={"data_class": "secret"}), "data_class"),
        (body(penstock={"data_class": "PUBLIC"}), "data_class"),
        (body(penstock={"max_latency_ms": "soon"}), "penstock"),
        (body(metadata={"data_class": "top"}), "data_class"),
    ],
)
def test_a_bad_body_names_its_field(raw: bytes, param: str | None) -> None:
    with pytest.raises(InvalidRequest) as refused:
        read_chat(raw, {})
    if param is not None:
        assert refused.value.param == param
    assert "hi" not in refused.value.message.split()


def test_an_error_never_quotes_content() -> None:
    with pytest.raises(InvalidRequest) as refused:
        read_chat(b'{"model": "m", "messages": [{"role": "user", "content": {"secret": "4111111111111111"}}]}', {})
    assert "4111" not in refused.value.message


def test_unknown_members_stay_the_bytes_they_were() -> None:
    raw = b'{"model":"m","messages":[{"role":"user","content":"hi"}],"future":{"b": 1e5,  "a":[ ]}}'
    assert bytes(read_chat(raw, {}).fields["future"]) == b'{"b": 1e5,  "a":[ ]}'


def test_hints_come_from_header_then_body_then_metadata() -> None:
    raw = body(
        metadata={"use_case": "m", "task_type": "m", "data_class": "public"},
        penstock={"use_case": "b", "task_type": "b"},
    )
    request = read_chat(raw, {"x-use-case": "h"})
    assert (request.hints.use_case, request.hints.task_type) == ("h", "b")
    assert request.hints.data_class is DataClass.PUBLIC
    assert "penstock" not in request.fields


words = st.text(st.characters(exclude_categories=["Cs"]))
parts = st.fixed_dictionaries({"type": st.sampled_from(["text", "refusal"]), "text": words, "refusal": words})
messages = st.lists(
    st.fixed_dictionaries(
        {"role": words, "content": words | st.lists(parts, max_size=3)},
        optional={"name": words, "tool_calls": st.lists(st.dictionaries(words, words), max_size=2)},
    ),
    min_size=1,
    max_size=4,
)


def strings_in(value: object) -> list[str]:
    """Every string that is told, but for the parts' own types."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for name, item in value.items() if name != "type" for text in strings_in(item)]
    return [text for item in value for text in strings_in(item)] if isinstance(value, list) else []


@given(messages)
def test_the_prompt_bound_is_never_below_the_bytes_of_anything_a_template_could_show(told: list[dict]) -> None:
    bound = read_chat(body(messages=told), {}).input_tokens_max
    assert bound is not None
    assert bound >= sum(len(text.encode()) for text in strings_in(told))


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "https://x/y.png"}},
        {"image_url": {"url": "https://x/y.png"}},
        {"type": "text", "text": "", "image_url": {"url": "https://x/y.png"}},
        {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}},
        {"text": "no type"},
    ],
)
def test_what_is_not_certainly_text_has_no_bound_of_its_own(part: dict[str, object]) -> None:
    content = [{"type": "text", "text": "what is this"}, part]
    assert read_chat(body(messages=[{"role": "user", "content": content}]), {}).input_tokens_max is None


def test_a_long_role_counts_like_any_other_text() -> None:
    bound = read_chat(body(messages=[{"role": "x" * 5000, "content": ""}]), {}).input_tokens_max
    assert bound is not None
    assert bound >= 5000


@pytest.mark.parametrize("header", ["public", "restricted", "public, restricted"])
def test_the_highest_data_class_counts_wherever_it_is_said(header: str) -> None:
    raw = body(penstock={"data_class": "restricted"}, metadata={"data_class": "internal"})
    assert read_chat(raw, {"x-data-class": header}).hints.data_class is DataClass.RESTRICTED
    assert read_chat(body(), {"x-data-class": "public, internal"}).hints.data_class is DataClass.INTERNAL


def test_providers_are_not_asked_to_keep_content_or_to_serve_another_tier() -> None:
    fields = read_chat(body(store=True, service_tier="auto"), {}).fields
    assert "store" not in fields
    assert bytes(fields["service_tier"]) == b'"default"'


def test_tools_and_schemas_count_towards_the_prompt() -> None:
    plain = read_chat(body(), {}).input_tokens_max
    tools = [{"type": "function", "function": {"name": "f", "description": "d" * 500}}]
    with_tools = read_chat(body(tools=tools), {}).input_tokens_max
    assert plain is not None
    assert with_tools is not None
    assert with_tools > plain + 500


@pytest.mark.parametrize("kind", [["text"], 7, None, {}])
def test_a_part_of_a_type_that_is_no_word_has_no_bound_and_is_no_bug_of_ours(kind: object) -> None:
    content = [{"type": kind, "text": "x"}]
    assert read_chat(body(messages=[{"role": "user", "content": content}]), {}).input_tokens_max is None


def test_more_parts_than_anybody_needs_are_refused() -> None:
    content = [{"type": "text", "text": "a"}] * 20_001
    with pytest.raises(InvalidRequest, match="parts"):
        read_chat(body(messages=[{"role": "user", "content": content}]), {})


def test_the_prompt_bound_of_one_long_message_is_hardly_more_than_its_bytes() -> None:
    bound = read_chat(body(messages=[{"role": "user", "content": "x" * 100_000}]), {}).input_tokens_max
    assert bound is not None
    assert 100_000 <= bound < 100_200
