"""What is read from Anthropic's usage, in every shape that its SDKs allow and its imitators send."""

import msgspec
import pytest

from kernel import Operation
from router import anthropic

Counts = dict[str, int]


def whole(**usage: object) -> Counts | None:
    body = msgspec.json.encode({"type": "message", "usage": {"input_tokens": 3, "output_tokens": 4, **usage}})
    told = anthropic.read_reply(body, None, Operation.MESSAGES).usage
    return None if told is None else dict(told.tokens)


def last_word(*events: dict[str, object]) -> Counts | None:
    """What the books of a stream that ended well come to."""
    reader, told = anthropic.AnswerReader(), None
    for event in events:
        told = reader.read(msgspec.json.encode(event)).usage or told
    assert reader.ended
    return None if told is None else dict(told.tokens)


def start(**usage: object) -> dict[str, object]:
    return {"type": "message_start", "message": {"id": "m", "usage": usage}}


def delta(usage: dict[str, object] | None) -> dict[str, object]:
    return {"type": "message_delta", "delta": {"stop_reason": "end_turn"}} | ({} if usage is None else {"usage": usage})


STOP: dict[str, object] = {"type": "message_stop"}


@pytest.mark.parametrize(
    ("usage", "written"),
    [
        ({}, {}),
        ({"cache_creation_input_tokens": None, "cache_read_input_tokens": None, "cache_creation": None}, {}),
        ({"cache_creation_input_tokens": 9}, {"cache_write": 9}),
        (
            {"cache_creation_input_tokens": 9, "cache_creation": {"ephemeral_1h_input_tokens": 4}},
            {"cache_write": 5, "cache_write_1h": 4},
        ),
        ({"cache_creation": {"ephemeral_1h_input_tokens": 4, "ephemeral_5m_input_tokens": 5}},
         {"cache_write": 5, "cache_write_1h": 4}),
        ({"cache_creation_input_tokens": 2, "cache_creation": {"ephemeral_1h_input_tokens": 4}}, {"cache_write_1h": 4}),
    ],
)  # fmt: skip
def test_writes_to_the_cache_are_never_booked_below_what_is_told(usage: dict[str, object], written: Counts) -> None:
    assert whole(**usage) == {"input": 3, **written, "output": 4}


@pytest.mark.parametrize("name", ["input_tokens", "output_tokens", "cache_read_input_tokens"])
def test_a_total_that_is_no_count_is_no_usage(name: str) -> None:
    assert whole(**{name: "many"}) is None


@pytest.mark.parametrize("ending", [(STOP,), (delta(None), STOP)])
def test_an_answer_whose_length_nobody_told_has_no_usage(ending: tuple[dict[str, object], ...]) -> None:
    assert last_word(start(input_tokens=5, output_tokens=1), *ending) is None, "its first count is not its last"


def test_counts_of_a_stream_only_grow() -> None:
    told = last_word(
        start(input_tokens=500, output_tokens=1, cache_read_input_tokens=7),
        delta({"input_tokens": 0, "cache_read_input_tokens": None, "output_tokens": 3}),
        delta({"output_tokens": 9}),
        STOP,
    )
    assert told == {"input": 500, "cached_input": 7, "output": 9}
