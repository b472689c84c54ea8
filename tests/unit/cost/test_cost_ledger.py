"""The ledger around its turns: its limits, its lease, its metrics, and a store that is slow, gone or closing."""

import asyncio

import msgspec
import pytest
from prometheus_client import CollectorRegistry

from cost import BudgetExhausted, LedgerMetrics, Overloaded, Spend
from cost.entries import Correction
from cost.sql import SqlLedgerStore
from cost.sql_reports import SqlReports
from cost.store import PeriodsMissing
from kernel import ModelRequest, StoreUnavailable
from kernel.db import make_engine
from tests.fakes.ledgers import CALLER, HELD, TARGET, Fault, FaultyStore, Firm, UpstreamFault, budget, by, soon, used


async def test_no_attempt_sets_aside_more_than_the_setting_even_without_a_budget(books, clock) -> None:
    async with Firm(books, [], clock=clock, hold_nano_usd_max=HELD - 1).opened() as firm:
        async with firm.turn() as turn, turn.attempt(TARGET) as attempt:
            assert attempt.was_lowered
        with pytest.raises(BudgetExhausted, match="ask for less"):
            async with (
                firm.turn(request=ModelRequest("small", {}, input_tokens_max=10**6)) as turn,
                turn.attempt(TARGET),
            ):
                pass


async def test_a_turn_that_asks_no_target_is_refused_in_the_trail(books, clock) -> None:
    async with Firm(books, [], clock=clock).opened() as firm:
        async with firm.turn() as turn:
            pass
        await turn.settled()
        assert firm.trail.last(turn.id).event == "turn.refused"
        assert firm.trail.last(turn.id).body["code"] == "no_target"
        turn = await firm.turn().__aenter__()
        await turn.__aexit__(UpstreamFault, UpstreamFault(), None)
        await turn.settled()
        assert firm.trail.last(turn.id).body["code"] == "upstream_error"
        await firm.turn().settled()


async def test_what_costs_more_than_was_held_is_posted_as_it_is_and_marked(books, clock) -> None:
    async with Firm(books, [], clock=clock).opened() as firm:
        turn = await firm.answer(used(10_000, 1))
        told = await firm.ledger.request(turn.id)
        assert (told.entries[1].amount_nano_usd, told.entries[1].reason) == (10_001_000, "over_hold")


async def test_the_metrics_tell_money_by_department_open_holds_and_the_queue(books, clock) -> None:
    firm, registry = Firm(books, [], clock=clock), CollectorRegistry()
    metrics = LedgerMetrics(registry)
    firm.store = SqlLedgerStore(books, clock, metrics=metrics)
    async with firm.opened():
        metrics.watch(firm.ledger)
        await firm.answer(used(500, 500))
        await firm.answer(used(500, 500), caller=by(CALLER, department=None))
        async with firm.turn() as turn, turn.attempt(TARGET):
            assert registry.get_sample_value("penstock_holds_open") == 1
        await turn.settled()
    assert registry.get_sample_value("ai_cost_dollars_total", {"department": "sales"}) == pytest.approx(0.001)
    assert registry.get_sample_value("ai_cost_dollars_total", {"department": "none"}) == pytest.approx(0.001)
    assert registry.get_sample_value("penstock_holds_open") == 0
    assert registry.get_sample_value("penstock_ledger_queue") == 0
    assert registry.get_sample_value("penstock_ledger_commit_seconds_count") == 6


class _StuckStore(FaultyStore):
    """A store that takes for ever to begin a transaction while its fault says it is down."""

    def transaction(self):
        return _Stuck() if self._fault.down else super().transaction()


class _Stuck:
    async def __aenter__(self):
        await asyncio.Event().wait()

    async def __aexit__(self, *_: object) -> None:
        """Never entered."""


async def test_a_store_that_does_not_answer_refuses_all_who_wait_within_one_time_out(books, clock) -> None:
    firm, fault = Firm(books, [], clock=clock, commit_timeout_seconds=0.05), Fault()
    firm.store = _StuckStore(firm.store, fault)
    async with firm.opened():
        await firm.answer(used(1, 1))
        fault.down = True
        first = asyncio.create_task(firm.answer(used(1, 1)))
        await soon()
        await soon()
        others = [asyncio.create_task(firm.answer(used(1, 1))) for _ in range(3)]
        async with asyncio.timeout(1):
            told = await asyncio.gather(first, *others, return_exceptions=True)
        assert [type(one) for one in told] == [StoreUnavailable] * 4
        fault.down = False
        await firm.answer(used(1, 1))


async def test_a_ledger_that_cannot_write_says_so_until_it_can_though_nobody_asks(books, clock) -> None:
    class Dying(FaultyStore):
        beats = 0

        async def beat(self, process: str) -> None:
            Dying.beats += 1
            if self._fault.down:
                raise ConnectionError
            await self._store.beat(process)

    firm, fault = Firm(books, [], clock=clock, retry_seconds_max=0.001), Fault()
    firm.store = Dying(firm.store, fault)
    async with firm.opened():
        assert firm.ledger.is_writing
        fault.down = True
        with pytest.raises(StoreUnavailable):
            await firm.answer(used(1, 1))
        assert not firm.ledger.is_writing
        beats = Dying.beats
        async with asyncio.timeout(20):
            while Dying.beats < beats + 1_100:  # more failures in a row than a pause can double
                await asyncio.sleep(0.001)
        assert not firm.ledger.is_writing
        fault.down = False
        async with asyncio.timeout(2):
            while not firm.ledger.is_writing:
                await asyncio.sleep(0.001)


