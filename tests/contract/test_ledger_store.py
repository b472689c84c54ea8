"""The ledger on both stores for real: nothing overspent, nothing lost, nothing booked twice."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from cost import BudgetExhausted, BudgetHeld, InvoiceLine, Spend
from cost.book import budget_of
from cost.sql import SqlLedgerStore
from cost.sql_reports import SqlReports
from kernel import PlatformError, StoreUnavailable
from kernel.db import Base, make_engine
from tests.conftest import StillClock
from tests.fakes.ledgers import (
    AT,
    CALLER,
    FREE,
    HELD,
    REQUEST,
    SPARE,
    TARGET,
    Fault,
    FaultyStore,
    Firm,
    UpstreamFault,
    budget,
    by,
    price,
    used,
)

TEN = budget("dept", "sales", 10 * HELD)


async def _holding(firm: Firm, gate: asyncio.Event, caller=CALLER) -> str:
    """One turn that keeps its hold until the gate opens: how its hold was answered."""
    try:
        async with firm.turn(caller) as turn, turn.attempt(TARGET) as attempt:
            await gate.wait()
            attempt.sent()
            attempt.use(used(100, 100))
    except PlatformError as refusal:
        return refusal.code
    await turn.settled()
    return "answered"


async def _race(*firms: Firm, turns: int, callers=(CALLER,)) -> list[str]:
    gate = asyncio.Event()
    tasks = [
        asyncio.create_task(_holding(firms[n % len(firms)], gate, callers[n % len(callers)])) for n in range(turns)
    ]
    while sum(task.done() for task in tasks) + sum(firm.ledger.open_holds for firm in firms) < turns:
        await asyncio.sleep(0.001)
    gate.set()
    return [await task for task in tasks]


async def test_fifty_turns_at_once_against_a_budget_for_ten_admit_exactly_ten(engine: AsyncEngine) -> None:
    async with Firm(engine, [TEN]).opened() as firm:
        told = await _race(firm, turns=50)
        assert (told.count("answered"), told.count("budget_held")) == (10, 40)
        assert await firm.balance("dept") == (10 * 200_000, 0)
        assert await firm.open_holds() == 0


async def test_the_narrowest_of_nested_budgets_decides_and_all_of_them_count(engine: AsyncEngine) -> None:
    nested = [TEN, budget("app", "mail", 4 * HELD, "app"), budget("key", "key_1", 2 * HELD, "key")]
    callers = (CALLER, by(CALLER, key_id="key_2"))
    async with Firm(engine, nested).opened() as firm:
        told = await _race(firm, turns=20, callers=callers)
        assert told.count("answered") == 4
        assert await firm.balance("dept") == await firm.balance("app") == (800_000, 0)
        assert (await firm.balance("key"))[0] <= 2 * HELD


@pytest.fixture
async def two_processes(postgres_url: str) -> AsyncIterator[tuple[AsyncEngine, AsyncEngine]]:
    engines = make_engine(postgres_url), make_engine(postgres_url)
    async with engines[0].begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    yield engines
    for made in engines:
        await made.dispose()


@pytest.mark.postgres
async def test_two_processes_on_one_hot_budget_never_overspend_it(two_processes) -> None:
    limit = 1_000_000
    hot = [budget("hot", "sales", limit), budget("app", "mail", 10**12, "app")]
    one, two = (Firm(engine, hot) for engine in two_processes)

    async def worker(firm: Firm, seen: list[int]) -> None:
        for _ in range(10):
            try:
                await firm.answer(used(60, 40))
            except (BudgetHeld, BudgetExhausted):
                await asyncio.sleep(0)
            posted, held = await firm.balance("hot")
            seen.append(posted + held)

    async with one.opened(), two.opened():
        seen: list[int] = []
        await asyncio.gather(*(worker(firm, seen) for firm in (one, two) * 10))
        assert max(seen) <= limit
        posted, held = await one.balance("hot")
        assert held == 0
        assert posted == (await one.rows("SELECT sum(amount_nano_usd) FROM entries WHERE kind = 'post'"))[0][0]


async def test_a_commit_that_was_lost_is_repeated_and_books_once(engine: AsyncEngine) -> None:
    firm, fault = Firm(engine, [TEN]), Fault()
    firm.store = FaultyStore(firm.store, fault)
    async with firm.opened():
        async with firm.turn() as turn, turn.attempt(TARGET) as attempt:
            attempt.sent()
            attempt.use(used(10, 10))
            fault.before = 2
        await turn.settled()
        assert await firm.entries(turn.id) == [(0, "hold", HELD, False), (1, "post", 20_000, False)]
        assert await firm.balance("dept") == (20_000, 0)
        assert firm.trail.events() == ["turn.admitted", "turn.ended"]
        assert firm.trail.forgotten == 2


async def test_a_commit_whose_answer_was_lost_is_repeated_and_changes_nothing(engine: AsyncEngine) -> None:
    firm, fault = Firm(engine, [TEN]), Fault()
    firm.store = FaultyStore(firm.store, fault)
    async with firm.opened():
        async with firm.turn() as turn, turn.attempt(TARGET) as attempt:
            attempt.sent()
            attempt.use(used(10, 10))
            fault.after = 1
        await turn.settled()
        assert await firm.entries(turn.id) == [(0, "hold", HELD, False), (1, "post", 20_000, False)]
        assert await firm.balance("dept") == (20_000, 0)


async def test_a_hold_whose_answer_was_lost_is_refused_and_voided(engine: AsyncEngine) -> None:
    firm, fault = Firm(engine, [TEN]), Fault()
    firm.store = FaultyStore(firm.store, fault)
    async with firm.opened():
        await firm.answer(used(1, 1))
        fault.after = 1
        turn = firm.turn()
        with pytest.raises(StoreUnavailable):
            async with turn, turn.attempt(TARGET):
                raise AssertionError("nothing may be sent")
        await turn.settled()
        assert await firm.entries(turn.id) == [(0, "hold", HELD, False), (1, "void", 0, False)]
        assert await firm.balance("dept") == (2_000, 0)
        assert firm.trail.last(turn.id).event == "turn.ended"


async def test_a_hold_whose_commit_was_lost_for_good_leaves_no_trace_in_the_books(engine: AsyncEngine) -> None:
    firm, fault = Firm(engine, [TEN]), Fault()
    firm.store = FaultyStore(firm.store, fault)
    async with firm.opened():
        await firm.answer(used(1, 1))
        fault.before = 1
        turn = firm.turn()
        with pytest.raises(StoreUnavailable):
            async with turn, turn.attempt(TARGET):
                raise AssertionError("nothing may be sent")
        await turn.settled()
        assert await firm.entries(turn.id) == []
        assert await firm.balance("dept") == (2_000, 0)
        assert await firm.open_holds() == 0


async def test_a_lost_store_refuses_holds_and_keeps_closings_until_it_is_back(engine: AsyncEngine) -> None:
    firm, fault = Firm(engine, [TEN]), Fault()
    firm.store = FaultyStore(firm.store, fault)
    async with firm.opened():
        async with firm.turn() as open_turn, open_turn.attempt(TARGET) as attempt:
            attempt.sent()
            fault.down = True
            for _ in range(5):
                with pytest.raises(StoreUnavailable):
                    await firm.answer(used(1, 1))
        assert firm.ledger.waiting <= 1, "a refused turn leaves nothing behind"
        fault.down = False
        await open_turn.settled()
        assert await firm.balance("dept") == (HELD, 0)
        assert (await firm.rows("SELECT count(*) FROM entries"))[0][0] == 2


async def test_the_closing_of_a_failed_attempt_pays_for_the_hold_of_the_next(engine: AsyncEngine) -> None:
    async with Firm(engine, [budget("dept", "sales", HELD)]).opened() as firm:
        async with firm.turn() as turn:
            async with turn.attempt(TARGET) as attempt:
                attempt.sent()
                raise UpstreamFault(unbilled=True)
            async with turn.attempt(SPARE) as attempt:
                attempt.sent()
                attempt.use(used(1, 1))
        await turn.settled()
        assert await firm.entries(turn.id) == [
            (0, "hold", HELD, False), (1, "void", 0, False), (0, "hold", HELD, False), (1, "post", 2_000, False),
        ]  # fmt: skip
        assert turn.target == SPARE


async def test_what_a_dead_process_left_open_is_posted_at_the_hold_once(engine: AsyncEngine, clock: StillClock) -> None:
    dead = Firm(engine, [TEN], clock=clock)
    async with Firm(engine, [TEN], clock=clock, lease_seconds=15).opened() as alive:
        await dead.opened().__aenter__()
        turn = dead.turn()
        await turn.__aenter__()
        await turn.attempt(TARGET).__aenter__()
        await dead.store.end_lease(dead.process)
        assert await alive.ledger.sweep() == 0, "a process that just came up does not know who is alive"
        clock.advance(16)
        await alive.store.beat(alive.process)
        assert sum(await asyncio.gather(alive.ledger.sweep(), alive.ledger.sweep())) >= 1
        assert await alive.ledger.sweep() == 0
        assert await alive.entries(turn.id) == [(0, "hold", HELD, False), (1, "post", HELD, True)]
        assert await alive.balance("dept") == (HELD, 0)
        assert alive.trail.events(turn.id) == ["turn.swept"]
        await turn.__aexit__(None, None, None)
        await dead.ledger.close()


async def test_a_sole_process_sweeps_everybody_else_when_it_starts(engine: AsyncEngine) -> None:
    dead = Firm(engine, [TEN])
    await dead.opened().__aenter__()
    turn = dead.turn()
    await turn.__aenter__()
    await turn.attempt(TARGET).__aenter__()
    async with Firm(engine, [TEN], sole=True).opened() as firm:
        assert await firm.balance("dept") == (HELD, 0)
        assert await firm.open_holds() == 0
    await dead.ledger.close()


async def test_a_budget_declared_in_mid_month_knows_what_was_spent(engine: AsyncEngine) -> None:
    firm = Firm(engine, [])
    async with firm.opened():
        await firm.answer(used(100, 50))
        firm.book = type(firm.book).of([price(), budget("late", "sales", 150_000)])
        with pytest.raises(BudgetExhausted):
            await firm.answer(used(1, 1))
        assert await firm.balance("late") == (150_000, 0)


async def _hold_open(firm: Firm, turns: int) -> list[tuple]:
    opened = [(turn := firm.turn(), await turn.attempt(TARGET).__aenter__()) for _ in range(turns)]
    for _, attempt in opened:
        attempt.sent()
    return opened


async def _end(opened: list[tuple], usage=None) -> None:
    for turn, attempt in opened:
        attempt.use(usage)
        await attempt.__aexit__(None, None, None)
        await turn.__aexit__(None, None, None)
        await turn.settled()


async def test_a_budget_declared_while_turns_are_open_counts_what_they_hold(engine: AsyncEngine) -> None:
    async with Firm(engine, [TEN]).opened() as firm:
        opened = await _hold_open(firm, 3)
        others = by(CALLER, department="ops", app="search")
        async with firm.turn(others) as turn, turn.attempt(TARGET):
            firm.declare(TEN, budget("late", "mail", 4 * HELD, "app"))
            states = Spend(firm.reports, book=lambda: firm.book, clock=firm.clock)
            assert [state.held_nano_usd for state in await states.budget_states()] == [3 * HELD, 3 * HELD]
            opened += await _hold_open(firm, 1)
            assert await firm.balance("late") == (0, 4 * HELD)
            with pytest.raises(BudgetHeld):
                await firm.answer(used(1, 1))
        await _end(opened, used(100, 100))
        assert await firm.balance("late") == await firm.balance("dept") == (4 * 200_000, 0)
        told = await firm.ledger.request(opened[0][0].id)
        assert told is not None
        assert [[period.budget_id for period in entry.periods] for entry in told.entries] == [
            ["dept@1"],
            ["dept@1", "late@1"],
        ]


async def test_a_period_that_is_opened_twice_takes_in_open_holds_once(engine: AsyncEngine) -> None:
    async with Firm(engine, []).opened() as firm:
        opened = await _hold_open(firm, 1)
        late = budget_of(TEN)
        for _ in range(2):
            await firm.store.open_periods({late.at(firm.clock.now()): late})
        assert await firm.balance("dept") == (0, HELD)
        await _end(opened)
        assert await firm.balance("dept") == (HELD, 0)


async def test_what_was_spent_while_a_budget_was_withdrawn_is_known_when_it_is_declared_again(engine) -> None:
    async with Firm(engine, [TEN]).opened() as firm:
        await firm.answer(used(10, 10))
        opened = await _hold_open(firm, 1)
        firm.declare()
        await firm.answer(used(100, 100))
        firm.declare(budget("dept", "sales", 520_000, since=3))
        with pytest.raises(BudgetHeld):
            await firm.answer(used(1, 1), caller=by(CALLER, key_id="key_2"))
        assert await firm.balance("dept", since=3) == (220_000, HELD)
        await _end(opened, used(40, 40))
        assert await firm.balance("dept", since=3) == (300_000, 0)


async def test_a_budget_that_counted_something_else_for_a_while_missed_nothing(engine: AsyncEngine) -> None:
    async with Firm(engine, [TEN]).opened() as firm:
        await firm.answer(used(10, 10))
        firm.declare(budget("dept", "ops", 10 * HELD, since=2))
        await firm.answer(used(20, 20))
        await firm.answer(used(1, 1), caller=by(CALLER, department="ops"))
        assert await firm.balance("dept", since=2) == (2_000, 0)
        firm.declare(budget("dept", "sales", 10 * HELD, since=3))
        await firm.answer(used(1, 1))
        assert await firm.balance("dept", since=3) == (62_000, 0)


async def test_what_a_dead_process_left_open_is_closed_in_the_budgets_declared_since(engine: AsyncEngine) -> None:
    dead = Firm(engine, [TEN])
    await dead.opened().__aenter__()
    await _hold_open(dead, 1)
    async with Firm(engine, [TEN, budget("late", "mail", 10 * HELD, "app")]).opened() as alive:
        await alive.answer(used(1, 1))
        assert await alive.balance("late") == (2_000, HELD)
    async with Firm(engine, [TEN], sole=True).opened() as firm:
        assert await firm.balance("late") == await firm.balance("dept") == (HELD + 2_000, 0)
    await dead.ledger.close()


async def test_corrections_reach_the_budgets_declared_since_the_call_had_ended(engine: AsyncEngine) -> None:
    async with Firm(engine, [TEN]).opened() as firm:
        turn = await firm.answer(None)
        firm.declare(TEN, budget("late", "mail", 10 * HELD, "app"))
        await firm.answer(used(1, 1))
        line = InvoiceLine(None, f"{turn.id}/1", used(30, 10).tokens)
        window = {"since": AT, "until": AT.replace(year=2100)}
        await firm.reconciliation().run([line], **window, provider="sim", complete=False, by="ada")
        assert await firm.balance("late") == await firm.balance("dept") == (42_000, 0)


@pytest.mark.postgres
async def test_whoever_opens_a_period_waits_for_those_who_may_hold_already_before_they_lock_a_budget(
    two_processes,
) -> None:
    here, there = (SqlLedgerStore(engine) for engine in two_processes)
    reports = SqlReports(two_processes[0])
    late = budget_of(TEN)
    async with here.transaction() as books:
        period = late.at((await books.release(())).at)
        opening = asyncio.create_task(there.open_periods({period: late}))
        done, _ = await asyncio.wait({opening}, timeout=0.3)
        assert not done
        assert await books.lock({period: None}) == {}
    await here.close()
    await opening
    assert await reports.balances({period: late}) == {period: (0, 0)}


@pytest.mark.postgres
async def test_budgets_declared_in_the_rush_of_two_processes_lose_no_hold(two_processes) -> None:
    firms = [Firm(engine, [budget("m-dept", "sales", 10**12)]) for engine in two_processes]

    async def work(firm: Firm) -> None:
        for _ in range(12):
            await firm.answer(used(1, 1))

    async with firms[0].opened(), firms[1].opened():
        rush = [asyncio.create_task(work(firm)) for firm in firms * 8]
        for since in range(1, 6):
            await asyncio.sleep(0.05)
            others = [budget(name, "mail", 10**12, "app", since=since) for name in ("a-app", "z-app")]
            for firm in firms:
                firm.declare(budget("m-dept", "sales", 10**12), *others)
        await asyncio.gather(*rush)
        rows = await firms[0].rows("SELECT budget_id, posted_nano_usd, held_nano_usd FROM budget_periods")
        assert {held for _, _, held in rows} == {0}
        assert await firms[0].balance("m-dept") == (2 * 8 * 12 * 2_000, 0)
        assert await firms[0].open_holds() == 0


async def test_a_spent_budget_refuses_only_what_costs_something(engine: AsyncEngine) -> None:
    async with Firm(engine, [budget("dept", "sales", 0)]).opened() as firm:
        with pytest.raises(BudgetExhausted):
            await firm.answer(used(1, 1))
        async with firm.turn() as turn, turn.attempt(FREE) as attempt:
            attempt.sent()
            attempt.use(used(5, 5))
        await turn.settled()
        assert await firm.entries(turn.id) == [(0, "hold", 0, False), (1, "post", 0, False)]


async def test_free_text_of_strangers_cannot_keep_a_batch_from_being_written(engine: AsyncEngine) -> None:
    caller = by(CALLER, user="a\0b\ud800" + "x" * 1000)
    async with Firm(engine, [TEN]).opened() as firm:
        async with firm.turn(caller) as turn, turn.attempt(TARGET) as attempt:
            attempt.replied("id\0\udfff")
            attempt.use(used(1, 1))
        await turn.settled()
        told = await firm.ledger.request(turn.id)
        assert told is not None
        assert told.entries[1].provider_request_id == "id?"
        assert told.entries[0].rates is not None


async def test_entries_come_back_as_they_were_written(engine: AsyncEngine) -> None:
    async with Firm(engine, [TEN]).opened() as firm:
        turn = await firm.answer(used(3, 4))
        told = await firm.ledger.request(turn.id)
        assert told is not None
        hold, post = told.entries
        assert hold.periods == post.periods
        assert post.tokens == used(3, 4).tokens
        assert post.held_at == hold.at <= post.at
        assert post.at.tzinfo is not None
        assert await firm.ledger.request("req_none") is None


async def test_an_answer_is_shortened_to_what_is_unspent(engine: AsyncEngine) -> None:
    async with Firm(engine, [budget("dept", "sales", 150_000)]).opened() as firm:
        async with firm.turn() as turn, turn.attempt(TARGET) as attempt:
            assert attempt.was_lowered
            assert attempt.output_tokens_max == 49
            assert attempt.held_nano_usd <= 150_000
        assert REQUEST.limited(49).output_tokens_max == 49


async def test_a_locked_store_refuses_after_the_time_out_and_serves_when_it_is_free(engine: AsyncEngine) -> None:
    async with Firm(engine, [TEN], commit_timeout_seconds=0.2).opened() as firm:
        await firm.answer(used(1, 1))
        async with engine.begin() as rival:
            await rival.execute(text("UPDATE budget_periods SET held_nano_usd = held_nano_usd"))
            waiting = asyncio.create_task(firm.answer(used(1, 1)))
            done, _ = await asyncio.wait({waiting}, timeout=0.5)
            # SQLite's thread cannot be called back from a lock: there the driver's own time-out bounds the wait.
            assert done or engine.dialect.name == "sqlite"
        with pytest.raises(StoreUnavailable):
            await waiting
        await firm.answer(used(1, 1))
        assert await firm.balance("dept") == (4_000, 0)
        assert await firm.open_holds() == 0
