"""Where a message ends, however its bytes arrive."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.http1 import Malformed, Reader

COUNTED = b"HTTP/1.1 200 OK\r\nX: y\r\nContent-Length: 11\r\n\r\nhello world"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"
BARE = b"GET /x HTTP/1.1\r\nHost: y\r\n\r\n"


def fed(parts):
    reader, body, ends = Reader(), b"", []
    for part in parts:
        body += reader.feed(part)
        ends.append(reader.complete)
    return body, ends


@pytest.mark.parametrize("message", [COUNTED, CHUNKED])
@given(cuts=st.lists(st.integers(1, 60), max_size=12))
def test_a_message_is_the_same_however_it_is_cut(message, cuts):
    places = [0, *sorted({cut for cut in cuts if cut < len(message)}), len(message)]
    body, ends = fed([message[a:b] for a, b in pairwise(places)])
    assert body == b"hello world"
    assert ends == [False] * (len(ends) - 1) + [True]


def test_messages_follow_each_other():
    assert fed([BARE, COUNTED, CHUNKED, BARE]) == (b"hello worldhello world", [True] * 4)


@pytest.mark.parametrize("message", [COUNTED, CHUNKED, BARE])
def test_what_follows_an_end_unasked_is_malformed(message):
    with pytest.raises(Malformed):
        fed([message + b"more"])


def test_a_length_that_is_no_number_is_malformed():
    with pytest.raises(Malformed):
        fed([b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n"])
    with pytest.raises(Malformed):
        fed([CHUNKED.replace(b"\r\n5\r\n", b"\r\nfive\r\n")])
