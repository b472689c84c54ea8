"""What is asked again and again looks at what is open, however long the ledger has become."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine

from cost.book import budget_of
from cost.sql import SqlLedgerStore
from cost.sql_reports import SqlReports
from kernel.db import Base, make_engine
from tests.conftest import StillClock
from tests.fakes.ledgers import budget


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[AsyncEngine]:
    made = make_engine(f"sqlite+aiosqlite:///{tmp_path}/books.db")
    async with made.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    yield made
    await made.dispose()


class Plans:
    """How SQLite would find what it is asked for."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._asked: list[tuple[str, object]] = []
        event.listen(engine.sync_engine, "before_cursor_execute", self._note)

    def _note(self, _connection, _cursor, statement, parameters, _context, _many) -> None:
        if statement.startswith("SELECT") and "open_holds" in statement:
            self._asked.append((statement, parameters))

    async def steps(self) -> list[str]:
        assert self._asked
        asked, self._asked = self._asked, []
        async with self._engine.connect() as connection:
            return [
                row.detail
                for statement, parameters in asked
                for row in await connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
            ]


def _through_the_ledger(steps: list[str]) -> list[str]:
    return [step for step in steps if step.startswith("SCAN entries") or "ix_entries_held_at" in step]


@pytest.mark.parametrize("lease_seconds", [None, 10.0])
async def test_the_sweep_looks_at_open_holds_and_not_at_the_ledger(
    engine: AsyncEngine, clock: StillClock, lease_seconds: float | None
) -> None:
    plans = Plans(engine)
    await SqlLedgerStore(engine, clock).orphans("me", lease_seconds, 100)
    assert not _through_the_ledger(await plans.steps())


async def test_a_budget_that_is_opened_looks_for_its_holds_among_the_open_ones(
    engine: AsyncEngine, clock: StillClock
) -> None:
    plans, declared = Plans(engine), budget_of(budget("month", "fast", 1))
    await SqlReports(engine).balances({declared.at(clock.now()): declared})
    assert not _through_the_ledger(await plans.steps())
