"""Connections to a provider: made, used again, left, given up. A request that left is never sent again."""

import asyncio
import json
import os
import socket
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress

import pytest

from router import (
    UpstreamBroken,
    UpstreamError,
    UpstreamOverlong,
    UpstreamRefused,
    Upstreams,
    UpstreamSettings,
    UpstreamTimeout,
)
from tests.fakes.routing import TARGET, Sent, chat
from tests.fakes.scripted_upstream import (
    CUT,
    EVENTS,
    HALF_CLOSE,
    HOLD,
    LAST_CHUNK,
    REPLY,
    RESET,
    STREAM_HEAD,
    SWALLOW,
    Repeat,
    ScriptedUpstream,
    Wait,
    chunked,
    deaf_url,
    event,
    finished,
    said,
    whole,
)
from tests.fakes.upstream_subjects import SHORT, TOO_LONG, provider_says, taken

BIG = 16_000_000
SLOW_SECONDS = float(os.environ.get("PENSTOCK_TEST_SLOW_SECONDS", "1"))


async def replied(upstreams: Upstreams) -> bool:
    async with asyncio.timeout(TOO_LONG):
        reply = await upstreams.complete(TARGET, chat(), Sent().call())
    return json.loads(reply.body) == REPLY


async def until(holds: Callable[[], bool], seconds: float = 1.0) -> None:
    """Wait for something that nobody announces."""
    async with asyncio.timeout(seconds):
        while not holds():
            await asyncio.sleep(0.005)


class TestTheyAreUsedAgain:
    async def test_one_after_the_other(self, make, server):
        server.will(whole(REPLY))
        upstreams = make()
        assert all([await replied(upstreams) for _ in range(20)])
        assert server.connections == 1

    async def test_by_streams_and_whole_answers_alike(self, make, server):
        upstreams = make()
        for _ in range(5):
            server.will(whole(REPLY))
            assert await replied(upstreams)
            server.will(STREAM_HEAD + chunked(*EVENTS) + LAST_CHUNK)
            _, error = await taken(upstreams.stream(TARGET, chat(stream=True), Sent().call()))
            assert error is None
        assert server.connections == 1

    @pytest.mark.parametrize("status", ["400 X", "429 X", "500 X"])
    async def test_after_an_error_status_that_came_whole(self, make, server, status):
        upstreams = make()
        for answer in (provider_says(status), whole(REPLY)):
            server.will(answer)
            try:
                await replied(upstreams)
            except UpstreamError:
                continue
        assert server.connections == 1

    async def test_by_five_hundred_at_a_time_and_never_more_than_are_needed(self, make, server):
        server.will(whole(REPLY))
        upstreams = make()
        for _ in range(2):
            assert all(await asyncio.gather(*(replied(upstreams) for _ in range(500))))
        assert server.connections == 500
        assert len(server.requests) == 1000

    async def test_by_five_hundred_streams_at_a_time(self, make, server):
        server.will(STREAM_HEAD, *(chunked(each) for each in EVENTS), LAST_CHUNK)
        upstreams = make()
        streams = (upstreams.stream(TARGET, chat(stream=True), Sent().call()) for _ in range(500))
        results = await asyncio.gather(*(taken(stream) for stream in streams))
        assert {len(chunks) for chunks, _ in results} == {5}
        assert {error for _, error in results} == {None}

    async def test_and_each_gets_its_own_answer(self, make, server: ScriptedUpstream):
        server.answer = lambda: (whole({"echo": server.requests[-1].json["messages"][0]["content"]}),)
        upstreams = make()

        async def asked(number: int) -> bool:
            reply = await upstreams.complete(TARGET, chat(f"number {number} " * (number % 7)), Sent().call())
            return json.loads(reply.body)["echo"] == f"number {number} " * (number % 7)

        for _ in range(3):
            assert all(await asyncio.gather(*(asked(number) for number in range(100))))
        assert server.connections <= 100


class TestTheyAreClosed:
    async def test_after_they_were_idle_for_too_long(self, make, server):
        server.will(whole(REPLY))
        upstreams = make(UpstreamSettings(keepalive_seconds=0.1))
        assert all(await asyncio.gather(*(replied(upstreams) for _ in range(10))))
        assert server.closed == 0
        await until(lambda: server.closed == 10)

    async def test_when_nothing_is_to_be_sent_any_more(self, make, server):
        server.will(whole(REPLY))
        upstreams = make()
        assert all(await asyncio.gather(*(replied(upstreams) for _ in range(10))))
        await upstreams.close()
        await until(lambda: server.closed == 10)

    async def test_with_what_is_under_way_which_fails(self, make, server):
        upstreams = make()
        server.will(HOLD)
        waiting = asyncio.ensure_future(replied(upstreams))
        await server.asked.wait()
        await upstreams.close()
        with pytest.raises(UpstreamBroken):
            await waiting
        await until(lambda: server.closed == 1)


