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
        (body(penstock={"colour": "red"}), "penstock.colour"),
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


@given(st.lists(st.text(), min_size=1, max_size=5))
def test_the_prompt_bound_is_never_below_its_bytes(texts: list[str]) -> None:
    messages = [{"role": "user", "content": text} for text in texts]
    try:
        raw = msgspec.json.encode({"model": "m", "messages": messages})
    except UnicodeEncodeError:
        return  # a lone surrogate cannot be sent at all
    bound = read_chat(raw, {}).input_tokens_max
    assert bound is not None
    assert bound >= sum(len(text.encode()) for text in texts)


def test_content_that_is_not_text_has_no_bound_of_its_own() -> None:
    parts = [{"type": "text", "text": "what is this"}, {"type": "image_url", "image_url": {"url": "https://x/y.png"}}]
    assert read_chat(body(messages=[{"role": "user", "content": parts}]), {}).input_tokens_max is None


def test_tools_and_schemas_count_towards_the_prompt() -> None:
    plain = read_chat(body(), {}).input_tokens_max
    tools = [{"type": "function", "function": {"name": "f", "description": "d" * 500}}]
    with_tools = read_chat(body(tools=tools), {}).input_tokens_max
    assert plain is not None
    assert with_tools is not None
    assert with_tools > plain + 500
