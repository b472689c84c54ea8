"""Waiting for the books at a turn's end: who waits, for what, and for how long at most."""

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from gateway.wiring import Platform
from governance import NewKey
from kernel import Chunk, ModelRequest, Target
from router import UpstreamCall
from tests.fakes.chats import TAIL, WORD, RawCaller, Scripted, chat_with, company

BODY = msgspec.json.encode({"model": "one", "messages": [{"role": "user", "content": "hi"}]})
SETTLE_SECONDS = 0.04


class Slow(Scripted):
    """An upstream after whose last word the disk becomes slow."""

    def __init__(self, becomes_slow: Callable[[], object]) -> None:
        super().__init__(one=[WORD, TAIL])
        self._becomes_slow = becomes_slow

    async def stream(self, target: Target, request: ModelRequest, call: UpstreamCall) -> AsyncGenerator[Chunk, None]:
        async for chunk in super().stream(target, request, call):
            yield chunk
        self._becomes_slow()


class Scene:
    """A platform on which commits wait from the end of a turn until `written` is set."""

    def __init__(self, platform: Platform) -> None:
        self.platform = platform
        self.written = threading.Event()
        platform.edge.limits = replace(platform.edge.limits, settle_seconds=SETTLE_SECONDS)
        line = platform.ledger._store._line
        platform.edge.chat = chat_with(platform, Slow(lambda: line._thread.submit(self.written.wait)))

    async def called(self) -> RawCaller:
        """A caller who has its answer; its turn is not booked yet."""
        key = await self.platform.keys.create(NewKey(name="k", app="a"), by="test")
        caller = await asyncio.wait_for(RawCaller(self.platform, key.key, BODY).start().ended(), 5)
        assert caller.answer == b"{}"
        return caller

    def asking_for(self, answered: RawCaller) -> RawCaller:
        """Somebody asks what became of the turn."""
        turn_id = answered.head.split(b"x-request-id: ")[1].split(b"\r\n")[0].decode()
        path = f"/v1/requests/{turn_id}"
        return RawCaller(self.platform, answered.key, b"", path=path, method="GET").start()

    async def assert_booked(self, caller: RawCaller) -> None:
        assert caller.rests_until is not None
        await asyncio.wait_for(asyncio.shield(caller.rests_until), 5)
        assert await self.platform.ledger._store.orphans("nobody", None, 10) == []
        assert self.platform.edge._settling == {}


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    async with company(tmp_path) as platform:
        made = Scene(platform)
        yield made
        made.written.set()


async def test_a_connection_rests_after_an_answer_until_its_books_are_durable(scene: Scene) -> None:
    caller = await scene.called()
    assert caller.rests_until is not None
    assert not caller.rests_until.done()
    scene.written.set()
    await scene.assert_booked(caller)


async def test_who_asks_for_a_turn_that_is_being_booked_is_told_how_it_was_booked(scene: Scene) -> None:
    scene.platform.edge.limits = replace(scene.platform.edge.limits, settle_seconds=5)
    caller = await scene.called()
    asking = scene.asking_for(caller)
    await asyncio.sleep(0.05)
    assert asking.status is None
    scene.written.set()
    told = msgspec.json.decode((await asyncio.wait_for(asking.ended(), 5)).answer)
    assert (told["outcome"], [attempt["state"] for attempt in told["attempts"]]) == ("answered", ["posted"])
    await scene.assert_booked(caller)


async def test_who_asks_for_it_does_not_wait_for_ever_and_the_books_follow(scene: Scene) -> None:
    caller = await scene.called()
    asked = await asyncio.wait_for(scene.asking_for(caller).ended(), 2)
    assert asked.status == 200
    scene.written.set()
    await scene.assert_booked(caller)


async def test_for_a_store_that_is_away_nobody_waits(scene: Scene) -> None:
    committer = scene.platform.ledger._committer
    platform = scene.platform

    def goes_away() -> None:
        committer._failures = 1
        committer._store._line._thread.submit(scene.written.wait)

    platform.edge.chat = chat_with(platform, Slow(goes_away))
    key = await platform.keys.create(NewKey(name="k", app="a"), by="test")
    caller = await asyncio.wait_for(RawCaller(platform, key.key, BODY).start().ended(), 1)
    assert caller.rests_until is None
    scene.written.set()
