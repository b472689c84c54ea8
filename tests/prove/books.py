"""Checkers: pure readings of the books and the invoice, from the store's own tables and the provider's own file.

A store is the data folder of an embedded gateway, or the URL of a PostgreSQL.
"""

import asyncio
import json
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
import msgspec

from tests.sim.invoice import Line

Store = Path | str
_OUTPUTS = frozenset({"output", "reasoning", "audio_output"})


@dataclass(frozen=True, slots=True)
class Attempt:
    """An attempt as its entries tell it. tokens: sum over posting and corrections; state: pending, post or void."""

    reference: str
    state: str
    estimated: bool
    corrected: bool
    tokens: Mapping[str, int]
    held_nano_usd: int
    cost_nano_usd: int


@dataclass(frozen=True, slots=True)
class Difference:
    """What the books and the invoice say differently, by kind; all empty when they agree."""

    without_attempt: tuple[str, ...]
    inexact: tuple[str, ...]
    understated: tuple[str, ...]
    estimated: int

    @property
    def exact(self) -> bool:
        """Every line has its attempt, exact ones agree to the token, and no estimate is below the invoice."""
        return not (self.without_attempt or self.inexact or self.understated)


def read_attempts(store: Store) -> dict[str, Attempt]:
    """Every attempt by its reference `turn/attempt`."""
    rows = _query(
        store, "SELECT turn_id, attempt, step, kind, amount_nano_usd, estimated, tokens FROM entries ORDER BY step"
    )
    found: dict[str, list[tuple]] = defaultdict(list)
    for turn_id, attempt, *rest in rows:
        found[f"{turn_id}/{attempt}"].append(tuple(rest))
    return {reference: _attempt(reference, entries) for reference, entries in found.items()}


def _attempt(reference: str, entries: list[tuple]) -> Attempt:
    tokens: dict[str, int] = defaultdict(int)
    held = sum(amount for step, _, amount, *_ in entries if step == 0)
    closings = [entry for entry in entries if entry[0] > 0]
    for entry in closings:
        for part, count in json.loads(entry[4] or "{}").items():
            tokens[part] += count
    state = closings[0][1] if closings else "pending"
    estimated = bool(closings and closings[0][3])
    cost = sum(amount for step, _, amount, *_ in closings)
    counted = {part: count for part, count in tokens.items() if count}
    return Attempt(reference, state, estimated, len(closings) > 1, counted, held, cost)


def compare(invoice: Iterable[Line], attempts: Mapping[str, Attempt], *, reconciled: bool = False) -> Difference:
    """Line by line. Until the invoice is imported, estimates may stand above it; afterwards nothing may."""
    without, inexact, understated = list[str](), list[str](), list[str]()
    for line in invoice:
        attempt = attempts.get(line.client_request_id or "")
        if attempt is None:
            without.append(line.provider_request_id)
            continue
        billed = {part: count for part, count in tokens_of(line).items() if count}
        if attempt.estimated and not reconciled:
            if _output(attempt.tokens) < _output(billed) or _input(attempt.tokens) < _input(billed):
                understated.append(attempt.reference)
        elif dict(attempt.tokens) != billed:
            inexact.append(attempt.reference)
    estimated = sum(attempt.estimated for attempt in attempts.values())
    return Difference(tuple(without), tuple(inexact), tuple(understated), estimated)


def tokens_of(line: Line) -> dict[str, int]:
    """A line's tokens by component."""
    return msgspec.structs.asdict(line.tokens)


def _input(tokens: Mapping[str, int]) -> int:
    return sum(count for part, count in tokens.items() if part not in _OUTPUTS)


def _output(tokens: Mapping[str, int]) -> int:
    return sum(count for part, count in tokens.items() if part in _OUTPUTS)


def write_invoice(invoice: Iterable[Line], path: Path) -> None:
    """The invoice as `penstock reconcile` reads it."""
    lines = (
        {
            "provider_request_id": line.provider_request_id,
            "client_request_id": line.client_request_id,
            "tokens": {part: count for part, count in tokens_of(line).items() if count},
        }
        for line in invoice
    )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def reconcile_command(python: str, path: Path, provider: str = "sim") -> list[str]:
    """What imports the file as the provider's complete invoice until this second, which must have begun quietly."""
    until = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S")
    command = [python, "-m", "gateway", "reconcile", "--file", str(path), "--provider", provider]
    return [*command, "--complete", "--until", until, "--json"]


def open_holds(store: Store) -> int:
    """Holds without a closing."""
    return int(_query(store, "SELECT count(*) FROM open_holds")[0][0])


def open_references(store: Store) -> set[str]:
    """The attempts whose hold is open."""
    return {f"{turn_id}/{attempt}" for turn_id, attempt in _query(store, "SELECT turn_id, attempt FROM open_holds")}


def audited(store: Store) -> dict[str, set[str]]:
    """The events in the trail of each turn."""
    events: dict[str, set[str]] = defaultdict(set)
    for turn_id, event in _query(store, "SELECT turn_id, event FROM audit WHERE turn_id IS NOT NULL"):
        events[turn_id].add(event)
    return events


def budget_rows(store: Store) -> dict[str, tuple[int, int]]:
    """Posted and held by a budget's name, over all its periods; the version in its key is left out."""
    rows = _query(
        store,
        "SELECT budget_id, sum(posted_nano_usd), sum(held_nano_usd) FROM budget_periods GROUP BY budget_id",
    )
    return {budget.partition("@")[0]: (int(posted), int(held)) for budget, posted, held in rows}


def _query(store: Store, statement: str) -> list[tuple]:
    if isinstance(store, str):
        # In a thread with a loop of its own, so that those who read one store and the other ask in the same way.
        with ThreadPoolExecutor(1) as elsewhere:
            return elsewhere.submit(asyncio.run, _fetch(store, statement)).result()
    connection = sqlite3.connect(f"file:{store / 'penstock.db'}?mode=ro", uri=True, timeout=10)
    try:
        return connection.execute(statement).fetchall()
    finally:
        connection.close()


async def _fetch(url: str, statement: str) -> list[tuple]:
    connection = await asyncpg.connect(url.replace("+asyncpg", ""), timeout=10)
    try:
        return [tuple(row) for row in await connection.fetch(statement)]
    finally:
        await connection.close()
