"""A mixed load on several processes whose callers come back when they are told to, and what all of them saw."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import aiohttp

from tests.chaos.replicas import Cluster, Replicas
from tests.prove.books import (
    Attempt,
    Difference,
    Store,
    compare,
    open_holds,
    read_attempts,
    reconcile_command,
    write_invoice,
)
from tests.prove.company import chat, chat_and_leave, scripted
from tests.prove.proofs import Bench
from tests.prove.walk_money import Traffic
from tests.sim.invoice import Line

_LOST = (aiohttp.ClientError, TimeoutError, ValueError)


@dataclass(frozen=True, slots=True)
class Seen:
    """One request as its caller saw it. status 0: the connection broke, and code says how.

    at: seconds on the monotonic clock.
    """

    at: float
    seconds: float
    status: int
    code: str | None = None


@dataclass(slots=True)
class Load:
    """So many turns that each end in an answer, however often they are asked: 503 and broken connections come again.

    stopped: set, to have no more begun.
    """

    turns: int
    seed: int
    served: int = 0
    quiet: int = 0
    seen: list[Seen] = field(default_factory=list)
    stopped: bool = False

    async def run(self, replicas: Replicas, key: str, *, workers: int = 48) -> None:
        """All turns, so many at a time: 60 % streams, 15 % hang up at a random byte, 5 % faults."""
        dice, traffic = random.Random(self.seed), Traffic(self.turns, self.seed)
        plans = (traffic._plan(dice) for _ in range(self.turns))

        async def work() -> None:
            for plan in plans:
                while not (self.stopped or await self._turn(replicas, key, *plan)):
                    await asyncio.sleep(random.uniform(0.1, 0.4))
                if self.stopped:
                    return

        await asyncio.gather(*(work() for _ in range(workers)))

    async def _turn(
        self, replicas: Replicas, key: str, script: dict[str, object], members: dict[str, object], leave: int | None
    ) -> bool:
        began = time.monotonic()
        try:
            if leave is not None:
                await chat_and_leave(replicas.next(), key, scripted(**script), after_bytes=leave, **members)
                self.served += 1
                return True
            answer = await replicas.chat(key, scripted(**script), **members)
        except _LOST as broken:
            self.seen.append(Seen(began, time.monotonic() - began, 0, type(broken).__name__))
            return False
        self.seen.append(Seen(began, time.monotonic() - began, answer.status, answer.code))
        if answer.status == 503:
            return False
        self.served += 1
        self.quiet += not answer.ended_loudly
        return True


@dataclass(slots=True)
class Probes:
    """Small requests to every process in turn, each a few times a second, while something is broken."""

    seen: list[Seen] = field(default_factory=list)
    stopped: bool = False

    async def run(self, replicas: Replicas, key: str) -> None:
        """Until `stopped`; a probe under way is seen to its end."""
        async with asyncio.TaskGroup() as probing:
            while not self.stopped:
                for gateway in replicas.live:
                    probing.create_task(self._probe(gateway, key))
                await asyncio.sleep(0.25)

    async def _probe(self, gateway, key: str) -> None:
        began = time.monotonic()
        try:
            async with asyncio.timeout(30):
                answer = await chat(gateway, key, scripted(tokens=1), max_tokens=16)
        except _LOST:
            self.seen.append(Seen(began, time.monotonic() - began, 0))
            return
        self.seen.append(Seen(began, time.monotonic() - began, answer.status, answer.code))

    def statuses(self) -> str:
        """What they were told, with how often."""
        return ", ".join(
            f"{status} x {count}" for status, count in sorted(Counter(s.status for s in self.seen).items())
        )


@dataclass(frozen=True, slots=True)
class Verdict:
    """The books against the invoice, before and after it was imported."""

    lines: int
    before: Difference
    after: Difference
    phantoms: int
    open_holds: int

    @property
    def exact(self) -> bool:
        """Nothing missing, nothing below, nothing different afterwards, nothing booked that was not billed."""
        return self.before.exact and self.after.exact and not self.phantoms and not self.open_holds


async def audited_books(bench: Bench, cluster: Cluster, providers: Iterable[str] = ("sim",)) -> Verdict:
    """Wait for quiet, compare, import the invoice as complete, compare again."""
    await settled(cluster)
    before = compare(cluster.simulator.invoice(), read_attempts(cluster.store))
    await reconcile(bench, cluster, providers)
    invoice, attempts = cluster.simulator.invoice(), read_attempts(cluster.store)
    after = compare(invoice, attempts, reconciled=True)
    return Verdict(len(invoice), before, after, len(phantoms(invoice, attempts)), open_holds(cluster.store))


def phantoms(invoice: list[Line], attempts: dict[str, Attempt]) -> list[str]:
    """Attempts that cost something though no line of a complete invoice names them."""
    billed = {line.client_request_id for line in invoice}
    return [each.reference for each in attempts.values() if each.cost_nano_usd and each.reference not in billed]


async def settled(cluster: Cluster, *, seconds: float = 45) -> float:
    """Wait until the provider answers nobody and no hold is open; how long the holds took."""
    while (await cluster.simulator.stats())["answering"]:
        await asyncio.sleep(0.05)
    return await drained(cluster.store, seconds=seconds)


async def drained(store: Store, *, seconds: float = 45) -> float:
    """Wait until no hold is open; how long that took."""
    began = time.monotonic()
    while open_holds(store) and time.monotonic() - began < seconds:
        await asyncio.sleep(0.2)
    return time.monotonic() - began


async def reconcile(bench: Bench, cluster: Cluster, providers: Iterable[str] = ("sim",)) -> None:
    """`penstock reconcile` with the whole invoice, which is each of these providers' own."""
    path = bench.workdir / "import.jsonl"
    write_invoice(cluster.simulator.invoice(), path)
    await asyncio.sleep(1.1)  # the command takes whole seconds
    for provider in providers:
        ran = await asyncio.create_subprocess_exec(
            *reconcile_command(bench.python, path, provider),
            cwd=bench.root,
            env=cluster.replicas.gateways[0].environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        said, _ = await ran.communicate()
        assert ran.returncode == 0, said.decode()[-300:]