class TestThatBecameStale:
    async def test_is_not_used_if_the_server_closed_it(self, make, server):
        server.will(whole(REPLY), CUT)
        upstreams, sent = make(), Sent()
        for _ in range(3):
            await upstreams.complete(TARGET, chat(), sent.call())
            await until(lambda: server.closed == server.connections)
            await asyncio.sleep(0.01)
        assert (server.connections, len(server.heads), sent.times) == (3, 3, 3)

    async def test_is_not_used_if_the_server_half_closed_it(self, make, server):
        upstreams = make()
        server.will(whole(REPLY), HALF_CLOSE)
        for _ in range(2):
            assert await replied(upstreams)
            await asyncio.sleep(0.02)
        assert server.connections == 2
        await until(lambda: server.closed == 2)  # by us, since the server waits

    @pytest.mark.parametrize("how", [socket.SHUT_RDWR, socket.SHUT_WR])
    async def test_in_this_very_moment_carries_nothing_twice(self, make, server, how):
        upstreams, sent = make(), Sent()
        server.will(whole(REPLY))
        assert await replied(upstreams)
        server.drop(how)  # and the loop does not turn before the next request is written
        with suppress(UpstreamBroken):  # unless it is noticed, and another one used
            await upstreams.complete(TARGET, chat(), sent.call())
        assert sent.times == 1
        assert len(server.heads) <= 2

    @pytest.mark.parametrize("end", [CUT, RESET, HALF_CLOSE])
    async def test_as_the_request_arrives_carries_nothing_twice(self, make, server, end):
        upstreams, sent = make(), Sent()
        for _ in range(3):
            server.will(whole(REPLY))
            await upstreams.complete(TARGET, chat(), sent.call())
            server.will(end)
            with pytest.raises(UpstreamBroken):
                await upstreams.complete(TARGET, chat(), sent.call())
        assert (len(server.heads), sent.times) == (6, 6)

    @pytest.mark.parametrize("end", [CUT, RESET])
    async def test_before_it_carried_anything_is_an_error(self, make, server, end):
        server.greeting = (end,)
        upstreams, sent = make(), Sent()
        for times in range(3):
            with pytest.raises(UpstreamError) as caught:
                await upstreams.complete(TARGET, chat(), sent.call())
            assert caught.value.unbilled or sent.times == times + 1
        assert not server.heads


class TestASlowReader:
    async def test_holds_the_provider_up_and_loses_nothing(self, make, server):
        event_count, words = 600, "x" * 65536
        server.will(STREAM_HEAD, Repeat(chunked(said(words)), event_count), chunked(finished(), EVENTS[-1]), LAST_CHUNK)
        got = 0
        async with aclosing(make(total_seconds=60).stream(TARGET, chat(stream=True), Sent().call())) as stream:
            async for _ in stream:
                got += 1
                if got == 1:
                    await asyncio.sleep(SLOW_SECONDS)
                    assert server.written < 16_000_000  # of 39 million: as much as the kernel's buffers take
        assert got == event_count + 1

    async def test_of_whom_several_share_nothing(self, make, server):
        server.will(STREAM_HEAD, Repeat(chunked(said("x" * 65536)), 200), chunked(finished(), EVENTS[-1]), LAST_CHUNK)
        upstreams = make()
        async with aclosing(upstreams.stream(TARGET, chat(stream=True), Sent().call())) as slow:
            await anext(slow)
            chunks, error = await taken(upstreams.stream(TARGET, chat(stream=True), Sent().call()))
            assert (len(chunks), error) == (201, None)

    async def test_who_leaves_hangs_up(self, make, server):
        server.will(STREAM_HEAD, Repeat(chunked(said("x" * 65536)), 600))
        upstreams = make()
        async with aclosing(upstreams.stream(TARGET, chat(stream=True), Sent().call())) as stream:
            await anext(stream)
            await asyncio.sleep(0.2)
        await asyncio.wait_for(server.hung_up.wait(), 1)
        server.will(whole(REPLY))
        assert await replied(upstreams)
        assert server.connections == 2


