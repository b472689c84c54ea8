"""Budgets that are declared while the books are full and busy: exact, and in nobody's way."""

import asyncio
from collections.abc import Mapping

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from cost import InvoiceLine
from cost.book import budget_of
from cost.budgets import Budget, Period
from cost.sql import SqlLedgerStore
from kernel import StoreUnavailable
from tests.fakes.ledgers import AT, CALLER, HELD, TARGET, Firm, budget, by, used

LAW = by(CALLER, department="law", app="law", key_id="key_2")
LATE = budget("late", "mail", 100 * HELD, "app")


class LargeStore(SqlLedgerStore):
    """A store on which counting what was spent takes until it is told otherwise."""

    def __init__(self, engine: AsyncEngine) -> None:
        super().__init__(engine)
        self.is_counting = asyncio.Event()
        self.go_on = asyncio.Event()

    async def _make_rows(self, budgets: Mapping[Period, Budget]) -> list[Period]:
        made = await super()._make_rows(budgets)
        self.is_counting.set()
        await self.go_on.wait()
        return made


def _large(firm: Firm) -> LargeStore:
    firm.store = LargeStore(firm.engine)
    return firm.store


async def test_a_budget_that_takes_long_to_count_refuses_its_own_turns_and_nobody_else(engine: AsyncEngine) -> None:
    firm = Firm(engine, [], commit_timeout_seconds=0.3)
    store = _large(firm)
    async with firm.opened():
        await firm.answer(used(10, 10))
        firm.declare(LATE)
        for _ in range(2):
            refused = asyncio.create_task(firm.answer(used(1, 1)))
            await store.is_counting.wait()
            for _ in range(5):
                await asyncio.wait_for(firm.answer(used(1, 1), caller=LAW), 0.2)
            assert not refused.done()
            with pytest.raises(StoreUnavailable, match="still being counted"):
                await asyncio.wait_for(refused, 0.5)
        assert firm.ledger.is_writing
        waiting = asyncio.create_task(firm.answer(used(1, 1)))
        await asyncio.sleep(0.05)
        store.go_on.set()
        await waiting
        assert await firm.balance("late") == (22_000, 0)
        assert await firm.open_holds() == 0


async def test_what_happens_while_a_budget_is_counted_is_counted_once(engine: AsyncEngine) -> None:
    firm = Firm(engine, [budget("dept", "sales", 100 * HELD)])
    async with firm.opened():
        invoiced = await firm.answer(None)
        await firm.answer(used(10, 10))
        store = LargeStore(engine)
        opening = firm.turn()
        attempt = await opening.attempt(TARGET).__aenter__()
        attempt.sent()
        period, late = _period(firm)
        counting = asyncio.create_task(store.open_periods({period: late}))
        await store.is_counting.wait()
        firm.declare(budget("dept", "sales", 100 * HELD), LATE)
        attempt.use(used(3, 3))
        await attempt.__aexit__(None, None, None)
        await opening.__aexit__(None, None, None)
        await opening.settled()
        line = InvoiceLine(None, f"{invoiced.id}/1", used(30, 10).tokens)
        window = {"since": AT, "until": AT.replace(year=2100)}
        await firm.reconciliation().run([line], **window, provider="sim", complete=False, by="ada")
        assert (await firm.reports.balances({period: late}))[period] == (66_000, 0), "a report sums while it is counted"
        store.go_on.set()
        await counting
        assert await firm.balance("late") == await firm.balance("dept") == (20_000 + 6_000 + 40_000, 0)
        await firm.answer(used(1, 1))
        assert await firm.balance("late") == await firm.balance("dept") == (68_000, 0)


async def test_a_count_that_was_cut_short_is_taken_up_by_whoever_asks_next(engine: AsyncEngine) -> None:
    firm = Firm(engine, [])
    async with firm.opened():
        await firm.answer(used(10, 10))
        store = LargeStore(engine)
        period, late = _period(firm)
        cut = asyncio.create_task(store.open_periods({period: late}))
        await store.is_counting.wait()
        cut.cancel()
        await asyncio.gather(cut, return_exceptions=True)
        firm.declare(LATE)
        await asyncio.gather(*(firm.answer(used(1, 1)) for _ in range(3)))
        assert await firm.balance("late") == (26_000, 0)


async def test_a_budget_that_two_processes_count_is_counted_once(engine: AsyncEngine) -> None:
    async with Firm(engine, []).opened() as firm:
        await firm.answer(used(10, 10))
        period, late = _period(firm)
        stores = [LargeStore(engine) for _ in range(2)]
        counting = [asyncio.create_task(store.open_periods({period: late})) for store in stores]
        for store in stores:
            await store.is_counting.wait()
        for store in stores:
            store.go_on.set()
        await asyncio.gather(*counting)
        assert await firm.balance("late") == (20_000, 0)


async def test_budgets_whose_names_differ_in_case_are_counted_apart(engine: AsyncEngine) -> None:
    async with Firm(engine, [budget("Late", "mail", 100 * HELD, "app")]).opened() as firm:
        await firm.answer(used(10, 10))
        firm.declare(LATE)
        await firm.answer(used(1, 1))
        assert await firm.balance("late") == (22_000, 0)


async def test_a_ledger_that_closes_lets_whoever_waits_for_a_budget_have_an_answer(engine: AsyncEngine) -> None:
    firm = Firm(engine, [], commit_timeout_seconds=0.5)
    store = _large(firm)
    async with firm.opened():
        firm.declare(LATE)
        waiting = asyncio.create_task(firm.answer(used(1, 1)))
        await store.is_counting.wait()
    with pytest.raises(StoreUnavailable):
        await waiting


def _period(firm: Firm) -> tuple[Period, Budget]:
    late = budget_of(LATE)
    return late.at(firm.clock.now()), late
