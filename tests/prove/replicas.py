"""Proofs of several processes that are about money: one budget they all draw on, and how fast it can be drawn on."""

import asyncio
import json
import random
import time
from collections import Counter
from dataclasses import dataclass, field

import aiohttp
import asyncpg

from tests.chaos.postgres import PostgresServer, plain
from tests.chaos.replicas import Cluster, cluster
from tests.prove.books import budget_rows, open_holds, open_references, read_attempts
from tests.prove.company import Answer, chat, scripted
from tests.prove.proofs import Bench, Outcome, proof
from tests.prove.replicas_load import drained, phantoms, reconcile
from tests.prove.server import IssuedKey
from tests.sim.invoice import Line

_TURNS = 1_500
_TOKENS = 30
_MESSAGES = scripted(tokens=_TOKENS, pace_ms=1)

_COMPANY = """
departments: [{{name: dep-{run}}}]
apps: [{{name: app-{run}, department: dep-{run}, use_cases: [proving]}}]
policies:
  - {{name: open-{run}, models: [sim-small], departments: [dep-{run}], use_cases: [proving], data_class: internal}}
"""
_BUDGETS = """
budgets:
  - {{name: b-key-{run}, scope: key, of: {key}, period: month, limit_usd: "{limit}"}}
  - {{name: b-app-{run}, scope: app, of: app-{run}, period: day, limit_usd: "{wider}"}}
  - {{name: b-department-{run}, scope: department, of: dep-{run}, period: month, limit_usd: "{widest}"}}
"""


@dataclass(frozen=True, slots=True)
class Purse:
    """The money of one run: a key whose budget is for exactly a hundred turns, under two wider ones."""

    run: str
    key: IssuedKey
    limit: int

    @property
    def limits(self) -> dict[str, int]:
        """Nano-dollars by budget, the narrowest first."""
        names = (f"b-key-{self.run}", f"b-app-{self.run}", f"b-department-{self.run}")
        return dict(zip(names, (self.limit, self.limit + 1, 2 * self.limit), strict=True))


@dataclass(slots=True)
class Ended:
    """How a run ended. worst: the most that any budget ever had posted and held beyond its limit.

    orphans: holds that a killed process left open. drained_seconds: until the last hold was closed, theirs included.
    """

    answers: Counter[int] = field(default_factory=Counter)
    worst: int = 0
    readings: int = 0
    orphans: int = 0
    drained_seconds: float = 0.0
    open_holds: int = 0
    used: float = 0.0
    overspent: int = 0
    phantoms: int = 0

    @property
    def met(self) -> bool:
        """Nothing over, nothing open, nearly all of it usable."""
        nothing = self.worst <= 0 and self.overspent <= 0 and self.open_holds == 0 and not self.phantoms
        return nothing and self.drained_seconds <= 30 and self.used >= 0.98 and self.readings > 0


@proof(
    "replicas.budget",
    what="3 processes x 500 concurrent turns on a budget for exactly 100, three nested scopes, streams of unknown "
    "length; rounds: plain, Redis killed, a process killed holding",
    must="overspend 0 in 10 of 10 runs (LONG 100); >= 98 % usable after drain; open holds 0 within 30 s",
)
async def budget(bench: Bench) -> Outcome:
    """Every run has a department, an app and a key of its own; a watcher reads the books all the while."""
    kinds = ["plain"] * 5 + ["Redis killed"] * 3 + ["process killed"] * 2
    runs = kinds * 10 if bench.long else kinds
    ended = dict[str, list[Ended]]()
    async with cluster(bench.workdir) as built:
        one = await _cost_of_one(built)
        for number, kind in enumerate(runs):
            purse = await _fill(built, f"{number:03}", 100 * one)
            ended.setdefault(kind, []).append(found := await _run(bench, built, purse, kind))
            bench.note(
                f"{kind}: {dict(found.answers)}, over {max(found.worst, found.overspent, 0)} in {found.readings} "
                f"readings, used {found.used:.2%}, drained in {found.drained_seconds:.1f} s, left "
                f"by the dead {found.orphans}"
            )
    every = [each for kind in ended.values() for each in kind]
    bench.figure("runs met", f"{sum(each.met for each in every)} of {len(every)}")
    bench.figure("turns each", _TURNS)
    bench.figure("overspend nano-USD", max(0, *(max(each.worst, each.overspent) for each in every)))
    bench.figure("usable %, least", round(min(each.used for each in every) * 100, 2))
    bench.figure("open holds", sum(each.open_holds for each in every))
    bench.figure("slowest drain s", round(max(each.drained_seconds for each in every), 1))
    bench.figure("holds left by killed processes", sum(each.orphans for each in every))
    bench.figure("runs", ", ".join(f"{kind} x {len(each)}" for kind, each in ended.items()))
    return Outcome(all(each.met for each in every) and any(each.orphans for each in every))