class TestLeaving:
    """Cancelling ends the connection within a second, and no other request ever meets it."""

    async def left(self, upstreams: Upstreams, server: ScriptedUpstream, waiting: Awaitable[object]) -> None:
        task = asyncio.ensure_future(waiting)
        await asyncio.wait_for(server.asked.wait(), 1)
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: server.closed == 1)
        server.reads_bodies = True
        server.will(whole(REPLY))
        assert await replied(upstreams)
        assert server.connections == 2

    async def test_before_it_is_connected(self, make):
        with deaf_url() as deaf:
            sent, upstreams = Sent(), make(base_url=deaf)
            task = asyncio.ensure_future(upstreams.complete(TARGET, chat(), sent.call()))
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(task, 1)
        assert sent.times == 0

    async def test_while_sixteen_megabytes_are_sent(self, make, server):
        server.reads_bodies = False
        server.will(Wait(TOO_LONG))
        upstreams = make()
        task = asyncio.ensure_future(upstreams.complete(TARGET, chat("x" * BIG), Sent().call()))
        await asyncio.wait_for(server.asked.wait(), 1)
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, 1)
        server.reads_bodies = True
        server.will(whole(REPLY))
        assert await replied(upstreams)
        assert server.connections == 2

    async def test_before_the_head(self, make, server):
        server.will(HOLD)
        upstreams = make()
        await self.left(upstreams, server, upstreams.complete(TARGET, chat(), Sent().call()))

    async def test_within_the_head(self, make, server):
        server.will(whole(REPLY)[:30], HOLD)
        upstreams = make()
        await self.left(upstreams, server, upstreams.complete(TARGET, chat(), Sent().call()))

    async def test_within_the_body(self, make, server):
        server.will(whole(REPLY)[:-30], HOLD)
        upstreams = make()
        await self.left(upstreams, server, upstreams.complete(TARGET, chat(), Sent().call()))

    async def test_within_the_body_of_an_error(self, make, server):
        server.will(provider_says("503 X")[:-3], HOLD)
        upstreams = make(UpstreamSettings(error_seconds=5))
        await self.left(upstreams, server, upstreams.complete(TARGET, chat(), Sent().call()))

    async def test_before_the_first_event(self, make, server):
        server.will(STREAM_HEAD, HOLD)
        upstreams = make()
        await self.left(upstreams, server, anext(upstreams.stream(TARGET, chat(stream=True), Sent().call())))

    async def test_within_a_stream(self, make, server):
        server.will(STREAM_HEAD + chunked(*EVENTS[:3]), HOLD)
        upstreams = make()
        await self.left(upstreams, server, taken(upstreams.stream(TARGET, chat(stream=True), Sent().call())))

    async def test_many_leaves_nothing_behind(self, make, server):
        server.will(HOLD)
        upstreams = make()
        waiting = [asyncio.ensure_future(upstreams.complete(TARGET, chat(), Sent().call())) for _ in range(100)]
        await until(lambda: len(server.requests) == 100)
        for each in waiting:
            each.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        await until(lambda: server.closed == 100)


class TestTimeRunsOut:
    async def late(self, make, server, *steps, **limits: float) -> UpstreamTimeout:
        server.will(*steps)
        loop = asyncio.get_running_loop()
        began = loop.time()
        with pytest.raises(UpstreamTimeout) as caught:
            await make(**limits).complete(TARGET, chat(), Sent().call())
        assert loop.time() - began < 1
        await asyncio.wait_for(server.hung_up.wait(), 1)
        return caught.value

    async def test_for_the_answer_before_its_head(self, make, server):
        assert "`answer`" in (await self.late(make, server, HOLD, answer_seconds=0.1)).message

    async def test_for_the_answer_within_its_body(self, make, server):
        assert "`answer`" in (await self.late(make, server, whole(REPLY)[:-9], HOLD, answer_seconds=0.1)).message

    async def test_for_everything(self, make, server):
        assert "`total`" in (await self.late(make, server, HOLD, total_seconds=0.1)).message

    async def test_for_an_answer_in_drips(self, make, server):
        drips = [step for byte in whole(REPLY) for step in (bytes([byte]), Wait(0.01))]
        assert "`answer`" in (await self.late(make, server, *drips, answer_seconds=0.1)).message

    async def test_for_an_event_though_the_first_was_given_more(self, make, server):
        server.will(STREAM_HEAD + chunked(*EVENTS[:2]), HOLD)
        async with asyncio.timeout(1):
            chunks, error = await taken(make(event_seconds=0.1).stream(TARGET, chat(stream=True), Sent().call()))
        assert len(chunks) == 2
        assert "`event`" in error.message
        await asyncio.wait_for(server.hung_up.wait(), 1)

    async def test_for_an_event_each_time_anew(self, make, server):
        words = [step for _ in range(6) for step in (Wait(0.1), chunked(said("a")))]
        server.will(STREAM_HEAD, *words, HOLD)
        chunks, error = await taken(
            make(answer_seconds=0.2, event_seconds=0.2).stream(TARGET, chat(stream=True), Sent().call())
        )
        assert len(chunks) == 6
        assert "`event`" in error.message

    async def test_for_everything_though_there_is_always_more(self, make, server):
        server.will(STREAM_HEAD, Repeat(chunked(said("a" * 1000)), 10_000))
        loop, began = asyncio.get_running_loop(), asyncio.get_running_loop().time()
        stream = make(total_seconds=0.3).stream(TARGET, chat(stream=True), Sent().call())
        chunks, error = await taken(stream, pause_seconds=0.002)
        assert "`total`" in error.message
        assert loop.time() - began < 5  # not the twenty seconds of all; what came together is given together
        assert chunks
        await asyncio.wait_for(server.hung_up.wait(), 1)

    async def test_to_send_a_large_request(self, make, server):
        server.reads_bodies = False
        server.will(Wait(TOO_LONG))
        with pytest.raises(UpstreamTimeout, match="`answer`") as caught:
            await make(answer_seconds=0.2).complete(TARGET, chat("x" * BIG), Sent().call())
        assert not caught.value.unbilled

    async def test_to_connect_if_the_answer_has_even_less(self, make):
        with deaf_url() as deaf:
            sent, upstreams = Sent(), make(base_url=deaf, **SHORT)
            with pytest.raises(UpstreamTimeout, match="`answer`") as caught:
                async with asyncio.timeout(2):
                    await upstreams.complete(TARGET, chat(), sent.call())
        assert (caught.value.unbilled, sent.times) == (True, 0)


