"""The edge with one caller and no socket: who is let in when, and what a caller who stops reading keeps others from."""

import asyncio
import gc
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from cost import Turn
from gateway.wiring import Platform
from governance import NewKey
from kernel import ModelRequest
from router import UpstreamBroken
from tests.fakes.chats import ROLE, TAIL, WORD, RawCaller, Scripted, chat_with, company


@pytest.fixture
async def platform(tmp_path: Path) -> AsyncIterator[Platform]:
    async with company(tmp_path) as made:
        yield made


def asking(**members: object) -> bytes:
    return msgspec.json.encode({"model": "one", "messages": [{"role": "user", "content": "hi"}], **members})


async def test_a_key_that_is_revoked_while_its_request_still_comes_is_not_served(platform: Platform) -> None:
    platform.edge.chat = chat_with(platform, upstreams := Scripted(one=[ROLE, WORD, TAIL]))
    key = await platform.keys.create(NewKey(name="k", app="a"), by="test")
    late = RawCaller(platform, key.key, asking(stream=True)).start()
    await asyncio.sleep(0.01)
    await platform.keys.revoke(key.id, by="test")
    await platform.feed.catch_up()
    await late.ended()
    assert late.status == 401
    assert upstreams.asked == []


@pytest.mark.parametrize("how", ["revoked", "broken", "whole"])
async def test_a_dropped_caller_gives_its_place_back_however_its_turn_ended(platform: Platform, how: str) -> None:
    limited = "apps: [{name: a, department: d, use_cases: [u], concurrent: 1}]"
    await platform.register.apply(platform.register.parse(limited), by="test")
    await platform.feed.catch_up()
    key = await platform.keys.create(NewKey(name="k", app="a"), by="test")
    other = await platform.keys.create(NewKey(name="other", app="a"), by="test")
    scripts = {"revoked": [WORD, WORD, "hang"], "broken": [WORD, WORD, UpstreamBroken("x")], "whole": [WORD, TAIL]}
    platform.edge.chat = chat_with(platform, Scripted(one=scripts[how]))
    reads_until = {"revoked": 2, "broken": 2, "whole": 1}[how]
    deaf = RawCaller(platform, key.key, asking(stream=how != "whole"), reads_until=reads_until).start()
    deaf.body_comes.set()
    await asyncio.wait_for(deaf.stuck.wait(), 5)
    if how == "revoked":
        await platform.keys.revoke(key.id, by="test")
        await platform.feed.catch_up()
    deaf.abort()
    await asyncio.wait_for(deaf.task, 5)
    platform.edge.chat = chat_with(platform, Scripted(one=[WORD, TAIL]))
    assert (await RawCaller(platform, other.key, asking()).start().ended()).status == 200


async def test_a_process_that_stops_takes_no_new_turn_and_says_that_another_try_may_help(platform: Platform) -> None:
    platform.edge.chat = chat_with(platform, upstreams := Scripted(one=[WORD, TAIL]))
    platform.edge.stopping = lambda: True
    key = await platform.keys.create(NewKey(name="k", app="a"), by="test")
    refused = await RawCaller(platform, key.key, asking()).start().ended()
    assert refused.status == 503
    assert b"x-should-retry: true" in refused.head
    assert upstreams.asked == []


@pytest.mark.parametrize("ends", ["whole", "broken"])
async def test_events_that_came_together_leave_together_whatever_follows(platform: Platform, ends: str) -> None:
    together = msgspec.structs.replace(WORD, more=True)
    after = [msgspec.structs.replace(TAIL, more=True)] if ends == "whole" else [UpstreamBroken("x")]
    platform.edge.chat = chat_with(platform, Scripted(one=[WORD, together, together, *after]))
    key = await platform.keys.create(NewKey(name="k", app="a"), by="test")
    caller = await RawCaller(platform, key.key, asking(stream=True)).start().ended()
    word = b"data: " + WORD.data + b"\n\n"
    alone, *rest = [told for told in caller.told if told]
    assert alone == word
    assert rest[0].startswith(word + word + (b"data: [DONE]" if ends == "whole" else b'data: {"error"'))


def turns_in_memory() -> int:
    return sum(isinstance(each, Turn | ModelRequest) for each in gc.get_objects())


@pytest.mark.parametrize("ends", ["whole", "streamed", "broken", "refused", "left"])
async def test_a_turn_leaves_nothing_to_the_garbage_collector(platform: Platform, ends: str) -> None:
    scripts = {"broken": [WORD, UpstreamBroken("x")], "refused": [UpstreamBroken("x")], "left": [WORD, "hang"]}
    platform.edge.chat = chat_with(platform, Scripted(one=scripts.get(ends, [WORD, TAIL])))
    key = await platform.keys.create(NewKey(name="k", app="a"), by="test")
    gc.collect()
    gc.disable()
    before = turns_in_memory()
    try:
        for _ in range(3):
            await one_turn(RawCaller(platform, key.key, asking(stream=ends != "whole")), leaves=ends == "left")
        await asyncio.sleep(0.05)  # in which the last one is booked
        assert turns_in_memory() == before
    finally:
        gc.enable()


async def one_turn(caller: RawCaller, *, leaves: bool) -> None:
    caller.start().body_comes.set()
    while leaves and not caller.told:
        await asyncio.sleep(0.001)
    if leaves:
        caller.abort()
    await caller.ended()
