"""A turn is its key's owner's as of when the body is there, whatever was declared or revoked while it came."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.wiring import Platform
from governance import Keys, NewKey
from kernel import Caller
from tests.fakes.chats import TAIL, WORD, RawCaller, Scripted, chat_with, company

BODY = msgspec.json.encode({"model": "one", "messages": [{"role": "user", "content": "hi"}]})


class Counting:
    """Keys that count how often somebody is looked up."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self.times = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._keys, name)

    def identify(self, presented: str) -> Caller:
        self.times += 1
        return self._keys.identify(presented)


class Scene:
    """A caller whose body is still to come."""

    def __init__(self, platform: Platform) -> None:
        self.platform = platform
        self.upstreams = Scripted(one=[WORD, TAIL])
        self.keys = platform.edge.keys = Counting(platform.keys)
        platform.edge.chat = chat_with(platform, self.upstreams)

    async def calling(self) -> RawCaller:
        key = await self.platform.keys.create(NewKey(name="k", app="a"), by="test")
        await self.platform.feed.catch_up()  # else that the key is new would itself be news while the body comes
        late = RawCaller(self.platform, key.key, BODY).start()
        await asyncio.sleep(0.01)
        return late

    async def declare(self, text: str) -> None:
        await self.platform.register.apply(self.platform.register.parse(text), by="test")
        await self.platform.feed.catch_up()

    async def booked_for(self) -> list[str]:
        async with self.platform.engine.connect() as connection:
            found = await connection.exec_driver_sql("SELECT department FROM entries WHERE step = 1")
            return [row[0] for row in found]


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    async with company(tmp_path) as platform:
        yield Scene(platform)


async def test_one_who_is_the_same_still_is_looked_up_once(scene: Scene) -> None:
    late = await scene.calling()
    assert (await late.ended()).status == 200
    assert scene.keys.times == 1


async def test_a_key_that_was_issued_meanwhile_keeps_nobody_from_anything(scene: Scene) -> None:
    late = await scene.calling()
    await scene.platform.keys.create(NewKey(name="other", app="a"), by="test")
    assert (await late.ended()).status == 200
    assert scene.keys.times == 2


async def test_an_app_that_moved_meanwhile_is_booked_where_it_is_now(scene: Scene) -> None:
    late = await scene.calling()
    await scene.declare(
        """
        departments: [{name: elsewhere}]
        apps: [{name: a, department: elsewhere, use_cases: [u]}]
        policies: [{name: p, models: [one], departments: [elsewhere], use_cases: ["*"], data_class: internal}]
        """
    )
    assert (await late.ended()).status == 200
    assert await scene.booked_for() == ["elsewhere"]


async def test_an_app_that_was_withdrawn_meanwhile_is_not_served(scene: Scene) -> None:
    late = await scene.calling()
    register = scene.platform.register
    await register.remove("app", "a", by="test")
    await scene.platform.feed.catch_up()
    assert (await late.ended()).status == 401
    assert scene.upstreams.asked == []
    assert await scene.booked_for() == []
