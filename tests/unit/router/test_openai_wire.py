"""What we send byte for byte, and how usage is cut into disjoint parts."""

import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from kernel import Component, ModelRequest, Usage
from router import UpstreamBroken, UpstreamFailed, UpstreamRefused, UpstreamTimeout, UpstreamUnreachable
from router.catalogue import Provider
from router.openai import AnswerReader, encode, read_chunk, read_refusal, read_reply, read_retry_after, read_usage
from tests.fakes.routing import AT, TARGET, catalogue, chat

OPENAI = catalogue(dialect="openai", base_url="https://x.test").provider("p")
NEWER = catalogue(dialect="openai", base_url="https://x.test", output_limit_field="max_completion_tokens").provider("p")

IN, CACHED, WRITE = Component.INPUT, Component.CACHED_INPUT, Component.CACHE_WRITE
AUDIO_IN, IMAGE, OUT = Component.AUDIO_INPUT, Component.IMAGE_INPUT, Component.OUTPUT
REASONING, AUDIO_OUT = Component.REASONING, Component.AUDIO_OUTPUT


def sent(request: ModelRequest, provider: Provider = OPENAI) -> dict[str, object]:
    return json.loads(encode(request, TARGET, provider))


class TestEncoding:
    def test_keeps_unknown_members_byte_for_byte(self):
        odd = b'{"z" : 1.50, "a":[1e400,  "\\u00e9"], "z":2}'
        request = ModelRequest("m", {"model": Raw(b'"m"'), "odd": Raw(odd), "messages": Raw(b"[ ]")})
        assert b'"odd":' + odd in encode(request, TARGET, OPENAI)
        assert b'"messages":[ ]' in encode(request, TARGET, OPENAI)

    def test_names_the_model_as_the_provider_does(self):
        assert sent(chat())["model"] == "big"

    @pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
    @pytest.mark.parametrize(("provider", "wanted"), [(OPENAI, "max_tokens"), (NEWER, "max_completion_tokens")])
    def test_writes_the_limit_that_was_paid_for_into_the_providers_field(self, field, provider, wanted):
        body = sent(chat(limit=40, **{field: 99}), provider)
        assert {name: body[name] for name in body if name.startswith("max_")} == {wanted: 40}

    def test_sends_the_targets_ceiling_where_nobody_asked_for_a_limit(self):
        assert sent(chat())["max_tokens"] == TARGET.output_tokens_max

    def test_a_limit_of_zero_is_a_limit(self):
        assert sent(chat(limit=0))["max_tokens"] == 0

    @pytest.mark.parametrize("options", [None, {"include_usage": False}, "nonsense", [1]])
    def test_always_asks_for_usage_on_streams(self, options):
        body = sent(chat(stream=True, stream_options=options))
        assert body["stream"] is True
        assert body["stream_options"] == {"include_usage": True}

    def test_keeps_the_other_stream_options(self):
        body = sent(chat(stream=True, stream_options={"include_obfuscation": False}))
        assert body["stream_options"] == {"include_obfuscation": False, "include_usage": True}

    def test_a_request_without_stream_has_no_stream_options(self):
        assert "stream_options" not in sent(chat())


def usage(prompt: object, completion: object, *, inputs: object = None, outputs: object = None, total: object = None):
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": total,
        "prompt_tokens_details": inputs,
        "completion_tokens_details": outputs,
    }


