"""How many processes there are, counted where their leases stand."""

import pytest
from sqlalchemy import text

from cost.sql import SqlLedgerStore
from gateway.replicas import Census
from gateway.settings import Settings
from gateway.wiring import build
from kernel import SystemClock
from kernel.db import make_engine


@pytest.fixture
async def books(engine, clock):
    store = SqlLedgerStore(engine, clock)
    for process in ("one", "two", "three"):
        await store.beat(process)
    return store


async def age(engine, seconds: int, *processes: str) -> None:
    """As if these processes had not renewed their leases for so long."""
    past = "UPDATE processes SET heartbeat_at = now() - make_interval(secs => :seconds) WHERE id = ANY(:processes)"
    async with engine.begin() as connection:
        await connection.execute(text(past), {"seconds": seconds, "processes": list(processes)})


async def test_processes_are_counted_where_several_can_be(engine, clock, books):
    census = Census(engine, clock=clock, lease_seconds=15)
    assert census.processes() == 1
    await census.start()
    assert census.processes() == (3 if engine.dialect.name == "postgresql" else 1)
    await census.close()


@pytest.mark.parametrize("store_url", [pytest.param("postgres", marks=pytest.mark.postgres)], indirect=True)
class TestOnPostgresql:
    async def test_process_whose_lease_ran_out_is_not_counted(self, engine, clock, books):
        await age(engine, 20, "two")
        await age(engine, 10, "three")
        census = Census(engine, clock=clock, lease_seconds=15)
        await census._count()
        assert census.processes() == 2

    async def test_more_are_believed_at_once_and_fewer_after_a_whole_lease(self, engine, clock, books):
        census = Census(engine, clock=clock, lease_seconds=15)
        await census._count()
        await books.end_lease("two")
        for _ in range(7):
            await census._count()
            assert census.processes() == 3
            clock.advance(2)
        await books.beat("four")
        await books.beat("five")
        await census._count()
        assert census.processes() == 4
        await books.end_lease("one")
        await census._count()
        clock.advance(15)
        await census._count()
        assert census.processes() == 3

    async def test_outage_of_the_store_longer_than_a_lease_makes_nobody_believe_itself_alone(
        self, engine, clock, books
    ):
        census = Census(engine, clock=clock, lease_seconds=15)
        await census._count()
        await age(engine, 60, "two", "three")
        away = Census(make_engine("postgresql+asyncpg://nobody@127.0.0.1:9/none"), clock=clock, lease_seconds=15)
        for at in range(3):
            await census._count()  # this process has renewed its lease, the others are about to
            census._engine, away._engine = away._engine, census._engine
            clock.advance(14)
            await census._count()
            census._engine, away._engine = away._engine, census._engine
            assert census.processes() == 3, at
        for process in ("two", "three"):
            await books.beat(process)
        clock.advance(15)
        await census._count()
        assert census.processes() == 3

    async def test_process_counts_itself_from_its_first_turn_on(self, engine, on_postgres, redis_url, tmp_path):
        others = SqlLedgerStore(engine, SystemClock())
        await others.beat("another")
        platform = build(Settings(data_dir=tmp_path, redis_url=redis_url, demo=False, **on_postgres))
        async with platform:
            assert platform.replicas.census.processes() == 2


async def test_process_that_cannot_count_stays_with_what_it_knew(clock):
    census = Census(make_engine("postgresql+asyncpg://nobody@127.0.0.1:9/none"), clock=clock, lease_seconds=15)
    await census.start()
    assert census.processes() == 1
    await census.close()
