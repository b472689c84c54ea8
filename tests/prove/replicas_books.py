"""Proofs that the books of three processes equal the invoice, whatever is killed, cut off, filled up or put forward."""

import asyncio
import random
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.postgres import PostgresServer
from tests.chaos.proxy import Proxy
from tests.chaos.redis import RedisServer
from tests.chaos.replicas import Cluster, Replicas, cluster
from tests.prove.proofs import Bench, NotRun, Outcome, proof
from tests.prove.replicas_load import Load, Probes, Seen, audited_books
from tests.prove.server import Simulator

_ANSWER_SECONDS = 2.5  # the two that are promised, and half a one for a machine that does everything at once
_NEVER = frozenset({401, 402, 500})
_TMPFS_BYTES = 170_000_000

Act = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Fault:
    """What is done to the system, and undone after so many seconds. store: the books cannot be written meanwhile."""

    name: str
    begin: Act
    end: Act
    seconds: float
    store: bool = False


async def _nothing() -> None:
    """The fault of having none."""


async def stand(bench: Bench, built: Cluster, fault: Fault, *, turns: int) -> bool:
    """Put the load on, do the damage in its midst, undo it, and hold the books against the invoice."""
    load, probes = Load(turns, random.Random(f"{bench.seed}{fault.name}").getrandbits(32)), Probes()
    running = asyncio.create_task(load.run(built.replicas, built.key))
    await _until(lambda: load.served >= turns // 4 or running.done())
    began = time.monotonic()
    await fault.begin()
    probing = asyncio.create_task(probes.run(built.replicas, built.key))
    await asyncio.sleep(fault.seconds)
    probes.stopped = True
    await fault.end()
    ended = time.monotonic()
    await probing
    await running
    resumed = min((seen.at + seen.seconds for seen in load.seen if seen.at > ended and seen.status == 200), default=0)
    verdict = await audited_books(bench, built)
    broken = [seen for seen in (*load.seen, *probes.seen) if began < seen.at < ended]
    answers = _answers(broken) if fault.store else 0.0
    wrong = sum(seen.status in _NEVER for seen in broken)
    bench.note(
        f"{fault.name}: {load.served} turns of which asked {len(load.seen)}, {verdict.lines} lines so far; "
        f"probes {probes.statuses() or 'none'}; slowest 503 {answers:.2f} s; 200 again {resumed - ended:.2f} s after; "
        f"without attempt {len(verdict.before.without_attempt)}, below {len(verdict.before.understated)}, inexact "
        f"{len(verdict.before.inexact)}, different after import {len(verdict.after.inexact)}, booked but not billed "
        f"{verdict.phantoms}, open holds {verdict.open_holds}, estimated {verdict.before.estimated}, quiet endings "
        f"{load.quiet}, wrong answers {wrong}"
    )
    refused = any(seen.status == 503 for seen in probes.seen)
    told = not fault.store or (answers <= _ANSWER_SECONDS and (refused or fault.seconds < 2))
    met = verdict.exact and told and not wrong and not load.quiet and load.served == turns
    bench.figure(fault.name, "0 different" if met else "NOT MET")
    return met


def _answers(broken: list[Seen]) -> float:
    """How long the slowest refusal took, or the slowest that came to nothing."""
    return max((seen.seconds for seen in broken if seen.status == 503), default=0.0)


async def _until(reached: Callable[[], bool]) -> None:
    while not reached():
        await asyncio.sleep(0.02)


@proof(
    "replicas.books",
    what="2,000 turns (LONG 20,000) on 3 processes under each: no fault, kill -9 of a gateway, of PostgreSQL, of Redis,"
    " FLUSHALL",
    must="every invoice line has one attempt; never below the invoice; 0 tokens of difference after reconcile; in an "
    "outage 503 within 2 s, never 401/402/500; resumes by itself",
)
async def books(bench: Bench) -> Outcome:
    """One cluster, one fault after the other; the invoice and the books grow all the while."""
    async with cluster(bench.workdir) as built:
        victim = random.Random(bench.seed).randrange(3)
        kills = (
            Fault("none", _nothing, _nothing, 0),
            Fault("FLUSHALL", built.redis.flushall, _nothing, 0.5),
            Fault("kill -9 Redis", built.redis.kill9, built.redis.start, 2),
            Fault("kill -9 PostgreSQL", built.postgres.kill9, built.postgres.start, 2, store=True),
            Fault(
                "kill -9 gateway",
                lambda: built.replicas.kill(victim),
                lambda: built.replicas.restart(victim),
                1,
            ),
        )
        met = [await stand(bench, built, fault, turns=_turns(bench)) for fault in kills]
    bench.figure("turns each", _turns(bench))
    return Outcome(all(met))


@proof(
    "replicas.books.network",
    what="the same with PostgreSQL, then the provider, behind a black hole for 1 and for 10 s",
    must="as replicas.books",
)
async def network(bench: Bench) -> Outcome:
    """Every byte to either goes through a proxy of ours, which stops forwarding and says nothing."""
    async with _proxied(bench) as (built, to_store, to_provider):
        faults = [
            Fault(f"{name} black-holed {seconds:g} s", proxy.black_hole, proxy.let_pass, seconds, store=store)
            for name, proxy, store in (("PostgreSQL", to_store, True), ("provider", to_provider, False))
            for seconds in (1.0, 10.0)
        ]
        met = [await stand(bench, built, fault, turns=_turns(bench)) for fault in faults]
    bench.figure("turns each", _turns(bench))
    return Outcome(all(met))


@asynccontextmanager
async def _proxied(bench: Bench) -> AsyncIterator[tuple[Cluster, Proxy, Proxy]]:
    folder = bench.workdir
    async with (
        PostgresServer(folder) as postgres,
        RedisServer(folder) as redis,
        Simulator(folder) as simulator,
        Proxy(folder, postgres.port, name="to-store") as to_store,
        Proxy(folder, simulator.port, name="to-provider") as to_provider,
        Replicas(folder, database_url=postgres.url_through(to_store.port), redis_url=redis.url) as replicas,
    ):
        key = await replicas.found(simulator, base_url=f"http://127.0.0.1:{to_provider.port}/v1")
        yield Cluster(postgres, redis, simulator, replicas, key), to_store, to_provider


@proof(
    "replicas.books.disk",
    what="the same with the disk of PostgreSQL full for 4 s (a tmpfs; where root)",
    must="as replicas.books",
)
async def disk(bench: Bench) -> Outcome:
    """Fill what is left of a small disk, and make room again; a PostgreSQL that gave up is started again."""
    async with AsyncExitStack() as held:
        room = held.enter_context(tempfile.TemporaryDirectory(prefix="small-disk-"))
        if await _run("mount", "-t", "tmpfs", "-o", f"size={_TMPFS_BYTES},mode=0777", "tmpfs", room):
            raise NotRun("a disk of fixed size needs the right to mount")
        held.push_async_callback(_run, "umount", "--lazy", room)
        built = await held.enter_async_context(cluster(bench.workdir, on=Path(room)))
        ballast = Path(room) / "ballast"

        async def fill() -> None:
            await _run("dd", "if=/dev/zero", f"of={ballast}", "bs=64k")

        async def free() -> None:
            ballast.unlink()
            if not built.postgres.alive:
                bench.note("PostgreSQL had stopped itself; it is started again")
                await built.postgres.start()

        met = await stand(bench, built, Fault("disk full", fill, free, 4, store=True), turns=_turns(bench))
    bench.figure("turns", _turns(bench))
    return Outcome(met)


@proof(
    "replicas.books.clock",
    what="the same while the gateways' wall clock jumps an hour ahead and a day back (libfaketime)",
    must="as replicas.books; periods as the database's clock says",
)
async def clock(bench: Bench) -> Outcome:
    """The wall clock of all gateways follows a file; the monotonic one goes on as it was."""
    library = next(iter(sorted(Path("/usr/lib").glob("**/libfaketimeMT.so.1"))), None)
    if library is None:
        raise NotRun("libfaketime is not installed")
    shown = bench.workdir / "clock"
    shown.write_text("+0")
    settings = {
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(shown),
        "FAKETIME_CACHE_DURATION": "1",  # seconds; read at every look at the clock, the file itself takes the cores
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        # Its mending of monotonic waits makes the threads of a Python process wait for their lock by spinning.
        "FAKETIME_FORCE_MONOTONIC_FIX": "0",
    }
    async with cluster(bench.workdir, settings=settings) as built:

        def jump(to: str) -> Act:
            async def act() -> None:
                coming = shown.with_suffix(".coming")
                coming.write_text(to)
                coming.replace(shown)

            return act

        faults = (Fault("clock +1 h", jump("+1h"), jump("+0"), 3), Fault("clock -1 day", jump("-1d"), jump("+0"), 3))
        met = [await stand(bench, built, fault, turns=_turns(bench)) for fault in faults]
    bench.figure("turns each", _turns(bench))
    return Outcome(all(met))


async def _run(*command: str) -> int:
    nowhere = asyncio.subprocess.DEVNULL
    return await (await asyncio.create_subprocess_exec(*command, stdout=nowhere, stderr=nowhere)).wait()


def _turns(bench: Bench) -> int:
    return 20_000 if bench.long else 2_000
