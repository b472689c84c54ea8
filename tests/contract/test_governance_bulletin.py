"""News of changes: heard at once by other processes, and never in the way of the change itself."""

import asyncio
import time

import pytest

from gateway.doctor import diagnose
from gateway.schema import migrate
from gateway.settings import Settings
from gateway.wiring import build
from governance import AuditTrail, Bulletin
from governance.sql import SqlStore
from governance.sql_audit import SqlChains
from kernel import AuditRecord
from tests.chaos.proxy import Proxy


class Ear:
    def __init__(self):
        self.heard = 0

    async def __call__(self):
        self.heard += 1

    async def hear(self, more_than, seconds=2.0):
        async with asyncio.timeout(seconds):
            while self.heard <= more_than:
                await asyncio.sleep(0.01)


async def test_everybody_hears_what_one_publishes(redis_url):
    bulletins, ears = [Bulletin(redis_url), Bulletin(redis_url)], [Ear(), Ear()]
    for bulletin, ear in zip(bulletins, ears, strict=True):
        bulletin.start(ear)
        await ear.hear(0)  # it may have missed something before it listened
    await bulletins[0].publish(7)
    for ear in ears:
        await ear.hear(1)
    for bulletin in bulletins:
        await bulletin.close()


async def test_listening_goes_on_after_redis_was_restarted(mortal_redis):
    bulletin, ear = Bulletin(mortal_redis.url), Ear()
    bulletin.start(ear)
    await ear.hear(0)
    mortal_redis.kill()
    await bulletin.publish(1)
    mortal_redis.start()
    await ear.hear(1)
    await bulletin.publish(2)
    await ear.hear(2)
    await bulletin.close()


async def test_line_that_fell_silent_is_noticed_and_left_and_a_quiet_one_is_kept(redis_server, redis_url, tmp_path):
    async with Proxy(tmp_path, redis_server.port) as proxy:
        bulletin, ear = Bulletin(f"redis://127.0.0.1:{proxy.port}/0", quiet_seconds=0.2), Ear()
        bulletin.start(ear)
        await ear.hear(0)
        await asyncio.sleep(1.0)
        assert ear.heard == 1
        assert redis_server.say(b"PUBSUB NUMSUB penstock:changes").endswith(b":1\r\n")
        await proxy.black_hole()
        await asyncio.sleep(1.0)
        await proxy.let_pass()
        await ear.hear(1)  # on a new connection, before which it may have missed something
        await Bulletin(redis_url).publish(1)
        await ear.hear(2)
        await bulletin.close()


async def test_publishing_to_nobody_fails_no_change(caplog):
    started = time.monotonic()
    await Bulletin("redis://127.0.0.1:9/0").publish(1)
    assert time.monotonic() - started < 0.5
    assert "others find out by polling" in caplog.text


async def test_every_durable_change_is_told_and_no_other(engine, clock):
    told = []

    async def committed(version):
        told.append((version, await store.version()))

    store = SqlStore(engine, AuditTrail(SqlChains(), "w", clock=clock), clock=clock, committed=committed)
    async with store.writing() as transaction:
        await transaction.note("documents", None, AuditRecord("admin.x"))
    async with store.writing():
        pass
    with pytest.raises(RuntimeError):
        await _failing(store)
    assert told == [(1, 1)]


async def _failing(store):
    async with store.writing() as transaction:
        await transaction.note("documents", None, AuditRecord("admin.x"))
        raise RuntimeError


async def test_other_process_has_a_change_long_before_it_would_poll(redis_url, tmp_path):
    settings = Settings(data_dir=tmp_path, redis_url=redis_url, changes_poll_seconds=600)
    one, two = build(settings), build(settings)
    await migrate(one.engine)
    async with one, two:
        wanted = one.register.parse("departments:\n  - {name: sales}\n")
        await one.register.apply(wanted, "test")
        async with asyncio.timeout(2):
            while "sales" not in two.snapshot.directory().departments:
                await asyncio.sleep(0.01)
        assert await two.edge.ready() == {"store": "ok", "redis": "ok"}


async def test_away_redis_is_reported_and_stops_nobody(tmp_path):
    settings = Settings(data_dir=tmp_path, redis_url="redis://127.0.0.1:9/0")
    platform = build(settings)
    await migrate(platform.engine)
    async with platform:
        assert await platform.edge.ready() == {"store": "ok", "redis": "away"}
        assert b"penstock_limits_shared 0.0" in (await platform.edge.metrics.page())[1]


async def test_doctor_asks_redis_and_names_the_cure(redis_url, tmp_path):
    platform = build(Settings(data_dir=tmp_path))
    await migrate(platform.engine)
    await platform.engine.dispose()
    for url, state, cure in ((redis_url, "ok", ""), ("redis://127.0.0.1:9/0", "wrong", "PENSTOCK_REDIS_URL")):
        findings = await diagnose(Settings(data_dir=tmp_path, redis_url=url))
        (finding,) = [each for each in findings if each.what == "redis"]
        assert finding.state == state
        assert cure in finding.cure