GOLDEN = [
    ("plain", usage(10, 5, total=15), {IN: 10, OUT: 5}),
    ("zero is not none", usage(0, 0), {IN: 0, OUT: 0}),
    ("no details", {"prompt_tokens": 3, "completion_tokens": 4}, {IN: 3, OUT: 4}),
    ("cached", usage(100, 5, inputs={"cached_tokens": 80}), {IN: 20, CACHED: 80, OUT: 5}),
    ("all cached", usage(100, 5, inputs={"cached_tokens": 100}), {IN: 0, CACHED: 100, OUT: 5}),
    (
        "cached and written",
        usage(100, 5, inputs={"cached_tokens": 30, "cache_write_tokens": 50, "audio_tokens": 0}),
        {IN: 20, CACHED: 30, WRITE: 50, OUT: 5},
    ),
    (
        "audio and image",
        usage(100, 50, inputs={"audio_tokens": 40, "image_tokens": 10}, outputs={"audio_tokens": 30}),
        {IN: 50, AUDIO_IN: 40, IMAGE: 10, OUT: 20, AUDIO_OUT: 30},
    ),
    (
        "reasoning",
        usage(10, 500, outputs={"reasoning_tokens": 448, "accepted_prediction_tokens": 9}),
        {IN: 10, OUT: 52, REASONING: 448},
    ),
    ("null details", usage(10, 5, inputs={"cached_tokens": None}, outputs={}), {IN: 10, OUT: 5}),
    ("cached beyond prompt", usage(10, 5, inputs={"cached_tokens": 11}), {IN: 10, OUT: 5}),
    ("details together beyond", usage(10, 5, inputs={"cached_tokens": 6, "audio_tokens": 5}), {IN: 10, OUT: 5}),
    ("negative detail", usage(10, 5, inputs={"cached_tokens": -1}), {IN: 10, OUT: 5}),
    ("detail is true", usage(10, 5, inputs={"cached_tokens": True}), {IN: 10, OUT: 5}),
    ("detail is a fraction", usage(10, 5, inputs={"cached_tokens": 1.0}), {IN: 10, OUT: 5}),
    ("details are a list", usage(10, 5, inputs=[1], outputs="x"), {IN: 10, OUT: 5}),
    (
        "a bad side does not spoil the other",
        usage(10, 5, inputs={"cached_tokens": 99}, outputs={"reasoning_tokens": 2}),
        {IN: 10, OUT: 3, REASONING: 2},
    ),
    (  # as xAI reports a reasoning model: beside completion_tokens, within the total
        "reasoning beside completion",
        usage(10120, 1499, inputs={"cached_tokens": 128}, outputs={"reasoning_tokens": 2809}, total=14428),
        {IN: 9992, CACHED: 128, OUT: 1499, REASONING: 2809},
    ),
    ("thoughts in the total alone", usage(8, 1, total=399), {IN: 8, OUT: 391}),
    ("a total that is too small", usage(10, 5, total=3), {IN: 10, OUT: 5}),
    ("a total that is none", usage(10, 5, total="many"), {IN: 10, OUT: 5}),
    ("none", None, None),
    ("a list", [], None),
    ("no totals", {}, None),
    ("one total", {"prompt_tokens": 5}, None),
    ("null total", usage(None, 5), None),
    ("negative total", usage(-1, 5), None),
    ("true total", usage(bool(1), 5), None),
    ("fractional total", usage(1.0, 5), None),
    ("textual total", usage("1", 5), None),
]


@pytest.mark.parametrize(("said", "parts"), [case[1:] for case in GOLDEN], ids=[case[0] for case in GOLDEN])
def test_usage_is_cut_into_disjoint_parts(said, parts):
    assert read_usage(said) == (None if parts is None else Usage(parts))


_counts = st.integers(-2, 50) | st.none() | st.booleans() | st.floats() | st.text(max_size=2)
_details = st.dictionaries(
    st.sampled_from(["cached_tokens", "cache_write_tokens", "audio_tokens", "image_tokens", "reasoning_tokens"]),
    _counts,
)


@given(_counts, _counts, _details, _details, _counts)
def test_parts_sum_to_the_totals_and_none_is_negative(prompt, completion, inputs, outputs, total):
    read = read_usage(usage(prompt, completion, inputs=inputs, outputs=outputs, total=total))
    if read is not None:
        beyond = total if type(total) is int else 0
        assert read.input_tokens == prompt
        assert read.output_tokens == max(completion, beyond - prompt)
        assert all(count >= 0 for count in read.tokens.values())


def chunk(**choice: object) -> bytes:
    return json.dumps({"id": "c", "choices": [choice]}).encode()


