"""A small firm for the ledger's tests: one priced model, budgets as asked for, and turns that end as told."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from decimal import Decimal
from types import TracebackType
from typing import Any

import msgspec
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from cost import Book, Ledger, LedgerSettings, Reconciliation, Turn
from cost.sql import SqlLedgerStore
from cost.sql_reports import SqlReports
from kernel import (
    AuditRecord,
    Caller,
    Clock,
    Component,
    Document,
    ModelRequest,
    Plan,
    PlatformError,
    SystemClock,
    Target,
    Usage,
    new_id,
)
from tests.fakes.audit import MemoryTrail

AT = datetime(2026, 1, 1, tzinfo=UTC)
TARGET = Target("small", "sim", "small-1", context_tokens=8_000, output_tokens_max=1_000)
SPARE = Target("spare", "sim2", "spare-1", context_tokens=8_000, output_tokens_max=1_000)
FREE = Target("free", "own", "free-1", context_tokens=8_000, output_tokens_max=1_000)
UNKNOWN = Target("unknown", "sim", "unknown-1", context_tokens=8_000, output_tokens_max=1_000)
CALLER = Caller("key_1", "app one", department="sales", app="mail", user=None, use_case="reply")
# 100 input and 100 output tokens at 1 USD a million: worst case 200,000 nano and 7 nano of rounding.
REQUEST = ModelRequest("small", {}, input_tokens_max=100, output_tokens_max=100)
HELD = 200_007


def price(model: str = "small", usd: str = "1", name: str | None = None, **more: Any) -> Document:
    rates = {"input": usd, "output": usd}
    body = {"model": model, "usd_per_million_tokens": rates, **more}
    return Document("price", name or model, 1, body, "tests", AT)


def budget(name: str, of: str, nano_usd: int, scope: str = "department", *, since: int = 1, **more: Any) -> Document:
    limit = str(Decimal(nano_usd) / 1_000_000_000)
    body = {"scope": scope, "of": of, "period": "month", "limit_usd": limit, **more}
    return Document("budget", name, since, body, "tests", AT)


def used(tokens_in: int, tokens_out: int) -> Usage:
    return Usage({Component.INPUT: tokens_in, Component.OUTPUT: tokens_out})


class UpstreamFault(PlatformError):
    """What the router raises, as the ledger sees it."""

    status, code = 502, "upstream_error"

    def __init__(self, *, unbilled: bool = False, curable: bool = True) -> None:
        super().__init__("The target failed.")
        self.unbilled = unbilled
        self.curable = curable


class Firm:
    """One process's ledger and everything around it."""

    def __init__(
        self, engine: AsyncEngine, documents: Iterable[Document], *, clock: Clock | None = None, **settings: Any
    ) -> None:
        self.engine = engine
        self.clock = clock or SystemClock()
        self.trail = MemoryTrail()
        self.store: Any = SqlLedgerStore(engine, self.clock)
        self.reports = SqlReports(engine)
        self.process = new_id("proc")
        self.declare(*documents)
        self.settings = LedgerSettings(**settings)

    def declare(self, *documents: Document) -> None:
        """These budgets are in force from now on, and no others."""
        self.book = Book.of([price(), price("spare"), price("free", "0"), *documents])

    def reconciliation(self) -> Reconciliation:
        return Reconciliation(
            self.reports, book=lambda: self.book, record=self.ledger.record, clock=self.clock, process=self.process
        )

    @asynccontextmanager
    async def opened(self) -> AsyncIterator["Firm"]:
        self.ledger = Ledger(
            self.store,
            book=lambda: self.book,
            audit=self.trail,
            clock=self.clock,
            process=self.process,
            settings=self.settings,
        )
        await self.ledger.start()
        try:
            yield self
        finally:
            await self.ledger.close()

    def turn(self, caller: Caller = CALLER, request: ModelRequest = REQUEST, turn_id: str | None = None) -> Turn:
        admission = AuditRecord("turn.admitted", {"requested": "small"}, turn_id or new_id("req"), "mail", "sales")
        return self.ledger.turn(caller, request, Plan("small", (TARGET,)), admission)

    async def answer(self, usage: Usage | None = None, *, caller: Caller = CALLER) -> Turn:
        """A turn that is answered; without usage the provider says nothing of it."""
        async with self.turn(caller) as turn, turn.attempt(TARGET) as attempt:
            attempt.sent()
            attempt.use(usage)
        await turn.settled()
        return turn

    async def rows(self, sql: str, **values: Any) -> list[Any]:
        async with self.engine.connect() as connection:
            return list(await connection.execute(text(sql), values))

    async def entries(self, turn_id: str) -> list[tuple[int, str, int, bool]]:
        told = await self.ledger.request(turn_id)
        return [(e.step, e.kind, e.amount_nano_usd, e.estimated) for e in told.entries] if told else []

    async def balance(self, name: str, since: int = 1) -> tuple[int, int]:
        of = f"{name}@{since}"
        found = await self.rows(
            "SELECT posted_nano_usd, held_nano_usd FROM budget_periods WHERE budget_id = :of", of=of
        )
        return tuple(found[0]) if found else (0, 0)

    async def open_holds(self) -> int:
        return (await self.rows("SELECT count(*) FROM open_holds"))[0][0]


class Fault:
    """What a faulty store does: `before` loses so many commits, `after` only their answers; `down` takes none."""

    def __init__(self) -> None:
        self.before = 0
        self.after = 0
        self.down = False


class FaultyStore:
    """A store whose transactions fail around their commit, as a broken connection makes them."""

    def __init__(self, store: SqlLedgerStore, fault: Fault) -> None:
        self._store = store
        self._fault = fault

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def transaction(self) -> "_FaultyTransaction":
        return _FaultyTransaction(self._store.transaction(), self._fault)


class _FaultyTransaction:
    def __init__(self, inner: Any, fault: Fault) -> None:
        self._inner = inner
        self._fault = fault

    async def __aenter__(self) -> Any:
        if self._fault.down:
            raise ConnectionRefusedError
        return await self._inner.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None and self._fault.before:
            self._fault.before -= 1
            lost = ConnectionError("lost before the commit")
            await self._inner.__aexit__(type(lost), lost, None)
            raise lost
        await self._inner.__aexit__(kind, error, trace)
        if error is None and self._fault.after:
            self._fault.after -= 1
            raise ConnectionError("lost after the commit")


def by(caller: Caller, **changes: Any) -> Caller:
    return msgspec.structs.replace(caller, **changes)


async def soon() -> None:
    """Let every ready task run once."""
    await asyncio.sleep(0)