async def _run(bench: Bench, built: Cluster, purse: Purse, kind: str) -> Ended:
    ended = Ended()
    watching = asyncio.create_task(_watch(built.store, purse.limits, ended))
    victim = random.randrange(len(built.replicas.gateways))
    held = await _hold_slowly(built, purse, victim) if kind == "process killed" else []
    asking = asyncio.gather(*(_insist(built, purse, ended, at) for at in range(_TURNS)))
    if kind != "plain":
        await _until_held(built, purse)
        await (_kill_redis(built) if kind == "Redis killed" else _kill_process(built, ended, victim))
    await asyncio.gather(asking, *held, return_exceptions=True)
    ended.drained_seconds = max(ended.drained_seconds, await drained(built.store))
    if kind == "process killed":
        # What it held stands as an estimate. Once the invoice says what came of it, the rest can be spent.
        while (await built.simulator.stats())["answering"]:
            await asyncio.sleep(0.05)
        await reconcile(bench, built)
        await asyncio.gather(*(_insist(built, purse, ended, at) for at in range(100)))
        await drained(built.store)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    _read(built, purse, ended)
    return ended


def _read(built: Cluster, purse: Purse, ended: Ended) -> None:
    rows, attempts, invoice = budget_rows(built.store), read_attempts(built.store), built.simulator.invoice()
    for name, limit in purse.limits.items():
        posted, held = rows[name]
        ended.overspent = max(ended.overspent, posted + held - limit)
        ended.open_holds += held
    ended.used = rows[f"b-key-{purse.run}"][0] / purse.limit
    ended.open_holds += open_holds(built.store)
    ended.phantoms = sum(attempts[reference].estimated is False for reference in phantoms(invoice, attempts))


async def _cost_of_one(built: Cluster) -> int:
    await built.replicas.chat(built.key, _MESSAGES)
    return max(_cost(line) for line in built.simulator.invoice())


def _cost(line: Line) -> int:
    return line.tokens.input * 1_000 + line.tokens.output * 4_000


async def _fill(built: Cluster, run: str, limit: int) -> Purse:
    admin = built.replicas.admin
    await admin.apply(_COMPANY.format(run=run))
    purse = Purse(run, await admin.issue_key(name=f"key-{run}", app=f"app-{run}"), limit)
    usd = {name: f"{nano / 1e9:.9f}" for name, nano in purse.limits.items()}
    key, app, department = usd.values()
    await admin.apply(_BUDGETS.format(run=run, key=purse.key.id, limit=key, wider=app, widest=department))
    await built.replicas.agree(purse.key.key)
    await asyncio.sleep(0.7)  # a budget cannot be seen from outside; the feed is polled twice a second
    return purse


async def _insist(built: Cluster, purse: Purse, ended: Ended, at: int) -> None:
    """Ask until there is an answer or the money is spent; two in five say how long the answer may be."""
    members = {"stream": True} if at % 5 else {}
    if at % 5 in {1, 2}:
        members["max_tokens"] = 40
    status = 0
    for _ in range(600):
        try:
            answer = await built.replicas.chat(purse.key.key, _MESSAGES, **members)
        except (aiohttp.ClientError, TimeoutError, ValueError):
            status = 0
            break  # cut by the kill: what it was is in the books
        status = answer.status
        if answer.code != "budget_held" and status != 503:
            break
        await asyncio.sleep(random.uniform(0.3, 1.5))
    ended.answers[status] += 1


async def _watch(url: str, limits: dict[str, int], ended: Ended) -> None:
    """Read the balances again and again, each time all of them at one instant."""
    connection = await asyncpg.connect(plain(url))
    try:
        while True:
            rows = await connection.fetch(
                "SELECT split_part(budget_id, '@', 1) AS budget, posted_nano_usd + held_nano_usd AS taken "
                "FROM budget_periods WHERE split_part(budget_id, '@', 1) = ANY($1)",
                list(limits),
            )
            for row in rows:
                ended.worst = max(ended.worst, row["taken"] - limits[row["budget"]])
            ended.readings += bool(rows)
            await asyncio.sleep(0.02)
    finally:
        await connection.close()