class TestChunks:
    @pytest.mark.parametrize(
        ("delta", "content"),
        [
            ({"role": "assistant"}, False),
            ({"role": "assistant", "content": ""}, False),
            ({"role": "assistant", "content": None, "refusal": None, "tool_calls": []}, False),
            ({}, False),
            (None, False),
            ({"content": "a"}, True),
            ({"role": "assistant", "content": " "}, True),
            ({"refusal": "no"}, True),
            ({"tool_calls": [{"index": 0}]}, True),
            ({"reasoning_content": "hm"}, True),
            ({"reasoning": "hm"}, True),
            ({"something_new": 1}, True),
        ],
    )
    def test_content_is_anything_but_a_role(self, delta, content):
        assert read_chunk(chunk(index=0, delta=delta, finish_reason=None)).content is content

    def test_a_finish_is_content(self):
        assert read_chunk(chunk(index=0, delta={}, finish_reason="stop")).content

    def test_usage_beside_choices_is_not_usage_only(self):
        read = read_chunk(b'{"choices":[{"delta":{}}],"usage":{"prompt_tokens":1,"completion_tokens":2}}')
        assert read.usage is not None
        assert not read.usage_only

    def test_usage_only_has_no_choices_even_if_it_cannot_be_read(self):
        read = read_chunk(b'{"choices":[],"usage":{"prompt_tokens":-1}}')
        assert read.usage_only
        assert read.usage is None

    def test_an_event_without_choices_and_usage_is_neither(self):
        read = read_chunk(b'{"choices":[],"prompt_filter_results":[],"usage":null}')
        assert (read.content, read.usage_only, read.usage) == (False, False, None)

    def test_data_is_handed_on_byte_for_byte_but_on_one_line(self):
        assert read_chunk(b'{ "choices" :[], "x":1.50}').data == b'{ "choices" :[], "x":1.50}'
        assert read_chunk(b'{\n"choices":[]}').data == b'{ "choices":[]}'

    @pytest.mark.parametrize(
        "data",
        [b"", b"x", b"[]", b"7", b"null", b'{"choices":7}', b'{"choices":[{"index":"a"}]}', b'{"error":{}', b"\xff"],
    )
    def test_anything_else_is_broken(self, data):
        with pytest.raises(UpstreamBroken):
            read_chunk(data)

    @pytest.mark.parametrize("error", [{"message": "secret words"}, "secret words", ["secret words"], 7])
    def test_an_error_in_band_is_broken_and_its_words_stay_behind(self, error):
        with pytest.raises(UpstreamBroken) as caught:
            read_chunk(json.dumps({"error": error}).encode())
        assert "secret" not in caught.value.message

    def test_json_that_is_too_deep_is_broken(self):
        with pytest.raises(UpstreamBroken):
            read_chunk(b'{"usage":' + b"[" * 100_000 + b"]" * 100_000 + b"}")


class TestWholeness:
    def test_needs_every_choice_that_began_to_finish(self):
        reader = AnswerReader()
        assert not reader.finished
        reader.read(chunk(index=0, delta={"content": "a"}))
        reader.read(chunk(index=1, delta={"content": "b"}))
        reader.read(chunk(index=0, delta={}, finish_reason="stop"))
        assert not reader.finished
        usage = b'{"choices":[],"usage":{"prompt_tokens":0,"completion_tokens":0}}'
        assert not reader.read(usage).final
        reader.read(chunk(index=1, delta={}, finish_reason="length"))
        assert reader.finished
        assert not reader.whole
        assert reader.read(usage).final
        assert reader.whole

    def test_a_word_after_the_finish_does_not_open_a_choice_again(self):
        reader = AnswerReader()
        reader.read(chunk(index=0, delta={}, finish_reason="stop"))
        reader.read(chunk(index=0, delta={}))
        assert reader.finished

    @pytest.mark.parametrize("early", [b'{"choices":[],"usage":%s}', b'{"choices":[{"delta":{}}],"usage":%s}'])
    def test_usage_before_the_finish_is_a_running_count_and_makes_nothing_whole(self, early):
        reader, counted = AnswerReader(), b'{"prompt_tokens":7,"completion_tokens":0}'
        running = reader.read(early % counted)
        reader.read(chunk(index=0, delta={"content": "a"}))
        reader.read(chunk(index=0, delta={}, finish_reason="stop"))
        assert (running.usage is not None, running.final, reader.finished, reader.whole) == (True, False, True, False)
        last = reader.read(b'{"choices":[],"usage":%s}' % counted)
        assert (last.final, reader.whole) == (True, True)

    def test_usage_beside_the_last_finish_is_the_last_word(self):
        reader, counted = AnswerReader(choices=2), b'"usage":{"prompt_tokens":7,"completion_tokens":1}'
        finish = b'{"choices":[{"index":%d,"delta":{},"finish_reason":"stop"}],%s}'
        assert not reader.read(finish % (0, counted)).final  # the second choice has not begun
        assert reader.finished
        assert not reader.whole
        assert reader.read(finish % (1, counted)).final
        assert reader.whole

    def test_an_empty_finish_reason_finishes_nothing(self):
        reader = AnswerReader()
        reader.read(chunk(index=0, delta={"content": "a"}, finish_reason=""))
        assert not reader.finished
        assert not reader.read(chunk(index=0, delta={}, finish_reason="")).content

    def test_unreadable_usage_makes_nothing_whole(self):
        reader = AnswerReader()
        reader.read(chunk(index=0, delta={}, finish_reason="stop"))
        reader.read(b'{"choices":[],"usage":{}}')
        assert not reader.whole


