"""Proofs of the walk that are about money: budgets, books, and what a killed process leaves behind."""

import asyncio
import random
import subprocess
import time
from dataclasses import dataclass, field

import aiohttp

from tests.prove.books import (
    audited,
    budget_rows,
    compare,
    open_holds,
    read_attempts,
    reconcile_command,
    write_invoice,
)
from tests.prove.company import chat, chat_and_leave, found_company, scripted
from tests.prove.proofs import Bench, Outcome, proof
from tests.prove.server import Gateway, Simulator

_BUDGETS = """
budgets:
  - {{name: of-department, scope: department, of: proof, period: month, limit_usd: "{department}"}}
  - {{name: of-app, scope: app, of: proof-app, period: day, limit_usd: "{app}"}}
"""
_TOKENS = 30


def _usd(nano: int) -> str:
    return f"{nano / 1_000_000_000:.9f}"


@proof(
    "walk.budget",
    what="500 concurrent turns, streams of unknown length, budget for exactly 100, nested limits, embedded",
    must="overspend 0; open holds 0 after drain; >= 98 % usable",
)
async def budget(bench: Bench) -> Outcome:
    """Everybody asks at once and comes back when told to; a watcher reads the books all the while."""
    async with Simulator(bench.workdir) as simulator, Gateway(bench.workdir) as gateway:
        key = await found_company(gateway, simulator)
        messages = scripted(tokens=_TOKENS, pace_ms=2)
        one = int(float((await chat(gateway, key, messages)).headers["x-penstock-cost-usd"]) * 1e9 + 0.5)
        spent_before = one
        limit = 100 * one + spent_before
        await gateway.apply(_BUDGETS.format(department=_usd(limit), app=_usd(2 * limit)))
        watcher = asyncio.create_task(_watch(gateway, {"of-department": limit, "of-app": 2 * limit}))
        outcomes = await asyncio.gather(*(_insist(gateway, key, messages, at) for at in range(500)))
        watcher.cancel()
        worst = (await asyncio.gather(watcher, return_exceptions=True))[0]
        await _drained(gateway)
        rows = budget_rows(gateway.data_dir)
        billed = sum(_cost(line) for line in simulator.invoice())
    posted, held = rows["of-department"]
    used = (posted - spent_before) / (limit - spent_before)
    over = max(0, posted - limit, billed - limit)
    bench.figure("overspend nano-USD", over)
    bench.figure("open holds", open_holds(gateway.data_dir) + held)
    bench.figure("usable %", round(used * 100, 2))
    bench.figure("answered", outcomes.count(200))
    bench.figure("refused 402", outcomes.count(402))
    seen = isinstance(worst, asyncio.CancelledError)
    met = over == 0 and held == 0 and open_holds(gateway.data_dir) == 0 and used >= 0.98 and seen
    return Outcome(met and outcomes.count(200) + outcomes.count(402) == 500)


def _cost(line) -> int:
    tokens = line.tokens
    return tokens.input * 1000 + tokens.output * 4000


async def _insist(gateway: Gateway, key: str, messages: list[dict[str, str]], at: int) -> int:
    """Ask until there is an answer or the money is spent; two in five say how long the answer may be."""
    members = {"stream": True} if at % 5 else {}
    if at % 5 in {1, 2}:
        members["max_tokens"] = 40
    for _ in range(400):
        answer = await chat(gateway, key, messages, **members)
        if answer.code != "budget_held":
            return answer.status
        await asyncio.sleep(random.uniform(0.1, 0.6))
    return 429


async def _watch(gateway: Gateway, limits: dict[str, int]) -> None:
    """Read the books again and again; return early, with what was seen, if a limit is ever exceeded."""
    while True:
        for budget_id, (posted, held) in budget_rows(gateway.data_dir).items():
            if posted + held > limits.get(budget_id, posted + held):
                raise AssertionError(f"{budget_id}: {posted} + {held} > {limits[budget_id]}")
        await asyncio.sleep(0.02)


async def _drained(gateway: Gateway, seconds: float = 30) -> float:
    """Wait until no hold is open; how long that took."""
    started = time.monotonic()
    while open_holds(gateway.data_dir) and time.monotonic() - started < seconds:
        await asyncio.sleep(0.1)
    return time.monotonic() - started


