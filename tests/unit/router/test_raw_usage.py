"""What providers say on their own wires, read into our components and out of them."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel import Component
from router import anthropic, openai
from router.raw_usage import BODY_BYTES_MAX, Overlong, Reading, read_components, write_usage

counts = st.integers(0, 10**7)
parts = st.dictionaries(st.sampled_from([part.value for part in Component]), st.integers(1, 10**7))

OPENAI = {
    "prompt_tokens": 100,
    "completion_tokens": 50,
    "total_tokens": 150,
    "prompt_tokens_details": {"cached_tokens": 30, "cache_write_tokens": 20, "audio_tokens": 10, "image_tokens": None},
    "completion_tokens_details": {"reasoning_tokens": 40, "audio_tokens": 4, "accepted_prediction_tokens": 3},
}
ANTHROPIC = {
    "input_tokens": 11,
    "cache_read_input_tokens": 30,
    "cache_creation_input_tokens": 20,
    "cache_creation": {"ephemeral_5m_input_tokens": 5, "ephemeral_1h_input_tokens": 15},
    "output_tokens": 9,
    "output_tokens_details": {"thinking_tokens": 4},
    "service_tier": "standard",
}
GEMINI = {
    "promptTokenCount": 100,
    "cachedContentTokenCount": 40,
    "candidatesTokenCount": 20,
    "thoughtsTokenCount": 7,
    "toolUsePromptTokenCount": 3,
    "totalTokenCount": 130,
    "promptTokensDetails": [
        {"modality": "TEXT", "tokenCount": 40},
        {"modality": "AUDIO", "tokenCount": 50},
        {"modality": "IMAGE", "tokenCount": 10},
    ],
    "cacheTokensDetails": [{"modality": "AUDIO", "tokenCount": 40}],
    "candidatesTokensDetails": [{"modality": "AUDIO", "tokenCount": 6}],
}


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (
            OPENAI,
            {
                "input": 40,
                "cached_input": 30,
                "cache_write": 20,
                "audio_input": 10,
                "output": 6,
                "reasoning": 40,
                "audio_output": 4,
            },
        ),
        (
            ANTHROPIC,
            {"input": 11, "cached_input": 30, "cache_write": 5, "cache_write_1h": 15, "output": 5, "reasoning": 4},
        ),
        (
            GEMINI,
            {
                "input": 43,
                "cached_input": 40,
                "audio_input": 10,
                "image_input": 10,
                "output": 14,
                "audio_output": 6,
                "reasoning": 7,
            },
        ),
        # Gemini: thoughts counted among what was said, which only the total shows.
        (
            {"promptTokenCount": 5, "candidatesTokenCount": 10, "thoughtsTokenCount": 4, "totalTokenCount": 15},
            {"input": 5, "output": 6, "reasoning": 4},
        ),
        # Gemini leaves out what is zero.
        ({"promptTokenCount": 5, "totalTokenCount": 5}, {"input": 5}),
        # xAI tells its reasoning in the total alone.
        ({"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 12}, {"input": 5, "output": 7}),
        ({"prompt_tokens": 8, "total_tokens": 8}, {"input": 8}),
        # OpenAI's newer wire, which counts like its older one and names like Anthropic's.
        (
            {
                "input_tokens": 9,
                "output_tokens": 4,
                "total_tokens": 13,
                "input_tokens_details": {"cached_tokens": 3},
                "output_tokens_details": {"reasoning_tokens": 2},
            },
            {"input": 6, "cached_input": 3, "output": 2, "reasoning": 2},
        ),
        # Details that do not fit their total are dropped.
        (
            {"prompt_tokens": 5, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 9}},
            {"input": 5, "output": 2},
        ),
        ({"input_tokens": 5, "output_tokens": 1, "cache_creation": {"ephemeral_1h_input_tokens": 3}},
         {"input": 5, "output": 1}),
        ({"prompt_tokens": -5, "completion_tokens": True}, {}),
    ],
)  # fmt: skip
def test_usage_of_every_wire_is_read_into_disjoint_components(told: dict, expected: dict) -> None:
    assert read_components(told) == expected


@pytest.mark.parametrize("told", [{}, {"tokens": 3}, {"input_length": 4}])
def test_usage_of_a_wire_nobody_knows_is_none(told: dict) -> None:
    assert read_components(told) is None


def total(components: dict, *, outputs: bool) -> int:
    return sum(count for part, count in components.items() if Component(part).is_output is outputs)


@given(counts, counts, st.dictionaries(st.sampled_from(["cached_tokens", "audio_tokens", "image_tokens"]), counts))
def test_components_of_openai_sum_to_its_totals(prompt: int, completion: int, details: dict) -> None:
    read = read_components({"prompt_tokens": prompt, "completion_tokens": completion, "prompt_tokens_details": details})
    assert (total(read, outputs=False), total(read, outputs=True)) == (prompt, completion)


@given(counts, counts, counts, counts, counts, counts)
def test_components_of_anthropic_sum_to_its_totals(
    into: int, read: int, written: int, long: int, out: int, thought: int
) -> None:
    told = {
        "input_tokens": into,
        "cache_read_input_tokens": read,
        "cache_creation_input_tokens": written,
        "cache_creation": {"ephemeral_1h_input_tokens": long},
        "output_tokens": out,
        "output_tokens_details": {"thinking_tokens": thought},
    }
    components = read_components(told)
    assert (total(components, outputs=False), total(components, outputs=True)) == (into + read + written, out)


@given(counts, counts, counts, counts, counts, st.integers(0, 1))
def test_components_of_gemini_sum_to_its_totals(
    prompt: int, cached: int, said: int, thought: int, audio: int, inclusive: int
) -> None:
    out = max(said, thought) if inclusive else said + thought
    told = {
        "promptTokenCount": prompt,
        "cachedContentTokenCount": cached,
        "candidatesTokenCount": out if inclusive else said,
        "thoughtsTokenCount": thought,
        "totalTokenCount": prompt + out,
        "promptTokensDetails": [{"modality": "AUDIO", "tokenCount": audio}],
    }
    components = read_components(told)
    assert (total(components, outputs=False), total(components, outputs=True)) == (prompt, out)


@given(parts)
def test_the_router_reads_from_a_written_usage_the_components_that_were_written(components: dict) -> None:
    wanted = {Component(part): count for part, count in components.items() if count}
    chat, message = write_usage(components, messages=False), write_usage(components, messages=True)
    for read in (openai.read_usage(chat), anthropic.read_usage(message)):
        assert {part: count for part, count in read.tokens.items() if count} == wanted


@given(parts)
def test_callers_who_know_nothing_of_components_are_told_the_same_totals(components: dict) -> None:
    into, out = total(components, outputs=False), total(components, outputs=True)
    for messages in (False, True):
        told = {
            name: value for name, value in write_usage(components, messages=messages).items() if name != "components"
        }
        read = read_components(told)
        assert (total(read, outputs=False), total(read, outputs=True)) == (into, out)


def reading(*pieces: bytes, stream: bool = True, status: int = 200, **headers: str) -> Reading:
    made = Reading()
    kind = "text/event-stream; charset=utf-8" if stream else "application/json"
    made.begin(status, {"content-type": kind, **{name.replace("_", "-"): value for name, value in headers.items()}})
    for piece in pieces:
        made.feed(piece)
    made.finish()
    return made


def sse(*events: object) -> bytes:
    return b"".join(
        f"event: {event.get('type')}\n".encode() * ("type" in event)
        + b"data: "
        + json.dumps(event).encode()
        + b"\r\n\r\n"
        for event in events
    )


MESSAGE = sse(
    {"type": "message_start", "message": {"usage": {**ANTHROPIC, "output_tokens": 1, "output_tokens_details": None}}},
    {"type": "content_block_delta", "delta": {"type": "text_delta", "text": 'data: {"usage": {"input_tokens": 999}}'}},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 9, "input_tokens": 11,
     "output_tokens_details": {"thinking_tokens": 4}}},
    {"type": "message_stop"},
)  # fmt: skip
CHAT = sse(
    {"choices": [{"delta": {"content": "usage"}, "finish_reason": None}], "usage": None},
    {"choices": [{"delta": {}, "finish_reason": "stop"}], "usage": None},
    {"choices": [], "usage": OPENAI},
)
CONTENT = sse(
    {"candidates": [{"content": {}}], "usageMetadata": {"promptTokenCount": 100}, "responseId": "g-1"},
    {"candidates": [{"finishReason": "STOP"}], "usageMetadata": GEMINI, "responseId": "g-1"},
)


@pytest.mark.parametrize(
    ("stream", "raw"), [(MESSAGE, ANTHROPIC), (CHAT + b"data: [DONE]\n\n", OPENAI), (CONTENT, GEMINI)]
)
def test_a_stream_says_the_same_wherever_it_is_cut_into_pieces(stream: bytes, raw: dict) -> None:
    wanted = read_components(raw)
    for at in range(len(stream)):
        found = reading(stream[:at], stream[at:])
        assert (found.components, found.is_whole) == (wanted, True), at


@pytest.mark.parametrize(
    ("stream", "whole"),
    [
        (CHAT, True),  # all is finished and counted: nothing can be missing
        (b"data: " + CHAT.split(b"data: ")[1], False),
        (b"".join(b"data: " + each for each in CHAT.split(b"data: ")[1:3]), False),  # finished, not counted, no [DONE]
        (MESSAGE[: MESSAGE.index(b"event: message_stop")], False),
        (CONTENT[: CONTENT.index(b"data: ", 10)], False),
        (CHAT + sse({"error": {"message": "no more"}}), False),
        (MESSAGE[: MESSAGE.index(b"event: content")] + sse({"type": "error", "error": {"message": "full"}}), False),
        (sse({"token": 1}), True),  # whose wire that is nobody here knows
        (b"", False),
        (b": ping\n\n", False),
    ],
)
def test_a_stream_that_was_cut_is_known_by_what_is_missing(stream: bytes, whole: object) -> None:
    assert reading(stream).is_whole is whole


def test_a_body_that_did_not_come_to_its_end_is_not_whole() -> None:
    cut = Reading()
    cut.begin(200, {"content-type": "application/json"})
    cut.feed(b'{"usage": ')
    assert not cut.is_whole


@pytest.mark.parametrize(("body", "whole"), [(b"{}", True), (b"", False), (b'{"choices": [', False), (b"Hello", False)])
def test_a_body_that_is_no_json_is_no_whole_answer(body: bytes, whole: object) -> None:
    assert reading(body, stream=False).is_whole is whole
    frames = Reading()
    frames.begin(200, {"content-type": "application/vnd.amazon.eventstream"})
    frames.feed(body)
    frames.finish()
    assert frames.is_whole  # which is litellm's to judge


def test_a_whole_answer_tells_usage_and_id() -> None:
    assert reading(json.dumps({"usage": OPENAI}).encode(), stream=False).components == read_components(OPENAI)
    found = reading(json.dumps({"usageMetadata": GEMINI, "responseId": "g-7"}).encode(), stream=False)
    assert (found.components, found.request_id) == (read_components(GEMINI), "g-7")


@pytest.mark.parametrize("name", ["request_id", "x_request_id", "apim_request_id", "x_amzn_requestid"])
def test_the_request_id_is_the_providers_header(name: str) -> None:
    assert reading(b'{"responseId": "body"}', stream=False, **{name: "head"}).request_id == "head"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"error": {"message": "no", "type": "t"}}, "no"),
        ([{"error": {"message": "no", "code": 400, "status": "INVALID_ARGUMENT"}}], "no"),
        ({"type": "error", "error": {"type": "overloaded_error", "message": "no"}}, "no"),
        ({"message": "no"}, "no"),
        ({"error": "no"}, "no"),
        ("no", None),
    ],
)
def test_a_refusal_is_read_in_whichever_shape_it_comes(body: object, message: str | None) -> None:
    assert reading(json.dumps(body).encode(), stream=False, status=400).error.get("message") == message


def test_what_is_no_json_says_nothing() -> None:
    found = reading(b"\x00\x01binary", stream=False)
    assert (found.components, found.is_legible) == (None, False)


def test_a_body_is_kept_up_to_its_bound() -> None:
    made = Reading()
    made.begin(200, {})
    made.feed(b"x" * BODY_BYTES_MAX)
    with pytest.raises(Overlong):
        made.feed(b"x")
