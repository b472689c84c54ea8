"""Ten answers, each cut in two at every byte: what comes of them is the same, wherever the network cuts."""

import gzip
import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from router import Upstreams
from tests.fakes.routing import TARGET, Sent, chat
from tests.fakes.scripted_upstream import (
    CUT,
    DONE,
    EVENTS,
    LAST_CHUNK,
    REPLY,
    ROLE,
    STREAM_HEAD,
    ScriptedUpstream,
    Step,
    Wait,
    chunked,
    finished,
    said,
    used,
    whole,
)
from tests.fakes.upstream_subjects import WHOLE_STREAM, taken

BODY = json.dumps(REPLY).encode()
CHUNKED_HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
TRAILERS = b"0\r\nX-Took: 7\r\nX-Request-Id: not-this\r\n\r\n"
APART = (Wait(0), Wait(0), Wait(0))  # turns of the loop, in which the client reads what there is


@dataclass(frozen=True)
class Answer:
    """Bytes that mean a reply (data is its body) or a stream (data of its events), and what follows them."""

    raw: bytes
    data: tuple[bytes, ...]
    streamed: bool = False
    then: tuple[Step, ...] = ()


def odd_chunks(data: bytes, size: int) -> bytes:
    return chunked(*(data[at : at + size] for at in range(0, len(data), size)))


def flushed(*blocks: bytes) -> list[bytes]:
    """The blocks in gzip, each to be understood without the next."""
    packer = zlib.compressobj(wbits=31)
    return [*(packer.compress(block) + packer.flush(zlib.Z_SYNC_FLUSH) for block in blocks), packer.flush()]


GIVEN = tuple(event[6:-2] for event in EVENTS[:-1])
LINES = (
    b"\xef\xbb\xbf: hello\r\n\r\nid: 1\r\nevent: x\r\n" + ROLE.replace(b"\n", b"\r\n"),
    b'data: {"id": "c-1",\rdata:"choices":\rdata: [{"index": 0, "delta": {"content": "Hi"}}]}\r\r',
    b": ping\n\nretry: 9\n" + finished(),
    b"data\n\n" + used() + DONE,
)
LINES_GIVEN = (
    ROLE[6:-2],
    b'{"id": "c-1", "choices": [{"index": 0, "delta": {"content": "Hi"}}]}',
    finished()[6:-2],
    used()[6:-2],
)
ANSWERS = {
    "with a length": Answer(whole(REPLY), (BODY,)),
    "in chunks with extensions and trailers": Answer(
        CHUNKED_HEAD + b"5;a=b\r\n" + BODY[:5] + b"\r\n" + odd_chunks(BODY[5:], 40) + TRAILERS, (BODY,)
    ),
    "until the connection closes": Answer(b"HTTP/1.1 200 OK\r\nX-A: b\r\n\r\n" + BODY, (BODY,), then=(CUT,)),
    "in gzip": Answer(whole(gzip.compress(BODY), "Content-Encoding: gzip"), (BODY,)),
    "after interim answers": Answer(
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\nContent-Length: 9\r\n\r\n"
        + whole(REPLY),
        (BODY,),
    ),
    "a stream": Answer(WHOLE_STREAM, GIVEN, streamed=True),
    "a stream in chunks that are no events": Answer(
        STREAM_HEAD + odd_chunks(b"".join(EVENTS), 61) + TRAILERS, GIVEN, streamed=True
    ),
    "a stream of odd lines, until the connection closes": Answer(
        b"HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + b"".join(LINES),
        LINES_GIVEN,
        streamed=True,
        then=(CUT,),
    ),
    "a stream without DONE": Answer(
        STREAM_HEAD + chunked(ROLE, said("Hello\u2028"), finished(), used()) + LAST_CHUNK,
        (ROLE[6:-2], said("Hello\u2028")[6:-2], finished()[6:-2], used()[6:-2]),
        streamed=True,
    ),
    "a stream in gzip": Answer(
        STREAM_HEAD[:-2] + b"Content-Encoding: gzip\r\n\r\n" + chunked(*flushed(*EVENTS)) + LAST_CHUNK,
        GIVEN,
        streamed=True,
    ),
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
async def test_an_answer_is_the_same_wherever_it_is_cut(
    make: Callable[..., Upstreams], server: ScriptedUpstream, answer: Answer, record_property
):
    upstreams, splits = make(), range(len(answer.raw) + 1)
    for at in splits:
        server.will(answer.raw[:at], *APART, answer.raw[at:], *answer.then)
        if answer.streamed:
            chunks, error = await taken(upstreams.stream(TARGET, chat(stream=True), Sent().call()))
            assert error is None, at
            assert tuple(chunk.data for chunk in chunks) == answer.data, at
        else:
            assert (await upstreams.complete(TARGET, chat(), Sent().call())).body == answer.data[0], at
    assert len(server.requests) == len(splits)
    # What follows [DONE] is read to its end while the next request has another connection.
    assert len(splits) == server.connections if answer.then else server.connections <= 3
    record_property("splits", len(splits))
