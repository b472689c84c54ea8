"""Proofs that what an administrator takes away is gone in every process, whether they are told of it or must look."""

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp

from tests.chaos.postgres import PostgresServer
from tests.chaos.proxy import Proxy
from tests.chaos.redis import RedisServer
from tests.chaos.replicas import Cluster, Replicas
from tests.prove.company import chat, scripted
from tests.prove.proofs import Bench, Outcome, proof
from tests.prove.server import Gateway, IssuedKey, Simulator

_ASK = scripted(tokens=1)
_LONG = scripted(tokens=250, pace_ms=100)
_BOUND_SECONDS = 2.0

_SHARE = """
departments: [{{name: d{at}}}]
apps: [{{name: a{at}, department: d{at}, use_cases: [proving]}}]
policies:
  - {{name: p{at}, models: [sim-small], departments: [d{at}], use_cases: [proving], data_class: internal}}
"""
_SHUT = """
policies:
  - {{name: p{at}, models: [sim-large], departments: [d{at}], use_cases: [proving], data_class: internal}}
"""


@dataclass(slots=True)
class Effects:
    """How long after the administrator's answer the old state was last seen, in seconds; and what never changed."""

    seconds: list[float] = field(default_factory=list)
    streams: list[float] = field(default_factory=list)
    quiet: int = 0
    never: int = 0

    def p99_ms(self) -> float:
        """The effect that all but one in a hundred are faster than."""
        return round(sorted(self.seconds)[len(self.seconds) * 99 // 100] * 1e3, 1)

    @property
    def worst(self) -> float:
        """The slowest of all."""
        return max(*self.seconds, 0.0, 0.0)


@proof(
    "replicas.revoke",
    what="200 keys revoked and 50 policies changed at random instants in one 60 s run (short: 66 and 16 in 20 s) under "
    "load on 3 processes; pub/sub alive, and lost in a black hole",
    must="p99 <= 500 ms alive; never after 2 s; open streams of a revoked key end within 2 s",
)
async def revoke(bench: Bench) -> Outcome:
    """Each key and each policy is tried at all three processes without pause, before and after it is taken away."""
    seconds, keys, policies = (60.0, 200, 50) if bench.long else (20.0, 66, 16)
    async with _proxied(bench) as (built, to_redis):
        alive = await _run(bench, built, "alive", seconds=seconds, keys=keys, policies=policies)
        await to_redis.black_hole()
        lost = await _run(bench, built, "lost", seconds=seconds, keys=keys, policies=policies)
    for name, effects in (("alive", alive), ("lost", lost)):
        bench.figure(f"{name}: p99 ms", effects.p99_ms())
        bench.figure(f"{name}: worst s", round(effects.worst, 3))
        bench.figure(f"{name}: slowest end of a stream s", round(max(effects.streams), 3))
        bench.figure(f"{name}: quiet or unended streams", effects.quiet)
        bench.figure(f"{name}: without effect", effects.never)
    bench.figure("changes each", f"{keys} keys and {policies} policies in {seconds:g} s")
    bounded = all(each.worst <= _BOUND_SECONDS and max(each.streams) <= _BOUND_SECONDS for each in (alive, lost))
    whole = not any(each.quiet or each.never for each in (alive, lost))
    return Outcome(bounded and whole and alive.p99_ms() <= 500)


async def _run(bench: Bench, built: Cluster, name: str, *, seconds: float, keys: int, policies: int) -> Effects:
    dice, effects = random.Random(f"{bench.seed}{name}"), Effects()
    admin = built.replicas.admin
    issued = [await admin.issue_key(name=f"{name}-{at}", app="proof-app") for at in range(keys)]
    shares = [f"{name}-{at}" for at in range(policies)]
    for at in shares:
        await admin.apply(_SHARE.format(at=at))
    holders = [await admin.issue_key(name=at, app=f"a{at}") for at in shares]
    await asyncio.gather(*(built.replicas.agree(each.key) for each in (*issued[-3:], *holders[-3:])))
    stop = asyncio.Event()
    load = [asyncio.create_task(_load(built, stop)) for _ in range(6)]
    changes = [
        *(
            _revoke(built, key, effects, after=dice.uniform(1, seconds), stream=at % 3 == 0)
            for at, key in enumerate(issued)
        ),
        *(
            _shut(built, at, key, effects, after=dice.uniform(1, seconds))
            for at, key in zip(shares, holders, strict=True)
        ),
    ]
    await asyncio.gather(*changes)
    stop.set()
    await asyncio.gather(*load)
    return effects


async def _load(built: Cluster, stop: asyncio.Event) -> None:
    while not stop.is_set():
        try:
            await built.replicas.chat(built.key, scripted(tokens=20, pace_ms=2), stream=True)
        except (aiohttp.ClientError, TimeoutError):
            await asyncio.sleep(0.1)


async def _revoke(built: Cluster, key: IssuedKey, effects: Effects, *, after: float, stream: bool) -> None:
    """Take the key away at its instant, and see when the last process lets it in for the last time."""
    await asyncio.sleep(after - 0.7)
    streams = [asyncio.create_task(_follow(gateway, key)) for gateway in built.replicas.live] if stream else []
    await asyncio.sleep(0.7)
    admin = built.replicas.next()
    await admin.ask("DELETE", f"/api/keys/{key.id}", key=admin.quickstart.admin_key)
    gone = time.monotonic()
    await _until_refused(built, key, effects, gone=gone, status=401)
    for ended in streams:
        at, loud = await ended
        effects.streams.append(at - gone)
        effects.quiet += not loud


async def _shut(built: Cluster, at: str, key: IssuedKey, effects: Effects, *, after: float) -> None:
    """Withdraw what the policy opened, and see when the last process says no."""
    await asyncio.sleep(after)
    await built.replicas.next().apply(_SHUT.format(at=at))
    await _until_refused(built, key, effects, gone=time.monotonic(), status=403)


async def _until_refused(built: Cluster, key: IssuedKey, effects: Effects, *, gone: float, status: int) -> None:
    last = await asyncio.gather(*(_last_let_in(each, key.key, status, gone) for each in built.replicas.live))
    effects.seconds.append(max(last))
    effects.never += any(seconds > 5 for seconds in last)


async def _last_let_in(gateway: Gateway, key: str, status: int, gone: float) -> float:
    """Seconds after `gone` at which the last request began that was not refused; 0 if there was none."""
    last = 0.0
    while (began := time.monotonic()) - gone < 6:
        if (await chat(gateway, key, _ASK, max_tokens=16)).status == status:
            return last
        last = began - gone
        await asyncio.sleep(0.02)
    return last


async def _follow(gateway: Gateway, key: IssuedKey) -> tuple[float, bool]:
    """A long stream to its end: when that was, and whether it said why."""
    try:
        async with asyncio.timeout(20):
            answer = await chat(gateway, key.key, _LONG, stream=True)
    except (aiohttp.ClientError, TimeoutError):
        return time.monotonic(), False
    return time.monotonic(), bool(answer.events) and '"error"' in answer.events[-1]


@asynccontextmanager
async def _proxied(bench: Bench) -> AsyncIterator[tuple[Cluster, Proxy]]:
    folder = bench.workdir
    async with (
        PostgresServer(folder) as postgres,
        RedisServer(folder) as redis,
        Simulator(folder) as simulator,
        Proxy(folder, redis.port, name="to-redis") as proxy,
        Replicas(folder, database_url=postgres.url, redis_url=redis.url_through(proxy.port)) as replicas,
    ):
        yield Cluster(postgres, redis, simulator, replicas, await replicas.found(simulator)), proxy