async def test_a_slow_failure_refuses_all_who_waited_through_it_whatever_it_is_called(books, clock) -> None:
    class Locked(FaultyStore):
        def transaction(self):
            return _Locked() if self._fault.down else super().transaction()

    class _Locked:
        async def __aenter__(self):
            await asyncio.sleep(0.06)
            raise ConnectionError("locked")

        async def __aexit__(self, *_: object) -> None:
            """Never entered."""

    firm, fault = Firm(books, [], clock=clock, commit_timeout_seconds=0.1), Fault()
    firm.store = Locked(firm.store, fault)
    async with firm.opened():
        fault.down = True
        first = asyncio.create_task(firm.answer(used(1, 1)))
        while firm.ledger.waiting or not asyncio.all_tasks() - {asyncio.current_task()}:
            await soon()
        await soon()
        await soon()
        others = [asyncio.create_task(firm.answer(used(1, 1))) for _ in range(3)]
        done, _ = await asyncio.wait({first, *others}, timeout=0.09)
        assert len(done) == 4
        assert {type(task.exception()) for task in done} == {StoreUnavailable}


async def test_a_period_that_cannot_be_opened_refuses_its_holds(books, clock) -> None:
    class Forgetful(SqlLedgerStore):
        async def open_periods(self, budgets: object) -> None:
            """Opens none."""

    firm = Firm(books, [budget("dept", "sales", 10**9)], clock=clock)
    firm.store = Forgetful(books, clock)
    async with firm.opened():
        with pytest.raises(StoreUnavailable):
            await firm.answer(used(1, 1))
    assert "2 periods" in str(PeriodsMissing({("a", "1"): None, ("b", "1"): None}))


async def test_a_closed_ledger_takes_no_turn_and_has_no_lease(books, clock) -> None:
    firm = Firm(books, [], clock=clock)
    async with firm.opened():
        assert len(await firm.rows("SELECT id FROM processes")) == 1
    assert await firm.rows("SELECT id FROM processes") == []
    with pytest.raises(Overloaded):
        await firm.answer(used(1, 1))


async def test_closing_waits_until_every_closing_is_durable(books, clock) -> None:
    firm, fault = Firm(books, [], clock=clock), Fault()
    firm.store = FaultyStore(firm.store, fault)
    async with firm.opened(), firm.turn() as turn, turn.attempt(TARGET) as attempt:
        attempt.sent()
        fault.before = 2
    assert (await firm.entries(turn.id))[1] == (1, "post", HELD, True)


async def test_what_cannot_be_written_at_the_end_is_left_to_the_next_start(books, clock) -> None:
    firm, fault = Firm(books, [], clock=clock, close_seconds=0.05), Fault()
    firm.store = FaultyStore(firm.store, fault)
    async with firm.opened(), firm.turn() as turn, turn.attempt(TARGET) as attempt:
        attempt.sent()
        fault.down = True
    assert await firm.open_holds() == 1
    async with Firm(books, [], clock=clock, sole=True).opened() as following:
        assert (await following.entries(turn.id))[1] == (1, "post", HELD, True)


async def test_the_lease_is_renewed_and_a_lost_beat_only_makes_it_wait_to_sweep(books, clock) -> None:
    class Flaky(SqlLedgerStore):
        beats = 0

        async def beat(self, process: str) -> None:
            Flaky.beats += 1
            if Flaky.beats == 2:
                raise ConnectionError
            await super().beat(process)

    firm = Firm(books, [], clock=clock, sweep_seconds=0.001, lease_seconds=15)
    firm.store = Flaky(books, clock)
    async with firm.opened():
        clock.advance(14)
        while Flaky.beats < 3:
            await asyncio.sleep(0.001)
        clock.advance(14)
        assert await firm.ledger.sweep() == 0


async def test_reports_of_a_store_that_is_gone_are_refused_not_wrong(tmp_path, clock) -> None:
    empty = make_engine(f"sqlite+aiosqlite:///{tmp_path}/empty.db")
    firm = Firm(empty, [budget("dept", "sales", 1)], clock=clock)
    with pytest.raises(StoreUnavailable):
        await Spend(firm.reports, book=lambda: firm.book, clock=clock).budget_states()
    await empty.dispose()


async def test_the_store_asks_nothing_where_there_is_nothing_to_ask(books, clock) -> None:
    assert await SqlLedgerStore(books, clock).entries_of([]) == []
    store = SqlReports(books)
    assert await store.entries_of([]) == []
    assert await store.by_provider_id([], None) == {}


async def test_two_corrections_of_one_step_are_one(books, clock) -> None:
    async with Firm(books, [], clock=clock).opened() as firm:
        turn = await firm.answer(used(1, 1))
        told = await firm.ledger.request(turn.id)
        correction = msgspec.structs.replace(told.entries[0], step=2, kind="correction", amount_nano_usd=5, rates=None)
        twice = [Correction(correction, told.entries[1].at, ())]
        assert await firm.reports.correct(twice) == {correction.key}
        assert await firm.reports.correct(twice) == set()


async def test_the_gauge_of_open_holds_counts_none_that_was_refused(books, clock) -> None:
    firm, fault = Firm(books, [], clock=clock), Fault()
    firm.store = FaultyStore(firm.store, fault)
    async with firm.opened():
        async with firm.turn() as turn, turn.attempt(TARGET):
            for _ in range(3):
                fault.after = 1
                with pytest.raises(StoreUnavailable):
                    await firm.answer(used(1, 1))
            await soon()
            async with asyncio.timeout(5):
                while await firm.open_holds() > 1:
                    await asyncio.sleep(0)
            assert firm.ledger.open_holds == 1
        await turn.settled()
        assert firm.ledger.open_holds == 0
