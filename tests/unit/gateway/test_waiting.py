"""Waiting for the books at a turn's end: who waits, for what, and for how long at most."""

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from gateway.wiring import Platform
from governance import NewKey
from kernel import ChatRequest, Chunk, Target
from router import UpstreamCall
from tests.fakes.chats import TAIL, WORD, RawCaller, Scripted, chat_with, company

BODY = msgspec.json.encode({"model": "one", "messages": [{"role": "user", "content": "hi"}]})
SETTLE_SECONDS = 0.04


class Slow(Scripted):
    """An upstream after whose last word the disk becomes slow."""

    def __init__(self, becomes_slow: Callable[[], object]) -> None:
        super().__init__(one=[WORD, TAIL])
        self._becomes_slow = becomes_slow

    async def stream(self, target: Target, request: ChatRequest, call: UpstreamCall) -> AsyncGenerator[Chunk, None]:
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
        """A caller who has its answer, all but its end."""
        key = await self.platform.keys.create(NewKey(name="k", app="a"), by="test")
        caller = RawCaller(self.platform, key.key, BODY).start()
        caller.body_comes.set()
        async with asyncio.timeout(5):
            while not (caller.told and self.platform.edge._waiting):
                await asyncio.sleep(0.001)
        assert caller.answer == b"{}"
        assert not caller.task.done()
        return caller

    def asking_for(self, answered: RawCaller) -> RawCaller:
        """Somebody asks what became of the turn."""
        turn_id = answered.head.split(b"x-request-id: ")[1].split(b"\r\n")[0].decode()
        path = f"/v1/requests/{turn_id}"
        return RawCaller(self.platform, answered.key, b"", path=path, method="GET").start()

    def assert_nobody_waits(self) -> None:
        assert self.platform.edge._waiting == {}
        assert self.platform.edge._settling == {}


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    async with company(tmp_path) as platform:
        made = Scene(platform)
        yield made
        made.written.set()


@pytest.fixture
async def impatient(scene: Scene) -> AsyncIterator[None]:
    giving_up = asyncio.create_task(scene.platform.edge.give_up_waiting())
    yield
    giving_up.cancel()
    with suppress(asyncio.CancelledError):
        await giving_up


async def test_an_answer_ends_once_its_books_are_durable(scene: Scene) -> None:
    caller = await scene.called()
    assert b"" not in caller.told, "the end of an answer is a part without bytes"
    scene.written.set()
    await asyncio.wait_for(caller.task, 5)
    assert caller.told[-1] == b""
    assert await scene.platform.ledger._store.orphans("nobody", None, 10) == []
    scene.assert_nobody_waits()


@pytest.mark.usefixtures("impatient")
async def test_who_waits_too_long_goes_on_and_the_books_follow(scene: Scene, caplog) -> None:
    caller = await scene.called()
    began = asyncio.get_running_loop().time()
    await asyncio.wait_for(caller.task, 1)
    assert asyncio.get_running_loop().time() - began > SETTLE_SECONDS / 2
    assert caller.told[-1] == b""
    assert "is not settled yet" in caplog.text
    scene.assert_nobody_waits()
    scene.written.set()
    asked = await asyncio.wait_for(scene.asking_for(caller).ended(), 5)
    async with asyncio.timeout(5):
        while await scene.platform.ledger._store.orphans("nobody", None, 10):
            await asyncio.sleep(0.001)
    assert asked.status == 200
    assert [record for record in caplog.records if record.name == "asyncio"] == []


@pytest.mark.usefixtures("impatient")
async def test_nobody_who_has_not_waited_long_is_sent_on(scene: Scene) -> None:
    scene.platform.edge.limits = replace(scene.platform.edge.limits, settle_seconds=0.4)
    caller = await scene.called()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(caller.task), 0.2)
    scene.written.set()
    await asyncio.wait_for(caller.task, 5)


async def test_who_asks_for_a_turn_that_is_being_booked_is_told_how_it_was_booked(scene: Scene) -> None:
    caller = await scene.called()
    asking = scene.asking_for(caller)
    await asyncio.sleep(0.05)
    assert asking.status is None
    scene.written.set()
    told = msgspec.json.decode((await asyncio.wait_for(asking.ended(), 5)).answer)
    assert (told["outcome"], [attempt["state"] for attempt in told["attempts"]]) == ("answered", ["posted"])
    await asyncio.wait_for(caller.task, 5)
    scene.assert_nobody_waits()


@pytest.mark.usefixtures("impatient")
async def test_who_asks_for_it_waits_no_longer_than_its_caller(scene: Scene) -> None:
    caller = await scene.called()
    asking = scene.asking_for(caller)
    await asyncio.wait_for(asking.ended(), 2)
    await asyncio.wait_for(caller.task, 2)
    assert asking.status == 200
    scene.assert_nobody_waits()


async def test_a_caller_whose_exchange_is_ended_while_it_waits_is_forgotten(scene: Scene) -> None:
    caller = await scene.called()
    caller.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller.task
    scene.assert_nobody_waits()
    scene.written.set()


async def test_for_a_store_that_is_away_nobody_waits(scene: Scene) -> None:
    committer = scene.platform.ledger._committer
    platform = scene.platform

    def goes_away() -> None:
        committer._failures = 1
        committer._store._line._thread.submit(scene.written.wait)

    platform.edge.chat = chat_with(platform, Slow(goes_away))
    key = await platform.keys.create(NewKey(name="k", app="a"), by="test")
    await asyncio.wait_for(RawCaller(platform, key.key, BODY).start().ended(), 1)
    scene.assert_nobody_waits()
