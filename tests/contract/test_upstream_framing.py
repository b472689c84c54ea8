"""Where an answer begins and ends on its connection: what a server may send, and what it gets away with."""

import asyncio
import json

import pytest

from router import UpstreamBroken, UpstreamError, UpstreamFailed
from tests.fakes.routing import TARGET, Sent, chat
from tests.fakes.scripted_upstream import CUT, HOLD, LAST_CHUNK, REPLY, Drip, Repeat, Wait, chunked, whole
from tests.fakes.upstream_subjects import SHORT, TOO_LONG

BODY = json.dumps(REPLY).encode()
OTHERS = whole({**REPLY, "id": "somebody else's"})


def raw(*lines: str, body: bytes = BODY) -> bytes:
    return "\r\n".join(["HTTP/1.1 200 OK", *lines, "", ""]).encode("latin-1") + body


LENGTH = f"Content-Length: {len(BODY)}"
CHUNKED = "Transfer-Encoding: chunked"


async def replied(upstreams) -> dict[str, object]:
    async with asyncio.timeout(TOO_LONG):
        return json.loads((await upstreams.complete(TARGET, chat(), Sent().call())).body)


class TestAnAnswerIsWhole:
    @pytest.mark.parametrize(
        ("steps", "is_kept"),
        [
            pytest.param((raw(LENGTH),), True, id="with a length"),
            pytest.param((raw(CHUNKED, body=chunked(BODY) + LAST_CHUNK),), True, id="in a chunk"),
            pytest.param(
                (raw(CHUNKED, body=b"000" + chunked(BODY) + b"00" + LAST_CHUNK),), True, id="chunk with zeros"
            ),
            pytest.param((raw("transfer-encoding: CHUNKED", body=chunked(BODY) + LAST_CHUNK),), True, id="shouted"),
            pytest.param((raw(CHUNKED, body=chunked(BODY) + b"0\r\nA: b\r\n\r\n"),), True, id="with trailer"),
            pytest.param((raw("Connection: keep-alive, x", LENGTH),), True, id="that says it is kept"),
            pytest.param((raw("Connection: close", LENGTH),), False, id="that says it closes and does not"),
            pytest.param((raw("Connection: close", LENGTH), CUT), False, id="that says it closes"),
            pytest.param((raw(), CUT), False, id="until the connection closes"),
            pytest.param((raw("Connection: keep-alive"), CUT), False, id="until it closes, though kept"),
            pytest.param((Drip(raw(), 9), CUT), False, id="in drips until the connection closes"),
            pytest.param((raw(LENGTH).replace(b"1.1", b"1.0"),), False, id="of HTTP/1.0"),
            pytest.param((raw("Connection: keep-alive", LENGTH).replace(b"1.1", b"1.0"),), True, id="of 1.0, kept"),
            pytest.param((b"HTTP/1.1 100 Continue\r\n\r\n" * 9 + raw(LENGTH),), True, id="after interim answers"),
            pytest.param(
                (b"HTTP/1.1 102 X\r\n\r\n", Wait(0.02), raw(LENGTH)), True, id="after an interim answer alone"
            ),
            pytest.param((raw(LENGTH).replace(b" OK", b""),), True, id="without a reason"),
            pytest.param((raw(LENGTH, "X: \xe9\xff"),), True, id="with a header in Latin-1"),
            pytest.param((raw(LENGTH, *(f"X-{at}: y" for at in range(90))),), True, id="with ninety headers"),
            pytest.param((raw(LENGTH, "X: " + "y" * 7000),), True, id="with a header of 7 KB"),
        ],
    )
    async def test_and_its_connection_kept_if_it_can_be(self, make, server, steps, is_kept):
        server.will(*steps)
        upstreams = make()
        for _ in range(3):
            assert await replied(upstreams) == REPLY
        assert server.connections == (1 if is_kept else 3)

    async def test_and_of_a_repeated_header_the_first_counts(self, make, server):
        server.will(whole(REPLY, "X-Request-ID: one", "x-request-id: two"))
        assert (await make().complete(TARGET, chat(), Sent().call())).provider_request_id == "one"

    async def test_and_a_trailer_is_no_header(self, make, server):
        server.will(raw(CHUNKED, body=chunked(BODY) + b"0\r\nx-request-id: late\r\n\r\n"))
        assert (await make().complete(TARGET, chat(), Sent().call())).provider_request_id == "c-1"

    async def test_and_an_interim_header_is_not_its(self, make, server):
        server.will(b"HTTP/1.1 103 Early Hints\r\nx-request-id: early\r\n\r\n" + whole(REPLY))
        assert (await make().complete(TARGET, chat(), Sent().call())).provider_request_id == "c-1"

    @pytest.mark.parametrize("size", [300_000, 3_000_000])
    async def test_of_megabytes_until_the_connection_closes(self, make, server, size):
        body = json.dumps({**REPLY, "pad": "x" * size}).encode()
        server.will(raw(body=body), CUT)
        for _ in range(2):
            assert (await make().complete(TARGET, chat(), Sent().call())).body == body


