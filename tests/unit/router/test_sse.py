"""The event parser: any split gives the same events, within a cap, in linear time."""

import time
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.errors import UpstreamBroken
from router.sse import EventParser


def parsed(*blocks: bytes, cap: int = 1000) -> list[bytes]:
    parser = EventParser(cap)
    return [data for block in blocks for data in parser.feed(block)]


def outcome(blocks: Sequence[bytes], cap: int) -> tuple[list[bytes], bool]:
    """Events, and whether the cap was passed."""
    parser, events = EventParser(cap), []
    try:
        for block in blocks:
            for data in parser.feed(block):
                events.append(data)  # noqa: PERF402 - what came before an error counts
    except UpstreamBroken:
        return events, True
    return events, False


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"data: a\n\n", [b"a"]),
        (b"data:a\n\n", [b"a"]),
        (b"data:  a\n\n", [b" a"]),
        (b"data: a\r\n\r\n", [b"a"]),
        (b"data: a\r\r", [b"a"]),
        (b"data: a\n\r\n", [b"a"]),
        (b"data: a\r\ndata: b\r\n\r\n", [b"a\nb"]),
        (b"data\ndata: b\n\n", [b"\nb"]),
        (b"data: a\n\ndata: b\n\n", [b"a", b"b"]),
        (b"data: a\n\ndata: \n\ndata: b\n\n", [b"a", b"b"]),
        (b"data: a\n\n\ndata: b\n\n", [b"a", b"b"]),
        (b"data: a\n\ndata: b\nid: 1\n\n", [b"a", b"b"]),
        (b"data: a\n\ndata: b\ndata: c\n\n", [b"a", b"b\nc"]),
        (b": comment\n\ndata: a\n: another\n\n", [b"a"]),
        (b"event: x\nid: 1\nretry: 5\ndata: a\n\n", [b"a"]),
        (b"\xef\xbb\xbfdata: a\n\n", [b"a"]),
        (b"\n\xef\xbb\xbfdata: a\n\n", []),
        (b"database: a\n\n", []),
        (b"data: a:b\n\n", [b"a:b"]),
        (b"data: \n\n", []),
        (b"\n\n\n", []),
        (b"data: a\n", []),
        (b"data: a\x0b\x0c\x1c\xc2\x85b\n\n", [b"a\x0b\x0c\x1c\xc2\x85b"]),
        (b"data: \xff\xfe\n\n", [b"\xff\xfe"]),
    ],
)
def test_reads_what_the_standard_says_at_every_split(stream: bytes, events: list[bytes]):
    assert parsed(stream) == events
    assert parsed(*(stream[at : at + 1] for at in range(len(stream)))) == events
    for at in range(len(stream)):
        assert parsed(stream[:at], b"", stream[at:]) == events


_tokens = st.sampled_from(
    [b"data", b":", b" ", b"\r", b"\n", b"\r\n", b"\n\n", b"x", b"\xef\xbb\xbf", b"data: y", b"z" * 9]
)


@given(st.lists(_tokens, max_size=60).map(b"".join), st.data())
def test_any_split_gives_the_same_events_and_the_same_refusal(stream: bytes, data: st.DataObject):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    blocks = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    cap = data.draw(st.sampled_from([5, 12, 1000]))
    assert outcome(blocks, cap) == outcome([stream], cap)


@pytest.mark.parametrize("stream", [b"data: " + b"x" * 2000, b": " + b"x" * 2000, b"data: xxxxxxx\n" * 200])
def test_keeps_no_more_than_its_cap(stream: bytes):
    with pytest.raises(UpstreamBroken, match="more than 1000 bytes"):
        parsed(stream)


def test_an_event_of_the_cap_passes():
    assert parsed(b"data: " + b"x" * 994 + b"\n\n") == [b"x" * 994]


def test_time_is_linear_in_the_bytes():
    def seconds(kilobytes: int) -> float:
        stream = b"data: " + b"x" * (kilobytes * 1024) + b"\n\n"
        started = time.perf_counter()
        assert len(parsed(*(stream[at : at + 16] for at in range(0, len(stream), 16)), cap=1 << 30)) == 1
        return time.perf_counter() - started

    small, large = min(seconds(256) for _ in range(3)), min(seconds(2048) for _ in range(3))
    assert large < 8 * small * 3  # quadratic would be 64 times


@pytest.mark.parametrize(
    ("block", "together"), [(b"data: a\n\n", 1), (b"data: a\n\ndata: b\n\n", 2), (b"data: a\n", 0)]
)
def test_says_how_many_events_a_block_was_where_it_saw_that_at_once(block: bytes, together: int):
    parser = EventParser(1000)
    parser.feed(b"data: x\n\n" * 3)
    list(parser.feed(block))
    assert parser.together == together