class TestAnEarlyAnswer:
    """The server answers before it has read all of the request."""

    async def test_that_refuses_is_heard(self, make, server):
        server.reads_bodies = False
        server.will(provider_says("413 Too Large", "too much"), Wait(TOO_LONG))
        upstreams = make()
        with pytest.raises(UpstreamRefused, match="too much") as caught:
            async with asyncio.timeout(TOO_LONG / 2):
                await upstreams.complete(TARGET, chat("x" * BIG), Sent().call())
        assert caught.value.status == 413
        server.reads_bodies = True
        server.will(whole(REPLY))
        assert await replied(upstreams)
        assert server.connections == 2

    async def test_that_is_a_reply_is_taken_with_the_request_sent_to_its_end(self, make, server):
        server.reads_bodies = False
        server.will(whole(REPLY)[:-5], Wait(0.05), SWALLOW, whole(REPLY)[-5:])
        upstreams = make()
        reply = await upstreams.complete(TARGET, chat("x" * BIG), Sent().call())
        assert json.loads(reply.body) == REPLY


class TestABound:
    async def test_on_a_reply_that_says_its_length(self, make, server):
        server.will(whole(b"x" * 200_000))
        with pytest.raises(UpstreamOverlong):
            await make(UpstreamSettings(reply_bytes_max=100_000)).complete(TARGET, chat(), Sent().call())

    async def test_on_an_event_within_many(self, make, server):
        server.will(STREAM_HEAD + chunked(*EVENTS[:2], said("y" * 5000)), HOLD)
        stream = make(UpstreamSettings(event_bytes_max=4096)).stream(TARGET, chat(stream=True), Sent().call())
        chunks, error = await taken(stream)
        assert len(chunks) == 2
        assert type(error) is UpstreamOverlong
        await asyncio.wait_for(server.hung_up.wait(), 1)

    async def test_on_an_error_whose_status_says_enough(self, make, server):
        server.will(b"HTTP/1.1 400 X\r\nContent-Length: 99999999\r\n\r\n", Repeat(b"x" * 65536, 1500), HOLD)
        with pytest.raises(UpstreamRefused, match="refused the request with status 400"):
            await make().complete(TARGET, chat(), Sent().call())
        await asyncio.wait_for(server.hung_up.wait(), 1)

    @pytest.mark.parametrize("size", [1, 65_535, 65_536, 262_143, 262_144, 262_145, 1_000_000])
    async def test_is_not_met_by_a_reply_of_any_size(self, make, server, size):
        body = json.dumps({**REPLY, "pad": "x" * size}).encode()
        server.will(whole(body))
        assert (await make().complete(TARGET, chat(), Sent().call())).body == body

    @pytest.mark.parametrize("size", [65_535, 262_000, 262_144, 600_000])
    async def test_is_not_met_by_a_request_of_any_size(self, make, server, size):
        server.will(whole(REPLY))
        await make().complete(TARGET, chat("x" * size), Sent().call())
        assert server.requests[0].json["messages"][0]["content"] == "x" * size

    async def test_is_not_met_by_an_event_of_a_megabyte(self, make, server):
        server.will(STREAM_HEAD + chunked(event({"choices": [], "pad": "x" * 1_000_000})), CUT)
        chunks, _ = await taken(make().stream(TARGET, chat(stream=True), Sent().call()))
        assert len(chunks[0].data) > 1_000_000
