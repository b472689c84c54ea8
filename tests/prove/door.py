"""One process at the ledger's door: `python -m tests.prove.door --url ... --seconds 5`. It speaks to no provider.

It counts turns that were held and settled durably, each with its admission and its outcome in the trail.
"""

import argparse
import asyncio
import json
import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime

import uvloop

from cost import Book, Ledger, LedgerSettings
from cost.sql import SqlLedgerStore
from governance import AuditTrail
from governance.sql_audit import DriverChains
from kernel import (
    AuditRecord,
    Caller,
    Component,
    Document,
    ModelRequest,
    Plan,
    SystemClock,
    Target,
    Usage,
    new_id,
)
from kernel.db import Base, make_engine

_IN_FLIGHT = 500
_TARGET = Target("hot", "provider", "hot", context_tokens=8192, output_tokens_max=256)
_REQUEST = ModelRequest(model="hot", fields={}, input_tokens_max=40, output_tokens_max=40)
_USAGE = Usage({Component.INPUT: 10, Component.OUTPUT: 10})
_BODIES = (
    ("price", "hot", {"model": "hot", "usd_per_million_tokens": {"input": "1", "output": "4"}}),
    ("budget", "by-department", {"scope": "department", "of": "d", "period": "month", "limit_usd": "1000000"}),
    ("budget", "by-app", {"scope": "app", "of": "a", "period": "day", "limit_usd": "1000000"}),
    ("budget", "by-key", {"scope": "key", "of": "key_hot", "period": "month", "limit_usd": "1000000"}),
)


@dataclass(slots=True)
class Counted:
    """What a worker did. turns: those that ended within the time; all_turns: also those that ended after it."""

    turns: int = 0
    all_turns: int = 0
    hold_ms: list[float] = field(default_factory=list)

    def told(self, cpu_seconds: float) -> dict[str, float]:
        """The figures, as JSON has them."""
        held = sorted(self.hold_ms)
        return {
            "turns": self.turns,
            "all_turns": self.all_turns,
            "cpu_seconds": cpu_seconds,
            "hold_p50_ms": held[len(held) // 2],
            "hold_p99_ms": held[len(held) * 99 // 100],
        }


def main() -> None:
    """Make the tables, or work for so many seconds from an instant on and say what was done."""
    parser = argparse.ArgumentParser(description="Holds and settlements, as fast as they go.")
    parser.add_argument("--url", required=True)
    parser.add_argument("--prepare", action="store_true")
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--at", type=float, default=0, help="when to start, in seconds of the wall clock")
    given = parser.parse_args()
    work = _prepare(given.url) if given.prepare else _work(given.url, given.seconds, given.at)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        sys.stdout.write(json.dumps(runner.run(work)))


async def _prepare(url: str) -> dict[str, float]:
    engine = make_engine(url)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    await engine.dispose()
    return {"prepared": True}


async def _work(url: str, seconds: float, at: float) -> dict[str, float]:
    engine, clock, process, counted = make_engine(url), SystemClock(), new_id("proc"), Counted()
    now = datetime.now(UTC)
    book = Book.of([Document(kind, name, 1, body, "proof", now) for kind, name, body in _BODIES])
    ledger = Ledger(
        SqlLedgerStore(engine, clock),
        book=lambda: book,
        audit=AuditTrail(DriverChains(), f"turns-{process}", clock=clock),
        clock=clock,
        process=process,
        settings=LedgerSettings(commit_timeout_seconds=10),
    )
    await ledger.start()
    await asyncio.sleep(max(0.0, at - time.time()))
    cpu, until = time.process_time(), time.monotonic() + seconds

    async def turns() -> None:
        while time.monotonic() < until:
            await _turn(ledger, counted)
            counted.turns += time.monotonic() < until
            counted.all_turns += 1

    await asyncio.gather(*(turns() for _ in range(_IN_FLIGHT)))
    spent = time.process_time() - cpu
    await ledger.close()
    await engine.dispose()
    return counted.told(spent)


async def _turn(ledger: Ledger, counted: Counted) -> None:
    caller = Caller(key_id="key_hot", name="hot", app="a", department="d", use_case="proving")
    admission = AuditRecord("turn.admitted", {"requested": "hot"}, turn_id=new_id("req"), app="a", department="d")
    began = time.perf_counter()
    turn = ledger.turn(caller, _REQUEST, Plan("hot", (_TARGET,)), admission)
    async with turn, turn.attempt(_TARGET) as attempt:
        counted.hold_ms.append((time.perf_counter() - began) * 1e3)
        attempt.sent()
        attempt.use(_USAGE, "provider-id")
    await turn.settled()


if __name__ == "__main__":
    main()
