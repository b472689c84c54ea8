"""Several processes on one Redis: exact while it answers, by share while it does not, whatever becomes of it."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import uvloop
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


async def pass_time(clock, seconds: int, *counters: SharedCounters) -> None:
    """Time goes on, and who lives renews what is open, as it does every few seconds."""
    for _ in range(seconds):
        clock.advance(1)
        for each in counters:
            await each._look()


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
    clock.advance(31)
    assert len(await admitted(alive, 5, concurrent=3)) == 3


async def test_idle_counters_vanish(processes, redis_url, redis):
    (one,) = await processes(redis_url, 1, still=False)
    (done,) = await admitted(one, 1, requests_per_minute=60, tokens_per_minute=60, concurrent=1)
    assert await redis.pttl("penstock:{crm}:app:crm:levels") in range(60_000, 62_000)
    assert await redis.pttl("penstock:{crm}:app:crm:calls") in range(29_000, 30_001)
    one.release(done, 1)
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
        one.release(let_in.claim, -5)
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
    await pass_time(clock, 61, *three)
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
    await pass_time(clock, 61, *two)
    assert sum([len(await admitted(each, 9, **limits)) for each in two]) == 2


async def test_emptied_redis_lets_nobody_through_twice(processes, mortal_redis):
    three, limits = await processes(mortal_redis.url, 3), {"requests_per_minute": 300}
    assert [len(await admitted(each, 150, **limits)) for each in three] == [150, 150, 0]
    mortal_redis.say(b"FLUSHALL")
    # Each knows from its last answer how full the bucket was for all, also the one that was let through nothing.
    assert [len(await admitted(each, 150, **limits)) for each in three] == [0, 0, 0]
    await asyncio.gather(*(until(lambda each=each: each.is_shared, 10) for each in three))
    assert [len(await admitted(each, 150, **limits)) for each in three] == [0, 0, 0]


@pytest.mark.parametrize("limits", [{"requests_per_minute": 60}, {"tokens_per_minute": 60}, {"concurrent": 60}])
async def test_first_minute_after_an_outage_gives_each_process_its_share(processes, mortal_redis, clock, limits):
    three = await processes(mortal_redis.url, 3)
    mortal_redis.kill()
    await asyncio.gather(*(until(lambda each=each: not each.is_shared, 2) for each in three))
    mortal_redis.start()
    await asyncio.gather(*(until(lambda each=each: each.is_shared, 2) for each in three))
    asked = zip(three, (200, 30, 10), strict=True)
    let_in = [await admitted(each, times, tokens=1, **limits) for each, times in asked]
    assert [len(claims) for claims in let_in] == [20, 20, 10]
    # What its share would let through and Redis does not is no part of the share either.
    for each, claims in zip(three, let_in, strict=True):
        for done in claims:
            each.release(done)
    clock.advance(30)
    await asyncio.sleep(0.02)
    (other,) = await processes(mortal_redis.url, 1)
    assert await admitted(other, 60, tokens=1, **limits)
    assert await admitted(three[0], 15, tokens=1, **limits) == []
    mortal_redis.kill()
    assert len(await admitted(three[0], 30, tokens=1, **limits)) == (20 if "concurrent" in limits else 10)


async def test_turn_that_stops_waiting_in_that_minute_leaves_the_share_as_it_was(processes, mortal_redis):
    (one,) = await processes(mortal_redis.url, 1)
    mortal_redis.kill()
    await until(lambda: not one.is_shared, 2)
    mortal_redis.start()
    await until(lambda: one.is_shared, 2)
    limits = {"requests_per_minute": 10, "tokens_per_minute": 100, "concurrent": 10}
    waiting = asyncio.gather(*(one.take(claim(10, **limits)) for _ in range(10)))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    mortal_redis.kill()
    assert len(await admitted(one, 20, tokens=10, **limits)) == 10


async def test_calls_that_redis_never_knew_leave_nothing_to_say_to_it(processes, mortal_redis):
    (one,) = await processes(mortal_redis.url, 1)
    told = await admitted(one, 5, concurrent=5)
    mortal_redis._process.send_signal(signal.SIGSTOP)
    assert await admitted(one, 1, concurrent=5) == []
    one.release(told.pop())
    for _ in range(11_000):
        (never_told,) = await admitted(one, 1, concurrent=5)
        one.release(never_told)
    for each in told:
        one.release(each)
    assert len(one._ended) <= 6
    mortal_redis._process.send_signal(signal.SIGCONT)
    await until(lambda: one.is_shared and not one._unheard, 2)
    assert mortal_redis.say(b"ZCARD penstock:{crm}:app:crm:calls") == b":0\r\n"


async def test_permits_of_a_killed_process_are_free_after_half_a_minute(processes, redis_url, clock):
    dead, alive = await processes(redis_url, 2)
    assert len(await admitted(dead, 5, concurrent=5)) == 5
    dead._watch.cancel()
    dead._connection.drop()
    clock.advance(29)
    assert await admitted(alive, 5, concurrent=5) == []
    clock.advance(2)
    assert len(await admitted(alive, 5, concurrent=5)) == 5


async def test_permits_of_long_calls_are_renewed_for_as_long_as_they_last(processes, redis_url, clock):
    one, two = await processes(redis_url, 2)
    long = await admitted(one, 3, concurrent=3)
    await pass_time(clock, 100, one)
    assert await admitted(two, 1, concurrent=3) == []
    one.release(long[0])
    await pass_time(clock, 20, one)
    assert len(await admitted(two, 3, concurrent=3)) == 1


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
    one.release(here, -90)
    assert not await admitted(one, 1, tokens=20, tokens_per_minute=100)
    one.release(there, -90)
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


@asynccontextmanager
async def slowed(redis_server, how: Callable[[bytes], list[bytes]], seconds: float) -> AsyncIterator[tuple[str, dict]]:
    """Stands before Redis; once told `slow`, hands on each part of an answer only so long after the one before."""
    told = {"slow": False}

    async def carry(reader, writer):
        to_reader, to_writer = await asyncio.open_connection("127.0.0.1", redis_server.port)

        async def back():
            while part := await to_reader.read(65_536):
                for reply in how(part) if told["slow"] else [part]:
                    await asyncio.sleep(seconds if told["slow"] else 0)
                    writer.write(reply)

        answering = asyncio.create_task(back())
        while part := await reader.read(65_536):
            to_writer.write(part)
        answering.cancel()
        to_writer.close()
        writer.close()

    server = await asyncio.start_server(carry, "127.0.0.1", 0)
    async with server:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0", told


async def test_redis_that_drips_costs_one_short_wait(processes, redis_server, opening):
    by_reply = slowed(redis_server, lambda part: [b"*" + each for each in part.split(b"*")[1:]], 0.06)
    url, told = await opening.enter_async_context(by_reply)
    (one,) = await processes(url, 1)
    assert await admitted(one, 1, requests_per_minute=60)
    told["slow"], started = True, time.monotonic()
    assert await admitted(one, 20, requests_per_minute=60)
    assert time.monotonic() - started < 0.14
    assert not one.is_shared


async def test_slow_flight_before_its_own_costs_a_turn_no_second_wait(processes, redis_server, opening):
    url, told = await opening.enter_async_context(slowed(redis_server, lambda part: [part], 0.08))
    (one,) = await processes(url, 1)
    told["slow"] = True

    async def waited(after: float) -> float:
        await asyncio.sleep(after)
        started = time.monotonic()
        assert await admitted(one, 1, requests_per_minute=60)
        return time.monotonic() - started

    assert max(await asyncio.gather(waited(0), waited(0.01), waited(0.02))) < 0.14


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_loop_that_stood_still_blames_nobody_for_it(redis_url, loop_factory):
    async def story():
        metrics = LimitMetrics(CollectorRegistry())
        one = SharedCounters(redis_url, clock=SystemClock(), processes=lambda: 1, metrics=metrics)
        await one.start()
        waiting = asyncio.create_task(one.take(claim(requests_per_minute=60)))
        for _ in range(3):
            await asyncio.sleep(0)
        time.sleep(0.15)  # noqa: ASYNC251 - the answer lies in the socket, and its time is up
        assert (await waiting).admitted
        assert one.is_shared
        await one.close()

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(story())


async def test_forgotten_scripts_are_loaded_again_within_the_same_turn(processes, mortal_redis):
    (one,) = await processes(mortal_redis.url, 1)
    mortal_redis.say(b"SCRIPT FLUSH")
    (first, *_) = let_in = await admitted(one, 9, requests_per_minute=5, concurrent=9)
    mortal_redis.say(b"SCRIPT FLUSH")
    one.release(first)
    await asyncio.sleep(0.02)
    assert len(let_in) == 5
    assert one.is_shared
    assert mortal_redis.say(b"ZCARD penstock:{crm}:app:crm:calls") == b":4\r\n"


async def test_queue_is_bounded_and_takes_do_not_wait_in_it(processes, redis_url):
    (one,) = await processes(redis_url, 1)
    claims = [claim(requests_per_minute=100_000) for _ in range(20_000)]
    taken = await asyncio.gather(*(one.take(each) for each in claims))
    assert all(each.admitted for each in taken)
    assert one._unheard == 0