class TestAnAnswerIsBroken:
    @pytest.mark.parametrize(
        "steps",
        [
            pytest.param((raw(LENGTH, CHUNKED, body=chunked(BODY) + LAST_CHUNK),), id="length and chunks"),
            pytest.param((raw(CHUNKED, LENGTH, body=chunked(BODY) + LAST_CHUNK),), id="chunks and length"),
            pytest.param((raw("Content-Length: 5", LENGTH),), id="two lengths"),
            pytest.param((raw("Content-Length: -5"),), id="a negative length"),
            pytest.param((raw("Content-Length: 5x"),), id="a length that is no number"),
            pytest.param((raw("Content-Length: 99999999999999999999999"),), id="a length past all bounds"),
            pytest.param((raw("Content-Length: 5, 5"),), id="a list of lengths"),
            pytest.param((raw("Transfer-Encoding: gzip, chunked", body=chunked(BODY) + LAST_CHUNK),), id="coded"),
            pytest.param((raw("Transfer-Encoding: identity"), CUT), id="coded as identity"),
            pytest.param((raw("Transfer-Encoding: xchunked"), CUT), id="coded as something like chunked"),
            pytest.param((raw(CHUNKED, body=b"-5\r\n" + BODY),), id="a negative chunk"),
            pytest.param((raw(CHUNKED, body=b"0x5\r\n" + BODY),), id="a chunk in C"),
            pytest.param((raw(CHUNKED, body=b"f" * 17 + b"\r\n" + BODY),), id="a chunk past all bounds"),
            pytest.param((raw(CHUNKED, body=b"5\r\n" + BODY + b"\r\n"),), id="a chunk longer than it says"),
            pytest.param((raw(CHUNKED, body=chunked(BODY)), CUT), id="no last chunk"),
            pytest.param((raw(CHUNKED, body=chunked(BODY) + b"0\r\n"), CUT), id="half of the last chunk"),
            pytest.param((raw(LENGTH, body=BODY[:-1]), CUT), id="a byte short"),
            pytest.param((raw(LENGTH, "X Y: z"),), id="a header's name with a space"),
            pytest.param((raw(LENGTH, "X: a\x00b"),), id="a header with a NUL"),
            pytest.param((b"HTTP/1.1 OK\r\n\r\n",), id="no status"),
            pytest.param((b"HTTP/1.1 99 OK\r\n\r\n",), id="half a status"),
            pytest.param((b"HTTP/9.9 200 OK\r\n\r\n",), id="another HTTP"),
            pytest.param((b"SSH-2.0-OpenSSH_9.9\r\n",), id="another protocol"),
            pytest.param((b"\x15\x03\x01\x00\x02\x02\x46",), id="TLS"),
            pytest.param((CUT,), id="nothing"),
            pytest.param((b"HTTP/1.1 101 X\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n", BODY), id="an upgrade"),
            pytest.param((raw(LENGTH, *(f"X-{at}: {'y' * 4000}" for at in range(300))),), id="a head of 1.2 MB"),
            pytest.param((b"HTTP/1.1 200 OK\r\nX: ", Repeat(b"y" * 65536, 200), HOLD), id="a header without end"),
        ],
    )
    async def test_and_its_connection_is_closed(self, make, server, steps):
        server.will(*steps)
        upstreams, sent = make(), Sent()
        with pytest.raises(UpstreamError) as caught:
            async with asyncio.timeout(TOO_LONG):
                await upstreams.complete(TARGET, chat(), sent.call())
        assert type(caught.value) is UpstreamBroken
        assert (caught.value.unbilled, sent.times, len(server.requests)) == (False, 1, 1)
        server.will(whole(REPLY))
        assert await replied(upstreams) == REPLY
        assert server.connections <= 2

    @pytest.mark.parametrize(
        "flood",
        [
            pytest.param((b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000), id="interim answers"),
            pytest.param((raw(CHUNKED, body=b"0\r\n"), b"X: " + b"y" * 65536 + b"\r\n"), id="trailers"),
            pytest.param((raw(CHUNKED, body=b"0\r\nX: "), b"y" * 65536), id="a trailer"),
            pytest.param((raw(CHUNKED, body=b"5;a="), b"y" * 65536), id="a chunk's extension"),
            pytest.param((b"", b"\r\n" * 32768), id="empty lines"),
            pytest.param((b"HTTP/1.1 101 X\r\n\r\n", b"y" * 65536), id="another protocol"),
        ],
    )
    async def test_that_has_no_end(self, make, server, flood):
        server.will(flood[0], Repeat(flood[1], 100_000))
        with pytest.raises(UpstreamError) as caught:
            async with asyncio.timeout(TOO_LONG):
                await make(**SHORT).complete(TARGET, chat(), Sent().call())
        assert not caught.value.unbilled
        await asyncio.wait_for(server.hung_up.wait(), 1)


class TestWhatFollowsAnAnswer:
    @pytest.mark.parametrize("extra", [OTHERS, b"x", b"HTTP/1.1 100 Continue\r\n\r\n", b"\x00" * 4096])
    async def test_is_nobodys_answer(self, make, server, extra):
        server.will(whole(REPLY) + extra)
        upstreams = make()
        for _ in range(3):
            try:
                assert await replied(upstreams) == REPLY
            except UpstreamBroken:
                continue
        assert server.connections == 3

    @pytest.mark.parametrize("extra", [OTHERS, b"x", b"\r\n", OTHERS[:30]])
    async def test_is_nobodys_answer_if_it_comes_later(self, make, server, extra):
        server.will(whole(REPLY))
        upstreams = make()
        assert await replied(upstreams) == REPLY
        server.say(extra)
        await asyncio.sleep(0.02)
        assert await replied(upstreams) == REPLY

    async def test_of_nothing_but_a_status_is_nobodys_answer(self, make, server):
        server.will(b"HTTP/1.1 204 No\r\n\r\n" + OTHERS)
        upstreams = make()
        for _ in range(2):
            with pytest.raises(UpstreamFailed):
                await replied(upstreams)
        assert server.connections == 2

    async def test_or_comes_before_it_was_asked_for_is_nobodys_answer(self, make, server):
        server.greeting = (b"220 welcome\r\n",)
        server.will(whole(REPLY))
        upstreams = make(**SHORT)
        with pytest.raises(UpstreamError):
            await replied(upstreams)
        server.greeting = ()
        assert await replied(upstreams) == REPLY
