"""Several processes on one Redis: exact while it answers, by share while it does not, whatever becomes of it."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from governance import Allowance, LimitMetrics, SharedCounters
from governance.counters import Claim, Scope
from kernel import SystemClock, new_id


@pytest.fixture
async def opening() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture
def processes(opening, clock) -> Callable:
    async def make(url, count, *, still=True):
        made = [
            SharedCounters(
                url,
                clock=clock if still else SystemClock(),
                processes=lambda: count,
                metrics=LimitMetrics(CollectorRegistry()),
                redis_now=(lambda: int(clock.monotonic() * 1000)) if still else (lambda: -1),
            )
            for _ in range(count)
        ]
        for each in made:
            opening.push_async_callback(each.close)
            await each.start()
        return made

    return make


def claim(tokens=0, **limits):
    return Claim(new_id("permit"), (Scope("app", "crm", "crm", Allowance(**limits)),), tokens)


async def admitted(counters, times, **limits):
    claims = [claim(**limits) for _ in range(times)]
    taken = await asyncio.gather(*(counters.take(each) for each in claims))
    return [each for each, answer in zip(claims, taken, strict=True) if answer.admitted]


async def until(true: Callable[[], bool], seconds: float) -> float:
    started = time.monotonic()
    while not true():
        assert time.monotonic() - started < seconds, "it did not come true in time"
        await asyncio.sleep(0.02)
    return time.monotonic() - started


@pytest.fixture
async def redis(redis_url) -> AsyncIterator[Redis]:
    async with Redis.from_url(redis_url, decode_responses=True) as client:
        yield client


@pytest.mark.parametrize("still", [True, False], ids=["given time", "Redis' time"])
@pytest.mark.parametrize("limits", [{"requests_per_minute": 100}, {"concurrent": 100}, {"tokens_per_minute": 300}])
async def test_three_processes_admit_exactly_the_limit_in_a_burst(processes, redis_url, limits, still):
    three = await processes(redis_url, 3, still=still)
    let_in = await asyncio.gather(*(admitted(each, 80, tokens=3, **limits) for each in three))
    # With a running clock a bucket drains while the burst lasts.
    assert 100 <= sum(map(len, let_in)) <= (100 if still or "concurrent" in limits else 103)


async def test_permits_of_a_dead_process_expire_and_those_of_the_living_do_not_leak(processes, redis_url, clock):
    dead, alive = await processes(redis_url, 2)
    assert len(await admitted(dead, 2, concurrent=3)) == 2
    for _ in range(50):
        (only,) = await admitted(alive, 3, concurrent=3)
        alive.release(only)
    clock.advance(901)
    assert len(await admitted(alive, 5, concurrent=3)) == 3


async def test_idle_counters_vanish(processes, redis_url, redis):
    (one,) = await processes(redis_url, 1, still=False)
    (done,) = await admitted(one, 1, requests_per_minute=60, tokens_per_minute=60, concurrent=1)
    assert await redis.pttl("penstock:{crm}:app:crm:levels") in range(60_000, 62_000)
    assert await redis.pttl("penstock:{crm}:app:crm:calls") in range(899_000, 900_001)
    one.release(done)
    await admitted(one, 0)
    one.settle(done, 1)
    await asyncio.sleep(0.05)
    assert set(await redis.keys()) == {"penstock:epoch", "penstock:{crm}:app:crm:levels"}


@pytest.mark.parametrize("answered", [False, True])
@pytest.mark.parametrize("pauses", range(12))
async def test_turn_that_stops_waiting_takes_nothing(processes, redis_url, pauses, answered):
    (one,) = await processes(redis_url, 1)
    waiting = asyncio.create_task(one.take(claim(5, tokens_per_minute=10, concurrent=1)))
    for _ in range(3):
        await asyncio.sleep(0)
    if answered:
        time.sleep(0.002)  # noqa: ASYNC251 - the answer lies in the socket before anybody looks
    for _ in range(pauses):
        await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    if not waiting.cancelled():
        (let_in,) = one._open.values()
        one.settle(let_in.claim, -5)
        one.release(let_in.claim)
    await asyncio.sleep(0.02)
    assert len(await admitted(one, 1, tokens=10, tokens_per_minute=10, concurrent=1)) == 1


async def test_killed_redis_leaves_each_process_its_share_and_returns_within_two_seconds(
    processes, mortal_redis, clock, caplog
):
    three, limits = await processes(mortal_redis.url, 3), {"requests_per_minute": 30, "concurrent": 30}
    before = [await admitted(each, 5, **limits) for each in three]
    mortal_redis.kill()
    during = [await admitted(each, 30, **limits) for each in three]
    # What was let in by Redis counts against the share, open calls as well as requests.
    assert [len(each) for each in during] == [5, 5, 5]
    for each, claims in zip(three, before, strict=True):
        for done in claims:
            each.release(done)
    assert [len(await admitted(each, 9, **limits)) for each in three] == [0, 0, 0]
    clock.advance(20)
    assert [len(await admitted(each, 30, **limits)) for each in three] == [3, 3, 3]
    mortal_redis.start()
    assert max(await asyncio.gather(*(until(lambda each=each: each.is_shared, 2) for each in three))) < 2
    # It is empty, so the share goes on to bound each process for a minute, and open calls are told to it again.
    assert sum([len(await admitted(each, 30, **limits)) for each in three]) == 0
    clock.advance(61)
    assert sum([len(await admitted(each, 30, **limits)) for each in three]) == 30 - 8 * 3
    said = [record.message for record in caplog.records if record.name == "penstock.limits"]
    assert len(said) == 6, said


async def test_flushed_redis_is_noticed_and_told_of_open_calls(processes, mortal_redis, clock):
    two, limits = await processes(mortal_redis.url, 2), {"requests_per_minute": 10, "concurrent": 12}
    assert [len(await admitted(each, 5, **limits)) for each in two] == [5, 5]
    mortal_redis.say(b"FLUSHALL")
    eras = [each._era for each in two]
    await until(lambda: all(each._era > era for each, era in zip(two, eras, strict=True)), 2)
    assert [len(await admitted(each, 9, **limits)) for each in two] == [0, 0]
    clock.advance(61)
    assert sum([len(await admitted(each, 9, **limits)) for each in two]) == 2


async def test_what_ended_while_redis_hung_is_said_when_it_is_back(processes, mortal_redis):
    (one,) = await processes(mortal_redis.url, 1)
    claims = await admitted(one, 5, concurrent=5)
    mortal_redis._process.send_signal(signal.SIGSTOP)
    started = time.monotonic()
    assert await admitted(one, 50, concurrent=5) == []
    assert time.monotonic() - started < 0.25
    for each in claims:
        one.release(each)
    started = time.monotonic()
    later = await admitted(one, 50, concurrent=5)
    assert time.monotonic() - started < 0.05
    assert len(later) == 5
    for each in later:
        one.release(each)
    mortal_redis._process.send_signal(signal.SIGCONT)
    await until(lambda: one.is_shared, 2)
    assert len(await admitted(one, 6, concurrent=5)) == 5


async def test_tokens_counted_here_are_not_given_back_there(processes, mortal_redis, clock):
    (one,) = await processes(mortal_redis.url, 1)
    mortal_redis.kill()
    (here,) = await admitted(one, 1, tokens=90, tokens_per_minute=100)
    mortal_redis.start()
    await until(lambda: one.is_shared, 2)
    clock.advance(61)
    (there,) = await admitted(one, 1, tokens=90, tokens_per_minute=100)
    one.settle(here, -90)
    assert not await admitted(one, 1, tokens=20, tokens_per_minute=100)
    one.settle(there, -90)
    assert await admitted(one, 1, tokens=20, tokens_per_minute=100)


@asynccontextmanager
async def black_hole() -> AsyncIterator[str]:
    """A port that takes connections and never answers."""
    writers = []
    server = await asyncio.start_server(lambda _, writer: writers.append(writer), "127.0.0.1", 0)
    try:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
    finally:
        for writer in writers:
            writer.close()
        server.close()
        await server.wait_closed()


async def test_black_hole_costs_one_short_wait_at_the_start_and_none_per_turn(processes, opening):
    url = await opening.enter_async_context(black_hole())
    started = time.monotonic()
    (one,) = await processes(url, 1)
    assert time.monotonic() - started < 0.4
    assert not one.is_shared
    started = time.monotonic()
    assert len(await admitted(one, 100, requests_per_minute=60)) == 60
    assert time.monotonic() - started < 0.05


async def test_redis_that_drips_costs_one_short_wait(processes, redis_server, opening):
    slow = False

    async def carry(reader, writer):
        to_reader, to_writer = await asyncio.open_connection("127.0.0.1", redis_server.port)

        async def back():
            while part := await to_reader.read(65_536):
                for reply in [b"*" + each for each in part.split(b"*")[1:]] if slow else [part]:
                    await asyncio.sleep(0.06 if slow else 0)
                    writer.write(reply)

        answering = asyncio.create_task(back())
        while part := await reader.read(65_536):
            to_writer.write(part)
        answering.cancel()
        to_writer.close()
        writer.close()

    server = await asyncio.start_server(carry, "127.0.0.1", 0)
    opening.callback(server.close)
    (one,) = await processes(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0", 1)
    assert await admitted(one, 1, requests_per_minute=60)
    slow, started = True, time.monotonic()
    assert await admitted(one, 20, requests_per_minute=60)
    assert time.monotonic() - started < 0.3
    assert not one.is_shared


async def test_forgotten_scripts_are_loaded_again(processes, mortal_redis):
    (one,) = await processes(mortal_redis.url, 1)
    mortal_redis.say(b"SCRIPT FLUSH")
    assert len(await admitted(one, 9, requests_per_minute=5)) == 5
    assert not one.is_shared
    await until(lambda: one.is_shared, 2)


async def test_queue_is_bounded_and_takes_do_not_wait_in_it(processes, redis_url):
    (one,) = await processes(redis_url, 1)
    claims = [claim(requests_per_minute=100_000) for _ in range(20_000)]
    taken = await asyncio.gather(*(one.take(each) for each in claims))
    assert all(each.admitted for each in taken)
    assert not one._steps
