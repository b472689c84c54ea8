"""How many processes there are, counted where their leases stand."""

from cost.sql import SqlLedgerStore
from gateway.replicas import Census
from kernel.db import make_engine


async def test_processes_are_those_whose_lease_is_fresh(engine, clock):
    books = SqlLedgerStore(engine, clock)
    for process in ("one", "two", "three"):
        await books.beat(process)
    census = Census(engine, lease_seconds=15)
    assert census.processes() == 1
    await census.start()
    assert census.processes() == (3 if engine.dialect.name == "postgresql" else 1)
    await books.end_lease("two")
    await census.close()
    await census.start()
    assert census.processes() == (2 if engine.dialect.name == "postgresql" else 1)
    await census.close()


async def test_process_that_cannot_count_stays_with_what_it_knew():
    census = Census(make_engine("postgresql+asyncpg://nobody@127.0.0.1:9/none"), lease_seconds=15)
    await census.start()
    assert census.processes() == 1
    await census.close()
