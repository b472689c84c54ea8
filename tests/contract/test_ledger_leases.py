"""Leases of processes: whose holds are orphans, and what becomes of a lease that nobody keeps."""

from datetime import timedelta

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncEngine

from cost.sql import SqlLedgerStore
from cost.tables import ProcessRow
from kernel import SystemClock
from tests.fakes.ledgers import TARGET, Firm


async def test_a_lease_that_is_kept_keeps_its_holds_from_being_swept(engine: AsyncEngine) -> None:
    async with (
        Firm(engine, []).opened() as firm,
        Firm(engine, []).opened() as other,
        other.turn() as turn,
        turn.attempt(TARGET),
    ):
        assert await firm.store.orphans(firm.process, 15, 10) == []
        assert len(await firm.store.orphans(firm.process, None, 10)) == 1
        await other.store.end_lease(other.process)
        assert [held.key.turn_id for held in await firm.store.orphans(firm.process, 15, 10)] == [turn.id]


async def test_leases_that_ran_out_long_ago_are_removed_and_others_stay(engine: AsyncEngine) -> None:
    store = SqlLedgerStore(engine)
    for process in ("killed", "stalled", "alive"):
        await store.beat(process)
    async with engine.begin() as connection:
        for process, minutes in (("killed", 90), ("stalled", 20)):
            long_ago = SystemClock().now() - timedelta(minutes=minutes)
            await connection.execute(update(ProcessRow).where(ProcessRow.id == process).values(heartbeat_at=long_ago))
    await store.beat("alive")
    async with engine.connect() as connection:
        assert set(await connection.scalars(select(ProcessRow.id))) == {"stalled", "alive"}