async def _until_held(built: Cluster, purse: Purse) -> None:
    async with asyncio.timeout(20):
        while not budget_rows(built.store).get(f"b-key-{purse.run}", (0, 0))[1]:
            await asyncio.sleep(0.01)


async def _kill_redis(built: Cluster) -> None:
    await built.redis.kill9()
    await asyncio.sleep(1)
    await built.redis.start()


async def _hold_slowly(built: Cluster, purse: Purse, number: int) -> list[asyncio.Task[Answer]]:
    """Ten turns that one process holds for seconds, each for no more money than the others."""
    gateway, slow = built.replicas.gateways[number], scripted(tokens=_TOKENS, pace_ms=200)
    asked = [asyncio.create_task(chat(gateway, purse.key.key, slow, stream=True, max_tokens=40)) for _ in range(10)]
    async with asyncio.timeout(10):
        while (await built.simulator.stats())["answering"] < len(asked):
            await asyncio.sleep(0.02)
    return asked


async def _kill_process(built: Cluster, ended: Ended, number: int) -> None:
    await asyncio.sleep(0.5)
    held, began = open_references(built.store), time.monotonic()
    await built.replicas.kill(number)
    await asyncio.sleep(2)
    ended.orphans = len(held & open_references(built.store))
    await built.replicas.restart(number)
    while held & open_references(built.store) and time.monotonic() - began < 45:
        await asyncio.sleep(0.1)
    ended.drained_seconds = time.monotonic() - began


@proof(
    "replicas.door",
    what="holds and settlements at the ledger's door: 3 OS processes, 500 turns in flight each, one hot department, "
    "app and key, the real trail, one PostgreSQL",
    must=">= 5,000 turns/s on 2 cores, all durable",
    best_of=3,
)
async def door(bench: Bench) -> Outcome:
    """Three workers start together, and what they count is held against what the store says."""
    seconds = 20 if bench.long else 5
    async with PostgresServer(bench.workdir) as postgres:
        prepared = await _worker(bench, postgres.url, "--prepare")
        assert prepared == {"prepared": True}, prepared
        at = time.time() + 3
        async with asyncio.TaskGroup() as working:
            tasks = [
                working.create_task(_worker(bench, postgres.url, "--seconds", str(seconds), "--at", f"{at}"))
                for _ in range(3)
            ]
        told = [task.result() for task in tasks]
        rows = budget_rows(postgres.url)
        left = open_holds(postgres.url)
        connection = await asyncpg.connect(plain(postgres.url))
        entries = await connection.fetchval("SELECT count(*) FROM entries")
        ended = await connection.fetchval("SELECT count(*) FROM audit WHERE event = 'turn.ended'")
        await connection.close()
    turns = sum(each["all_turns"] for each in told)
    rate = sum(each["turns"] for each in told) / seconds
    bench.figure("turns/s", round(rate))
    bench.figure("CPU us/turn", round(1e6 * sum(each["cpu_seconds"] for each in told) / turns))
    bench.figure("hold p50 ms", round(sorted(each["hold_p50_ms"] for each in told)[1], 1))
    bench.figure("hold p99 ms", round(max(each["hold_p99_ms"] for each in told), 1))
    bench.figure("entries", f"{entries} for {turns} turns, {ended} in the trail")
    bench.figure("left held", left + sum(held for _, held in rows.values()))
    exact = entries == 2 * turns and ended == turns and not left and not any(held for _, held in rows.values())
    return Outcome(rate >= 5_000 and exact)


async def _worker(bench: Bench, url: str, *more: str) -> dict[str, float]:
    log = bench.workdir / "door.log"
    with log.open("ab") as complaints:
        ran = await asyncio.create_subprocess_exec(
            *[bench.python, "-m", "tests.prove.door", "--url", url, *more],
            cwd=bench.root,
            stdout=asyncio.subprocess.PIPE,
            stderr=complaints,
        )
    try:
        said, _ = await ran.communicate()
    finally:
        if ran.returncode is None:
            ran.kill()
            await ran.wait()
    assert ran.returncode == 0, f"a worker ended: {log.read_text()[-200:]}"
    told: dict[str, float] = json.loads(said)
    return told