def test_a_reply_falls_back_to_the_id_in_its_body():
    assert read_reply(b'{"id":"c"}').provider_request_id == "c"
    assert read_reply(b'{"id":"c"}', "h").provider_request_id == "h"
    assert read_reply(b'{"id":7}').provider_request_id is None
    assert len(read_reply(b'{"id":"' + b"x" * 999 + b'"}').provider_request_id) == 128


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b'"x"', b"{", b'{"error":{"message":"x"}}'])
def test_a_reply_that_is_none_is_broken(body):
    with pytest.raises(UpstreamBroken):
        read_reply(body)


def test_a_refusal_speaks_for_itself_in_any_known_shape():
    for body in (b'{"error":{"message":"m"}}', b'{"error":"m"}', b'{"message":"m","code":400}'):
        error = read_refusal(TARGET, 400, body=body)
        assert isinstance(error, UpstreamRefused)
        assert (error.message, error.code, error.status) == ("m", "invalid_request", 400)
    assert UpstreamRefused.code == "invalid_request"
    assert UpstreamRefused.status == 400


def test_a_refusal_does_not_repeat_the_credential_however_it_was_escaped():
    body = rb'{"error":{"message":"bad key sk\/a\u0062c","param":"sk/abc","code":"x sk/abc"}}'
    error = read_refusal(TARGET, 400, body=body, credential="sk/abc")
    assert (error.message, error.param, error.code) == ("bad key [credential]", "[credential]", "invalid_request")


@pytest.mark.parametrize(("status", "unbilled"), [(204, False), (302, False), (404, True), (408, False), (504, False)])
def test_what_may_have_been_worked_on_may_be_billed_and_is_not_for_repeating(status, unbilled):
    error = read_refusal(TARGET, status, body=b"", retry_after_seconds=3.0)
    assert isinstance(error, UpstreamFailed)
    assert (error.unbilled, error.retryable, error.retry_after_seconds) == (unbilled, unbilled, 3.0)


@pytest.mark.parametrize("sent", [False, True])
def test_what_ran_out_of_time_may_be_repeated_if_it_was_not_sent(sent):
    error = UpstreamTimeout("m", "connect", sent=sent)
    assert (error.unbilled, error.retryable) == (not sent, not sent)


def test_what_was_never_sent_may_be_repeated_and_what_was_cut_may_not():
    assert UpstreamUnreachable("x").retryable
    assert not UpstreamBroken("x").retryable


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after-ms": "250", "retry-after": "7"}, 0.25),
        ({"retry-after-ms": "soon", "retry-after": "7"}, 7.0),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "1e306"}, 86_400.0),
        ({"retry-after-ms": "1e306"}, 86_400.0),
        ({"retry-after": "Fri, 31 Dec 9999 23:59:59 GMT"}, 86_400.0),
        ({"retry-after": "tomorrow"}, None),
        ({"retry-after": "Fri, 20 Nov 2026 12:00:30 GMT"}, 30.0),
        ({"retry-after": "Fri, 20 Nov 2026 11:00:00 GMT"}, 0.0),
        ({"retry-after": "Fri, 20 Nov 2026 12:00:30 -0000"}, None),
    ],
)
def test_reads_when_to_come_back(headers, seconds):
    assert datetime(2026, 11, 20, 12, 0, tzinfo=UTC) == AT
    assert read_retry_after(headers, AT) == seconds


@pytest.mark.parametrize(
    "told",
    [
        {"prompt_tokens": 8, "total_tokens": 8},
        {"prompt_tokens": 0, "total_tokens": 8},
        {"total_tokens": 8},
        {"prompt_tokens": 8, "completion_tokens": 5},
    ],
)
def test_all_that_embeddings_use_went_in(told: dict[str, int]) -> None:
    read = read_usage(told, is_input_only=True)
    assert read is not None
    assert read.tokens == {Component.INPUT: 8, Component.OUTPUT: 0}


def test_embeddings_without_a_count_have_no_usage() -> None:
    assert read_usage({"total_tokens": None}, is_input_only=True) is None


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("context_length_exceeded", "context_length_exceeded"),
        ("InvalidParameter.Range-2", "InvalidParameter.Range-2"),
        ("you wrote: my card is 4111", "invalid_request"),
        ("two\nlines", "invalid_request"),
        ("x" * 101, "invalid_request"),
        ("", "invalid_request"),
        (400, "invalid_request"),
    ],
)
def test_a_code_that_is_kept_in_logs_and_books_is_one_word(said: object, kept: str) -> None:
    body = json.dumps({"error": {"message": "no", "code": said}}).encode()
    assert read_refusal(TARGET, 400, body=body).code == kept
