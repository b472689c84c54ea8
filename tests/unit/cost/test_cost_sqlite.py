"""The ledger on SQLite when a commit is slow, fails or is given up: the books are as if nobody had been in a hurry."""

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from cost import Turn
from governance import AuditReader, AuditTrail
from governance.sql_audit import DriverChains, SqlTrail
from kernel import StoreUnavailable, SystemClock
from tests.fakes.ledgers import HELD, TARGET, Firm, budget, used

TEN = budget("dept", "sales", 10 * HELD)
IN_TIME = 0.15
# A commit that fails, and leaves its transaction open, for as long as `broken` has a row.
BROKEN = (
    "CREATE TABLE parent (id INTEGER PRIMARY KEY)",
    "CREATE TABLE child (id INTEGER REFERENCES parent (id) DEFERRABLE INITIALLY DEFERRED)",
    "CREATE TABLE broken (yes INTEGER)",
    """CREATE TRIGGER break_commits AFTER INSERT ON entries WHEN EXISTS (SELECT 1 FROM broken)
    BEGIN INSERT INTO child VALUES (1); END""",
)


@asynccontextmanager
async def opened(engine: AsyncEngine, **settings: float) -> AsyncIterator[Firm]:
    """A firm whose trail is a real one too."""
    firm = Firm(engine, [TEN], commit_timeout_seconds=IN_TIME, retry_seconds_max=0.001, **settings)
    firm.trail = AuditTrail(DriverChains(), "turns", clock=SystemClock())
    async with firm.opened():
        await _eventually(firm)
        yield firm


async def _eventually(firm: Firm) -> None:
    """A turn that is answered, however often it has to be asked for: the disk may be busy."""
    while True:
        with suppress(StoreUnavailable):
            await firm.answer(used(1, 1))
            return


@contextmanager
def commits_waiting(firm: Firm) -> Iterator[None]:
    """Commits take as long as this is open."""
    over = threading.Event()
    firm.store._line._thread.submit(over.wait)
    try:
        yield
    finally:
        over.set()


async def _events(engine: AsyncEngine, turn: Turn) -> list[str]:
    assert (await AuditReader(SqlTrail(engine)).verify()).intact
    return [link.event for link in await SqlTrail(engine).of_turn(turn.id)]


async def _refused(firm: Firm) -> Turn:
    turn = firm.turn()
    with pytest.raises(StoreUnavailable):
        async with turn, turn.attempt(TARGET):
            raise AssertionError("nothing may be sent")
    return turn


async def test_a_hold_whose_commit_was_given_up_and_happened_is_voided(books) -> None:
    async with opened(books) as firm:
        with commits_waiting(firm):
            turn = await _refused(firm)
        async with asyncio.timeout(5):
            await turn.settled()
        assert await firm.entries(turn.id) == [(0, "hold", HELD, False), (1, "void", 0, False)]
        assert await _events(books, turn) == ["turn.admitted", "turn.ended"]
        assert await firm.open_holds() == firm.ledger.open_holds == 0


async def test_a_closing_whose_commit_was_given_up_and_happened_is_booked_once(books) -> None:
    async with opened(books) as firm:
        before = await firm.balance("dept")
        async with firm.turn() as turn, turn.attempt(TARGET) as attempt:
            attempt.sent()
            attempt.use(used(10, 10))
            waiting = commits_waiting(firm)
            waiting.__enter__()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(turn.settled(), 3 * IN_TIME)
        waiting.__exit__(None, None, None)
        async with asyncio.timeout(5):
            await turn.settled()
        assert await firm.entries(turn.id) == [(0, "hold", HELD, False), (1, "post", 20_000, False)]
        assert await firm.balance("dept") == (before[0] + 20_000, 0)
        assert await _events(books, turn) == ["turn.admitted", "turn.ended"]
        assert await firm.open_holds() == firm.ledger.open_holds == 0


@pytest.mark.parametrize("given_up", [False, True])
async def test_a_commit_that_fails_leaves_no_transaction_behind(books, *, given_up: bool) -> None:
    async with opened(books) as firm:
        for statement in BROKEN:
            await _write(books, statement)
        await _write(books, "INSERT INTO broken VALUES (1)")
        if given_up:
            with commits_waiting(firm):
                turn = await _refused(firm)
        else:
            turn = await _refused(firm)
        await _write(books, "DELETE FROM broken")
        async with asyncio.timeout(5):
            await turn.settled()
            await _eventually(firm)
        assert await firm.entries(turn.id) == []
        assert await _events(books, turn) == []
        assert await firm.open_holds() == firm.ledger.open_holds == 0


async def _write(engine: AsyncEngine, statement: str) -> None:
    async with engine.begin() as connection:
        await connection.execute(text(statement))


async def test_a_file_that_somebody_else_has_locked_holds_up_no_loop(books) -> None:
    async with opened(books) as firm:
        rival = sqlite3.connect(books.url.database)
        rival.execute("BEGIN IMMEDIATE")
        refused = asyncio.create_task(_refused(firm))
        rounds = 0
        while not refused.done():
            await asyncio.sleep(0)
            rounds += 1
        assert rounds > 1_000, "each of them waited for the file"
        rival.rollback()
        rival.close()
        async with asyncio.timeout(5):
            await _eventually(firm)


async def test_a_ledger_that_closes_while_a_commit_is_under_way_lets_it_end(books) -> None:
    async with opened(books, close_seconds=0.01) as firm:
        async with firm.turn() as turn, turn.attempt(TARGET) as attempt:
            attempt.sent()
            attempt.use(used(10, 10))
            over = threading.Event()
            firm.store._line._thread.submit(over.wait)
            threading.Timer(0.1, over.set).start()
        while firm.ledger.waiting:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert firm.store._line._held is None
    found = await firm.rows("SELECT kind FROM entries WHERE turn_id = :t ORDER BY step", t=turn.id)
    assert [row[0] for row in found] == ["hold", "post"]
