"""A commit whose connection breaks, at the socket: nothing is lost, booked twice or recorded twice."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine

from cost import Turn
from governance import AuditReader, AuditTrail
from governance.sql_audit import DriverChains, SqlTrail
from kernel import StoreUnavailable, SystemClock
from kernel.db import Base, make_engine
from tests.fakes.ledgers import HELD, SPARE, TARGET, Firm, UpstreamFault, budget, used

pytestmark = pytest.mark.postgres

TEN = budget("dept", "sales", 10 * HELD)
COMMIT = b"Q\x00\x00\x00\x0bCOMMIT\x00"
LATE_SECONDS = 0.4


class CommitBreaker:
    """Stands before PostgreSQL and breaks the connection of the next commit as `fate` says; then lets all pass.

    lost: it never arrives. unanswered: it happens, and nobody is told. late: it arrives when nobody waits any more.
    """

    def __init__(self, socket: Path) -> None:
        self.fate: str | None = None
        self.broken = 0
        self._socket = socket
        self._tasks: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[int]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        async with server:
            yield server.sockets[0].getsockname()[1]
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        beyond, onward = await asyncio.open_unix_connection(self._socket)
        back = asyncio.create_task(self._pump(beyond, writer))
        self._tasks |= {back, asyncio.current_task()}
        try:
            while data := await reader.read(65_536):
                fate = self.fate
                if fate is None or COMMIT not in data:
                    onward.write(data)
                    continue
                self.fate, self.broken = None, self.broken + 1
                back.cancel()
                await asyncio.gather(back, return_exceptions=True)
                if fate == "late":
                    writer.transport.abort()
                    await asyncio.sleep(LATE_SECONDS)
                if fate != "lost":
                    onward.write(data)
                    await beyond.read(65_536)
                break
        finally:
            writer.transport.abort()
            onward.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            writer.write(data)
        writer.transport.abort()


class Books:
    """A firm with a real trail, behind a breaker of commits."""

    def __init__(self, firm: Firm, breaker: CommitBreaker, direct: AsyncEngine) -> None:
        self.firm = firm
        self.breaker = breaker
        self.direct = direct

    async def events(self, turn: Turn) -> list[str]:
        verdict = await AuditReader(SqlTrail(self.direct)).verify()
        assert verdict.intact
        return [link.event for link in await SqlTrail(self.direct).of_turn(turn.id)]


@pytest.fixture
async def books(postgres_url: str) -> AsyncIterator[Books]:
    where = make_url(postgres_url)
    direct = make_engine(postgres_url)
    async with direct.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    breaker = CommitBreaker(Path(str(where.query["host"])) / ".s.PGSQL.5432")
    async with breaker.listening() as port:
        through = make_engine(where.set(host="127.0.0.1", port=port, query={}), timeout_seconds=1)
        firm = Firm(through, [TEN], commit_timeout_seconds=1, retry_seconds_max=0.05)
        firm.trail = AuditTrail(DriverChains(), "turns", clock=SystemClock())
        async with firm.opened():
            await firm.answer(used(1, 1))
            yield Books(firm, breaker, direct)
        await through.dispose()
    await direct.dispose()


FATES = pytest.mark.parametrize("fate", ["lost", "unanswered", "late"])


@FATES
async def test_a_closing_is_booked_and_recorded_once(books: Books, fate: str) -> None:
    firm = books.firm
    async with firm.turn() as turn, turn.attempt(TARGET) as attempt:
        attempt.sent()
        attempt.use(used(10, 10))
        books.breaker.fate = fate
    async with asyncio.timeout(5):
        await turn.settled()
    assert books.breaker.broken == 1
    await asyncio.sleep(LATE_SECONDS)
    assert await firm.entries(turn.id) == [(0, "hold", HELD, False), (1, "post", 20_000, False)]
    assert await firm.balance("dept") == (22_000, 0)
    assert await firm.open_holds() == firm.ledger.open_holds == 0
    assert await books.events(turn) == ["turn.admitted", "turn.ended"]


@FATES
async def test_a_hold_is_refused_and_leaves_nothing_open(books: Books, fate: str) -> None:
    firm = books.firm
    books.breaker.fate = fate
    turn = firm.turn()
    with pytest.raises(StoreUnavailable):
        async with turn, turn.attempt(TARGET):
            raise AssertionError("nothing may be sent")
    async with asyncio.timeout(5):
        await turn.settled()
    assert books.breaker.broken == 1
    await asyncio.sleep(LATE_SECONDS)
    happened = [(0, "hold", HELD, False), (1, "void", 0, False)]
    assert await firm.entries(turn.id) == ([] if fate == "lost" else happened)
    assert await firm.balance("dept") == (2_000, 0)
    assert await firm.open_holds() == firm.ledger.open_holds == 0
    assert await books.events(turn) == ([] if fate == "lost" else ["turn.admitted", "turn.ended"])
    await firm.answer(used(1, 1))


@FATES
async def test_a_fallback_s_step_closes_what_it_follows_once(books: Books, fate: str) -> None:
    """The closing of the first attempt travels with the hold of the second."""
    firm, turn = books.firm, books.firm.turn()
    with pytest.raises(UpstreamFault):  # a fallback that cannot be held leaves the first failure standing
        await _fall_back(books, turn, fate)
    async with asyncio.timeout(5):
        await turn.settled()
    await asyncio.sleep(LATE_SECONDS)
    held, voided = (0, "hold", HELD, False), (1, "void", 0, False)
    fallback = [] if fate == "lost" else [held, voided]
    assert await firm.entries(turn.id) == [held, (1, "post", HELD, True), *fallback]
    assert await firm.balance("dept") == (2_000 + HELD, 0)
    assert await firm.open_holds() == firm.ledger.open_holds == 0
    assert await books.events(turn) == ["turn.admitted", "turn.ended"]


async def test_a_line_that_was_ended_while_nobody_used_it_costs_no_turn(books: Books) -> None:
    await _end_all_others(books)
    await books.firm.answer(used(1, 1))
    assert await books.firm.open_holds() == 0


async def _end_all_others(books: Books) -> None:
    others = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    async with books.direct.connect() as connection:
        await connection.execute(text(f"SELECT pg_terminate_backend(pid, 1000) {others}"))
    await asyncio.sleep(0.1)  # until the news is here


async def test_the_instant_that_decides_periods_is_that_of_the_decision(books: Books) -> None:
    """A transaction may have waited since it began, and midnight may have passed."""
    async with books.firm.store.transaction() as transaction:
        await asyncio.sleep(0.2)
        async with books.direct.connect() as connection:
            now = (await connection.execute(text("SELECT clock_timestamp()"))).scalar_one()
        assert (await transaction.release(())).at >= now


async def test_budgets_are_locked_in_the_order_in_which_everybody_locks_them(books: Books) -> None:
    row = "SELECT 1 FROM budget_periods WHERE budget_id = '{}@1' FOR UPDATE NOWAIT"
    firm = books.firm
    firm.declare(TEN, budget("app", "mail", 10 * HELD, "app"))
    await firm.answer(used(1, 1))
    async with books.direct.connect() as rival:
        await rival.execute(text(row.format("app")))
        waiting = asyncio.create_task(firm.answer(used(1, 1)))
        await asyncio.sleep(0.2)
        assert not waiting.done()
        await rival.execute(text(row.format("dept")))
    await waiting


async def _fall_back(books: Books, turn: Turn, fate: str) -> None:
    async with turn:
        async with turn.attempt(TARGET) as attempt:
            attempt.sent()
            books.breaker.fate = fate
            raise UpstreamFault
        async with turn.attempt(SPARE):
            raise AssertionError("nothing may be sent")