@dataclass(slots=True)
class Traffic:
    """A mixed load and what its callers saw."""

    turns: int
    seed: int
    asked: int = 0
    quiet: int = 0
    statuses: dict[int, int] = field(default_factory=dict)
    lost: int = 0

    async def run(self, gateway: Gateway, key: str, *, workers: int = 32) -> None:
        """All turns, so many at a time: 60 % streams, 15 % hang up at a random byte, 5 % faults."""
        dice = random.Random(self.seed)
        plans = [self._plan(dice) for _ in range(self.turns)]
        queue = iter(plans)

        async def work() -> None:
            for plan in queue:
                await self._turn(gateway, key, *plan)

        await asyncio.gather(*(work() for _ in range(workers)))

    def _plan(self, dice: random.Random) -> tuple[dict[str, object], dict[str, object], int | None]:
        tokens = dice.randint(1, 60)
        script: dict[str, object] = {"tokens": tokens, "pace_ms": dice.choice([0, 1, 3])}
        if dice.random() < 0.3:
            script["cached"] = 4
        if dice.random() < 0.2:
            script["reasoning"] = dice.randint(1, 20)
        if dice.random() < 0.1:
            script["usage"] = "cumulative"  # no fault, but no whole either where it is cut or left
        stream = dice.random() < 0.6
        if dice.random() < 0.05:
            place = dice.randint(0, tokens)
            faults: list[dict[str, object]] = [
                {"rst_at": place},
                {"fin_at": place},
                {"end_at": place},
                {"error_at": place},
                {"malformed_at": place},
                {"usage": "missing"},
                {"usage": "cumulative", "rst_at": place},
                {"status": dice.choice([429, 500, 503])},
            ]
            script |= dice.choice(faults)
        members: dict[str, object] = {"stream": True} if stream else {}
        if dice.random() < 0.5:
            members["max_tokens"] = 100
        if stream and dice.random() < 0.5:
            members["stream_options"] = {"include_usage": True}
        leave = dice.randint(1, 6000) if dice.random() < 0.15 else None
        return script, members, leave

    async def _turn(
        self, gateway: Gateway, key: str, script: dict[str, object], members: dict[str, object], leave: int | None
    ) -> None:
        self.asked += 1
        try:
            if leave is not None:
                await chat_and_leave(gateway, key, scripted(**script), after_bytes=leave, **members)
                return
            answer = await chat(gateway, key, scripted(**script), **members)
        except (aiohttp.ClientError, TimeoutError, ValueError):
            self.lost += 1
            await asyncio.sleep(0.2)
            return
        self.statuses[answer.status] = self.statuses.get(answer.status, 0) + 1
        self.quiet += not answer.ended_loudly


@proof(
    "walk.books",
    what="1,000 turns against the simulator, 60 % streams, 15 % client aborts at a random byte, 5 % faults",
    must="entries equal the invoice where usage arrived, flagged and not below it elsewhere, equal after importing "
    "the invoice; 0 quiet endings; audit has every turn",
)
async def books(bench: Bench) -> Outcome:
    """Compare the store's own rows with the provider's own file, before and after the import."""
    traffic = Traffic(10_000 if bench.long else 1_000, bench.seed)
    async with Simulator(bench.workdir) as simulator, Gateway(bench.workdir) as gateway:
        key = await found_company(gateway, simulator)
        await traffic.run(gateway, key)
        await _drained(gateway)
        before = compare(simulator.invoice(), read_attempts(gateway.data_dir))
        _reconcile(bench, gateway, simulator)
        after = compare(simulator.invoice(), read_attempts(gateway.data_dir), reconciled=True)
        trail = audited(gateway.data_dir)
        left = open_holds(gateway.data_dir)
    turns = {reference.partition("/")[0] for reference in read_attempts(gateway.data_dir)}
    unaudited = sum(not {"turn.admitted", "turn.ended"} <= trail[turn] for turn in turns)
    bench.figure("turns", traffic.asked)
    bench.figure("invoice lines", len(simulator.invoice()))
    bench.figure("estimated", before.estimated)
    bench.figure("lines without attempt", len(before.without_attempt))
    bench.figure("inexact", len(before.inexact))
    bench.figure("below the invoice", len(before.understated))
    bench.figure("different after import", len(after.inexact))
    bench.figure("quiet endings", traffic.quiet)
    bench.figure("turns not audited", unaudited)
    met = before.exact and after.exact and not traffic.quiet and not unaudited and not left and not traffic.lost
    return Outcome(met and len(turns) >= traffic.turns * 0.99)


def _reconcile(bench: Bench, gateway: Gateway, simulator: Simulator) -> None:
    path = bench.workdir / "import.jsonl"
    write_invoice(simulator.invoice(), path)
    time.sleep(1.1)  # the command takes whole seconds
    command = reconcile_command(bench.python, path)
    subprocess.run(command, check=True, capture_output=True, cwd=bench.root, env=gateway.environment)


@proof(
    "walk.kill",
    what="kill -9 of the server in the middle of that, 5 times",
    must="no invoice line without an attempt; holds swept within 30 s",
)
async def kill(bench: Bench) -> Outcome:
    """Kill, start again, go on; then look for lines nobody knows and holds nobody closed."""
    traffic = Traffic(4_000, bench.seed)
    dice = random.Random(bench.seed)
    slowest, held_at_kill = 0.0, list[int]()
    async with Simulator(bench.workdir) as simulator, Gateway(bench.workdir) as gateway:
        key = await found_company(gateway, simulator)
        load = asyncio.create_task(traffic.run(gateway, key))
        for _ in range(5):
            await asyncio.sleep(dice.uniform(0.4, 1.2))
            await gateway.kill()
            orphans = set(_pending(gateway))
            started = time.monotonic()
            await gateway.start()
            while orphans & set(_pending(gateway)):
                await asyncio.sleep(0.05)
            slowest = max(slowest, time.monotonic() - started)
            held_at_kill.append(len(orphans))
        await load
        await _drained(gateway)
        before = compare(simulator.invoice(), read_attempts(gateway.data_dir))
        _reconcile(bench, gateway, simulator)
        after = compare(simulator.invoice(), read_attempts(gateway.data_dir), reconciled=True)
        left = open_holds(gateway.data_dir)
    bench.figure("open holds when killed", held_at_kill)
    bench.figure("invoice lines", len(simulator.invoice()))
    bench.figure("without attempt", len(before.without_attempt))
    bench.figure("below the invoice", len(before.understated))
    bench.figure("different after import", len(after.inexact))
    bench.figure("slowest sweep s", slowest)
    bench.figure("open holds", left)
    return Outcome(before.exact and after.exact and not left and slowest <= 30 and all(held_at_kill))


def _pending(gateway: Gateway) -> list[str]:
    return [attempt.reference for attempt in read_attempts(gateway.data_dir).values() if attempt.state == "pending"]
