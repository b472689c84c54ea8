"""Servers that compress though they were told not to: undone by the piece, within our bounds, or refused."""

import asyncio
import gzip
import json
import tracemalloc
import zlib

import pytest

from router import UpstreamBroken, UpstreamFailed, UpstreamOverlong, UpstreamRefused, UpstreamSettings
from tests.fakes.routing import TARGET, Sent, chat
from tests.fakes.scripted_upstream import (
    CUT,
    EVENTS,
    HOLD,
    LAST_CHUNK,
    REPLY,
    STREAM_HEAD,
    Drip,
    Repeat,
    Wait,
    chunked,
    whole,
)
from tests.fakes.upstream_subjects import taken

BODY = json.dumps(REPLY).encode()
HEAD = STREAM_HEAD[:-2] + b"Content-Encoding: gzip\r\n\r\n"


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


class TestABody:
    @pytest.mark.parametrize(
        ("encoding", "data"),
        [
            pytest.param("gzip", gzip.compress(BODY), id="gzip"),
            pytest.param("x-gzip", gzip.compress(BODY), id="x-gzip"),
            pytest.param(" GZIP ", gzip.compress(BODY), id="GZIP"),
            pytest.param("gzip", gzip.compress(BODY[:9]) + gzip.compress(BODY[9:]), id="gzip twice over"),
            pytest.param("gzip", gzip.compress(b"") + gzip.compress(BODY), id="gzip of nothing, and of it"),
            pytest.param("deflate", zlib.compress(BODY), id="deflate"),
            pytest.param("deflate", raw_deflate(BODY), id="deflate without its head"),
            pytest.param("identity", BODY, id="identity"),
        ],
    )
    @pytest.mark.parametrize("in_drips", [False, True])
    async def test_is_given_plain(self, make, server, encoding, data, in_drips):
        answer = whole(data, f"Content-Encoding: {encoding}")
        server.will(Drip(answer, 7) if in_drips else answer)
        upstreams = make()
        for _ in range(2):
            assert (await upstreams.complete(TARGET, chat(), Sent().call())).body == BODY
        assert server.connections == 1

    @pytest.mark.parametrize("size", [65_535, 65_536, 65_537, 131_072, 3_000_000])
    @pytest.mark.parametrize("pad", ["x", "xy\u00e4" * 7 + "z"])
    async def test_is_given_whole_whatever_it_swells_to(self, make, server, size, pad):
        body = json.dumps({**REPLY, "pad": (pad * size)[:size]}).encode()
        server.will(whole(gzip.compress(body), "Content-Encoding: gzip"))
        assert (await make().complete(TARGET, chat(), Sent().call())).body == body

    @pytest.mark.parametrize(
        ("encoding", "data"),
        [
            pytest.param("br", BODY, id="brotli"),
            pytest.param("zstd", BODY, id="zstd"),
            pytest.param("gzip, gzip", gzip.compress(gzip.compress(BODY)), id="gzip within gzip"),
            pytest.param("something", BODY, id="unknown"),
            pytest.param("gzip", BODY, id="plain, called gzip"),
            pytest.param("gzip", gzip.compress(BODY)[:-1], id="gzip, cut"),
            pytest.param("gzip", gzip.compress(BODY) + b"x", id="gzip and more"),
            pytest.param("gzip", gzip.compress(BODY)[:-8] + b"\0" * 8, id="gzip with another sum"),
            pytest.param("deflate", BODY, id="plain, called deflate"),
            pytest.param("deflate", zlib.compress(BODY)[:-1], id="deflate, cut"),
        ],
    )
    async def test_that_cannot_be_read_is_broken(self, make, server, encoding, data):
        server.will(whole(data, f"Content-Encoding: {encoding}"))
        with pytest.raises(UpstreamBroken) as caught:
            await make().complete(TARGET, chat(), Sent().call())
        assert not caught.value.unbilled

    @pytest.mark.parametrize("kind", ["gzip", "deflate"])
    async def test_that_swells_past_its_bound_is_cut_short_in_little_memory(self, make, server, kind):
        pack = gzip.compress if kind == "gzip" else zlib.compress
        server.will(whole(pack(b" " * 200_000_000), f"Content-Encoding: {kind}"))
        upstreams = make(UpstreamSettings(reply_bytes_max=1_000_000))
        tracemalloc.start()
        with pytest.raises(UpstreamOverlong):
            await upstreams.complete(TARGET, chat(), Sent().call())
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 6_000_000

    async def test_that_swells_leaves_others_their_turn(self, make, server):
        server.will(whole(gzip.compress(b" " * 30_000_000), "Content-Encoding: gzip"))
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        counting = asyncio.ensure_future(count())
        with pytest.raises(UpstreamBroken):  # thirty million spaces are no JSON
            await make().complete(TARGET, chat(), Sent().call())
        counting.cancel()
        assert turns > 400


class TestAnErrorStatus:
    async def test_is_read_plain(self, make, server):
        refusal = json.dumps({"error": {"message": "too long", "code": "x"}}).encode()
        server.will(whole(gzip.compress(refusal), "Content-Encoding: gzip", status="400 X"))
        with pytest.raises(UpstreamRefused, match="too long"):
            await make().complete(TARGET, chat(), Sent().call())

    @pytest.mark.parametrize("encoding", ["br", "gzip"])
    async def test_says_enough_if_its_body_cannot_be_read(self, make, server, encoding):
        server.will(whole(b"???", f"Content-Encoding: {encoding}", status="503 X"))
        with pytest.raises(UpstreamFailed):
            await make().complete(TARGET, chat(), Sent().call())


class TestAStream:
    async def test_is_given_event_by_event_as_each_is_flushed(self, make, server):
        packer = zlib.compressobj(wbits=31)
        steps = [chunked(packer.compress(each) + packer.flush(zlib.Z_SYNC_FLUSH)) for each in EVENTS[:2]]
        server.will(HEAD, steps[0], Wait(0.05), steps[1], HOLD)
        stream = make(event_seconds=0.2).stream(TARGET, chat(stream=True), Sent().call())
        chunks, error = await taken(stream)
        assert len(chunks) == 2
        assert "`event`" in error.message

    async def test_whose_event_swells_past_its_bound_is_cut_short(self, make, server):
        packed = gzip.compress(b"data: " + b" " * 100_000_000)
        server.will(HEAD, chunked(packed), HOLD)
        stream = make(UpstreamSettings(event_bytes_max=1_000_000)).stream(TARGET, chat(stream=True), Sent().call())
        chunks, error = await taken(stream)
        assert (chunks, type(error)) == ([], UpstreamOverlong)
        await asyncio.wait_for(server.hung_up.wait(), 1)

    async def test_of_nothing_packed_without_end_is_cut_short(self, make, server):
        nothing = chunked(gzip.compress(b"") * 1000)
        server.will(HEAD, Repeat(nothing, 100_000), CUT)
        _, error = await taken(make(total_seconds=0.3).stream(TARGET, chat(stream=True), Sent().call()))
        assert "`total`" in error.message

    async def test_that_is_cut_within_its_encoding_is_broken(self, make, server):
        packed = gzip.compress(b"".join(EVENTS[:-1]))
        server.will(HEAD, chunked(packed[:-12]) + LAST_CHUNK)
        _, error = await taken(make().stream(TARGET, chat(stream=True), Sent().call()))
        assert type(error) is UpstreamBroken
