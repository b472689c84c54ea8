"""Bodies that mean harm: read in two ways, not text at all, or far too much of it. Bytes on sockets: tests/hostile/."""

import json
import time
import tracemalloc

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.dialect import read_chat
from gateway.errors import InvalidRequest, UnsupportedEncoding

MESSAGES = b'"messages":[{"role":"user","content":"hi"}]'
MODEL = b'"model":"m"'


def refusal_of(raw: bytes) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as refused:
        read_chat(raw, {})
    return refused.value


@pytest.mark.parametrize(
    "raw",
    [
        b"{" + MODEL + b"," + MODEL + b"," + MESSAGES + b"}",
        b'{"model":"other",' + MODEL + b"," + MESSAGES + b"}",
        b"{" + MODEL + b"," + MESSAGES + b',"x":1,"x":2}',
        b"{" + MODEL + b' , "messages" : [] , ' + MESSAGES + b" } ",
        rb'{"mod\u0065l":"other",' + MODEL + b"," + MESSAGES + b"}",
        b'{"a":1,' + MODEL + b"," + MESSAGES + b',"a":",\\"a\\":1"}',
    ],
)
def test_a_member_named_twice_is_refused(raw: bytes) -> None:
    assert "twice" in refusal_of(raw).message


words = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**6), 10**6) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=8,
)
others = st.dictionaries(words.map("x-{}".format), values, max_size=5)
styles = st.sampled_from([{}, {"separators": (",", ":")}, {"indent": 2}, {"ensure_ascii": False}, {"indent": "\t"}])


@given(others, styles)
def test_a_member_named_once_never_is_however_it_is_written(more: dict[str, object], style: dict) -> None:
    told = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **more}
    assert read_chat(json.dumps(told, **style).encode(), {}).fields.keys() == told.keys()


@given(others, styles, st.data())
def test_a_member_named_twice_always_is_however_it_is_written(more: dict, style: dict, data: st.DataObject) -> None:
    told = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **more}
    again = data.draw(st.sampled_from(sorted(told)))
    first = json.dumps({again: told[again]}, **style).strip()[1:-1]
    raw = json.dumps(told, **style).strip()
    assert "twice" in refusal_of(("{" + first + "," + raw[1:]).encode()).message


@pytest.mark.parametrize("text", [b"\xff", b"\xe2\x82", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80"])
@pytest.mark.parametrize(
    "around",
    [
        (b'{"model":"m","messages":[{"role":"user","content":"', b'"}]}'),
        (b'{"model":"m","messages":[{"role":"user","content":[{"type":"text","text":"', b'"}]}]}'),
        (b"{" + MODEL + b"," + MESSAGES + b',"user":"', b'"}'),
        (b"{" + MODEL + b"," + MESSAGES + b',"', b'":1}'),
    ],
)
def test_what_is_no_utf8_is_refused_wherever_it_stands(around: tuple[bytes, bytes], text: bytes) -> None:
    assert "UTF-8" in refusal_of(text.join(around)).message


def test_a_character_that_two_slices_share_is_one() -> None:
    for pad in range(65_400, 65_540):
        raw = msgspec.json.encode({"model": "m", "messages": [{"role": "user", "content": "x" * pad + "\u20ac"}]})
        assert read_chat(raw, {}).model == "m"


@pytest.mark.parametrize("member", ["temperature", "top_p", "presence_penalty", "frequency_penalty", "seed"])
@pytest.mark.parametrize("number", [b"1e999", b"-1e999", b"NaN", b'"1"', b"[]"])
def test_a_number_that_is_none_names_its_member(member: str, number: bytes) -> None:
    raw = b"{" + MODEL + b"," + MESSAGES + b',"' + member.encode() + b'":' + number + b"}"
    assert refusal_of(raw).param == (None if number == b"NaN" else member)


@pytest.mark.parametrize(
    "hint", [{"max_latency_ms": 0}, {"max_latency_ms": 10**30}, {"tags": ["x"] * 33}, {"tags": ["x" * 129]}]
)
def test_a_hint_is_bounded(hint: dict[str, object]) -> None:
    raw = msgspec.json.encode({"model": "m", "messages": [{"role": "user", "content": "x"}]})
    hinted = raw[:-1] + b',"penstock":' + json.dumps(hint).encode() + b"}"
    assert refusal_of(hinted).param == "penstock"


@pytest.mark.parametrize("coding", ["gzip", "br", "identity, gzip", "GZIP", "x"])
def test_a_body_in_a_coding_is_not_read(coding: str) -> None:
    with pytest.raises(UnsupportedEncoding):
        read_chat(b"{" + MODEL + b"," + MESSAGES + b"}", {"content-encoding": coding})


def test_a_body_in_no_coding_is() -> None:
    assert read_chat(b"{" + MODEL + b"," + MESSAGES + b"}", {"content-encoding": " Identity "}).model == "m"


def listed(item: bytes, count: int) -> bytes:
    return b'{"model":"m","messages":[' + b",".join([item] * count) + b"]}"


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(listed(b'{"role":"u","content":[{}]}', 500_000), id="messages with a part"),
        pytest.param(listed(b"{}", 4_000_000), id="empty messages"),
        pytest.param(listed(b"0", 6_000_000), id="numbers"),
        pytest.param(b"{" + MODEL + b"," + MESSAGES + b',"a":1' * 1_000_000 + b"}", id="members"),
        pytest.param(b"{" + MODEL + b"," + MESSAGES + b',"stop":[' + b"0," * 5_000_000 + b"0]}", id="stops"),
        pytest.param(listed(b'{"role":"u","content":[' + b",".join([b"{}"] * 4_000_000) + b"]}", 1), id="parts"),
    ],
)
def test_a_great_many_of_something_small_is_refused_before_it_is_made(raw: bytes) -> None:
    tracemalloc.start()
    try:
        refusal_of(raw)
        assert tracemalloc.get_traced_memory()[1] < 8_000_000
    finally:
        tracemalloc.stop()


def test_braces_in_a_text_are_no_objects() -> None:
    raw = msgspec.json.encode({"model": "m", "messages": [{"role": "user", "content": '{"a": {' * 200_000}]})
    began = time.perf_counter()
    assert read_chat(raw, {}).input_tokens_max is not None
    assert time.perf_counter() - began < 1


@pytest.mark.parametrize(
    ("content", "param"),
    [
        ([{"type": "image_url"}, 5], "messages[1].content[1]"),
        ([5], "messages[1].content[0]"),
        (True, "messages[1].content"),
    ],
)
def test_a_message_at_fault_is_named_by_its_place(content: object, param: str) -> None:
    told = [{"role": "user", "content": "x"}, {"role": "user", "content": content}]
    assert refusal_of(msgspec.json.encode({"model": "m", "messages": told})).param == param


def test_two_contents_are_judged_by_the_worse_one() -> None:
    image = b'"content":[{"type":"image_url","image_url":{"url":"data:,"}}]'
    for first, second in ((image, b'"content":"x"'), (b'"content":"x"', image)):
        raw = b'{"model":"m","messages":[{"role":"user",' + first + b"," + second + b"}]}"
        assert read_chat(raw, {}).input_tokens_max is None
