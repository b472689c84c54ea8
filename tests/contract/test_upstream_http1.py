"""What our own carrier does beyond the contract of both."""

import asyncio
import json
import socket
from collections.abc import Callable
from functools import partial

import pytest

from router import UpstreamBroken, Upstreams, UpstreamSettings, UpstreamUnreachable
from tests.fakes.routing import TARGET, Sent, chat
from tests.fakes.scripted_upstream import FIN, HOLD, REPLY, ScriptedUpstream, Wait, whole


@pytest.fixture
def make(make_over) -> Callable[..., Upstreams]:
    return partial(make_over, "http1")


async def replied(upstreams: Upstreams) -> bool:
    return json.loads((await upstreams.complete(TARGET, chat(), Sent().call())).body) == REPLY


async def test_the_connection_that_was_used_last_is_used_next_so_that_the_others_grow_old(make, server):
    server.will(Wait(0.02), whole(REPLY))
    upstreams = make(UpstreamSettings(keepalive_seconds=0.3))
    assert all(await asyncio.gather(*(replied(upstreams) for _ in range(10))))
    for _ in range(20):
        assert await replied(upstreams)
    assert (server.connections, server.closed) == (10, 9)


@pytest.mark.parametrize("how", [socket.SHUT_RDWR, socket.SHUT_WR])
async def test_an_end_that_the_loop_has_yet_to_notice_is_noticed(make, server, how):
    server.will(whole(REPLY))
    upstreams, sent = make(), Sent()
    assert await replied(upstreams)
    server.drop(how)
    assert json.loads((await upstreams.complete(TARGET, chat(), sent.call())).body) == REPLY
    assert (server.connections, len(server.heads), sent.times) == (2, 2, 1)


@pytest.mark.parametrize("extra", [whole({**REPLY, "id": "somebody else's"}), b"x", b"\r\n"])
@pytest.mark.parametrize("noticed", [True, False])
async def test_a_connection_on_which_something_came_unasked_carries_nothing_more(make, server, extra, noticed):
    server.will(whole(REPLY))
    upstreams = make()
    assert await replied(upstreams)
    server.say(extra)
    if noticed:
        await asyncio.sleep(0.02)
    assert await replied(upstreams)
    assert server.connections == 2


async def test_closing_makes_no_answer_whole_that_ends_by_closing(make, server: ScriptedUpstream):
    upstreams = make()
    server.will(b"HTTP/1.1 200 OK\r\n\r\n" + json.dumps(REPLY).encode(), HOLD)
    waiting = asyncio.ensure_future(replied(upstreams))
    await server.asked.wait()
    await asyncio.sleep(0.05)
    await upstreams.close()
    with pytest.raises(UpstreamBroken):
        await waiting


async def test_an_end_before_the_request_was_taken_is_an_end_at_once(make, server: ScriptedUpstream):
    server.reads_bodies = False
    server.will(Wait(0.2), FIN, Wait(5))  # when no more of it goes into the socket
    async with asyncio.timeout(2):
        with pytest.raises(UpstreamBroken):
            await make().complete(TARGET, chat("x" * 16_000_000), Sent().call())


async def test_nothing_is_sent_once_it_is_closed(make, server: ScriptedUpstream):
    upstreams, sent = make(), Sent()
    await upstreams.close()
    with pytest.raises(UpstreamUnreachable):
        await upstreams.complete(TARGET, chat(), sent.call())
    assert sent.times == 0
