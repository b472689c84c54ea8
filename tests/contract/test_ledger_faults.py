"""The ledger on a PostgreSQL that is late, hung, or held up by a process that froze."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from cost.book import budget_of
from cost.entries import Correction
from cost.sql import SqlLedgerStore
from cost.sql_reports import SqlReports
from governance import AuditTrail
from governance.sql import SqlStore
from governance.sql_audit import SqlChains
from kernel import StoreUnavailable, SystemClock
from kernel.db import Base, make_engine
from tests.chaos.postgres import PostgresServer
from tests.chaos.proxy import Proxy
from tests.fakes.ledgers import HELD, TARGET, Firm, budget, used

pytestmark = pytest.mark.postgres

TEN = budget("dept", "sales", 10 * HELD)
LAG = """
CREATE FUNCTION lag() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN PERFORM pg_sleep(seconds) FROM slow; RETURN NULL; END $$
"""
AT_COMMIT = """
CREATE CONSTRAINT TRIGGER lag AFTER INSERT ON open_holds DEFERRABLE INITIALLY DEFERRED
FOR EACH ROW EXECUTE FUNCTION lag()
"""
SAME_ENTRY = """
INSERT INTO entries SELECT (jsonb_populate_record(e, '{"step": 2}')).* FROM entries e WHERE step = 1
"""


@asynccontextmanager
async def engine_at(url: str, *, timeout_seconds: float = 5.0) -> AsyncIterator[AsyncEngine]:
    made = make_engine(url, timeout_seconds=timeout_seconds)
    async with made.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    yield made
    await made.dispose()


async def test_a_hold_whose_commit_comes_after_its_turn_was_refused_is_not_left_open(postgres_url: str) -> None:
    async with (
        engine_at(postgres_url) as engine,
        Firm(engine, [TEN], commit_timeout_seconds=0.3).opened() as firm,
    ):
        await firm.answer(used(1, 1))
        async with engine.begin() as connection:
            for statement in ("CREATE TABLE slow AS SELECT 1.0 AS seconds", LAG, AT_COMMIT):
                await connection.execute(text(statement))
        turn = firm.turn()
        with pytest.raises(StoreUnavailable):
            async with turn, turn.attempt(TARGET):
                raise AssertionError("nothing may be sent")
        await turn.settled()
        assert await firm.open_holds() == 0
        assert await firm.entries(turn.id) in ([], [(0, "hold", HELD, False), (1, "void", 0, False)])
        await asyncio.sleep(1)
        assert await firm.open_holds() == 0
        assert await firm.balance("dept") == (2_000, 0)
        assert firm.ledger.open_holds == 0


async def test_a_process_that_froze_with_a_budget_locked_stops_the_others_for_no_longer_than_it_may(
    postgres_url: str,
) -> None:
    async with (
        engine_at(postgres_url, timeout_seconds=0.4) as ours,
        engine_at(postgres_url, timeout_seconds=0.4) as its,
    ):
        frozen = Firm(its, [TEN])
        async with Firm(ours, [TEN], commit_timeout_seconds=0.4).opened() as firm:
            await firm.answer(used(1, 1))
            books = await frozen.store.transaction().__aenter__()
            await books.lock({budget_of(TEN).at((await books.release(())).at): None})
            began, refused = time.monotonic(), 0
            while True:
                try:
                    await firm.answer(used(1, 1))
                except StoreUnavailable:
                    refused += 1
                else:
                    break
            assert refused
            assert time.monotonic() - began < 2
            await frozen.store._line.drop()


async def _refused_within(seconds: float, asking) -> None:
    began = time.monotonic()
    with pytest.raises(StoreUnavailable):
        await asking
    assert time.monotonic() - began < seconds


async def test_a_hung_store_refuses_whoever_asks_within_the_time_out_and_serves_again_by_itself(
    mortal_postgres: PostgresServer, tmp_path: Path
) -> None:
    async with (
        Proxy(tmp_path, mortal_postgres.port) as proxy,
        engine_at(mortal_postgres.url_through(proxy.port), timeout_seconds=0.5) as engine,
    ):
        firm = Firm(engine, [TEN], commit_timeout_seconds=0.5, retry_seconds_max=0.2)
        firm.store._timeout_seconds = 0.5
        declared = _declared(engine)
        async with firm.opened():
            async with firm.turn() as open_turn, open_turn.attempt(TARGET) as attempt:
                attempt.sent()
                await proxy.black_hole()
                for _ in range(3):
                    await _refused_within(1, firm.answer(used(1, 1)))
                attempt.use(used(10, 10))
            await _refused_within(1, firm.ledger.request("req_x"))
            await _refused_within(1, firm.store.orphans("x", 15, 10))
            await _refused_within(1, declared.version())
            await _refused_within(1, declared.changes_since(0, limit=10))
            await _refused_within(1.5, _write(declared))
            await proxy.let_pass()
            async with asyncio.timeout(5):
                await open_turn.settled()
            await firm.answer(used(1, 1))
            assert await firm.balance("dept") == (22_000, 0)
            assert await firm.open_holds() == 0


async def _write(store: SqlStore) -> None:
    async with store.writing():
        pass


def _declared(engine: AsyncEngine) -> SqlStore:
    trail = AuditTrail(SqlChains(), "w", clock=SystemClock())
    return SqlStore(engine, trail, clock=SystemClock(), timeout_seconds=0.5)


class Relay:
    """A relay whose connections can die without a word while new ones pass: a fail-over without a reset."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._dead = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    def die(self) -> None:
        """Forward nothing more on what is connected now."""
        self._dead.set()
        self._dead = asyncio.Event()

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[int]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        async with server:
            yield server.sockets[0].getsockname()[1]
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        dead = self._dead
        beyond, onward = await asyncio.open_connection("127.0.0.1", self._target)
        for task in (
            asyncio.create_task(self._pump(reader, onward, dead)),
            asyncio.create_task(self._pump(beyond, writer, dead)),
        ):
            self._tasks.add(task)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, dead: asyncio.Event) -> None:
        try:
            while (data := await reader.read(65_536)) and not dead.is_set():
                writer.write(data)
                await writer.drain()
            await asyncio.Event().wait() if dead.is_set() else None
        except OSError:
            pass
        finally:
            writer.close()


async def test_connections_that_died_without_a_word_cost_one_time_out_and_not_one_each(
    mortal_postgres: PostgresServer,
) -> None:
    relay = Relay(mortal_postgres.port)
    async with (
        relay.listening() as port,
        engine_at(mortal_postgres.url_through(port), timeout_seconds=0.5) as engine,
    ):
        declared, store = _declared(engine), SqlLedgerStore(engine, timeout_seconds=0.5)
        for question in (
            declared.version,
            lambda: declared.changes_since(0, limit=10),
            lambda: _write(declared),
            lambda: store.entries_of(["req_x"]),
            lambda: store.orphans("x", 15, 10),
            lambda: store.end_lease("x"),
        ):
            await asyncio.gather(*(declared.version() for _ in range(8)))
            relay.die()
            began = time.monotonic()
            await _refused_within(0.8, question())
            for _ in range(8):
                assert await declared.version() == 0
            assert time.monotonic() - began < 1.2


async def test_a_correction_waits_for_a_period_that_is_being_opened(postgres_url: str) -> None:
    async with engine_at(postgres_url) as engine, Firm(engine, [TEN]).opened() as firm:
        correction = await _correction(firm)
        async with engine.begin() as opener:
            await opener.execute(text("LOCK TABLE open_holds IN SHARE ROW EXCLUSIVE MODE"))
            correcting = asyncio.create_task(SqlReports(engine).correct([correction]))
            done, _ = await asyncio.wait({correcting}, timeout=0.3)
            assert not done
        assert await correcting == {correction.entry.key}


async def test_corrections_keep_no_budget_locked_while_their_entries_are_written(postgres_url: str) -> None:
    async with engine_at(postgres_url) as engine, Firm(engine, [TEN]).opened() as firm:
        correction = await _correction(firm)
        async with engine.connect() as rival:
            await rival.execute(text(SAME_ENTRY))
            correcting = asyncio.create_task(SqlReports(engine).correct([correction]))
            done, _ = await asyncio.wait({correcting}, timeout=0.3)
            assert not done, "it waits for the same entry of somebody else"
            await firm.answer(used(1, 1))
        assert await correcting == {correction.entry.key}
        assert await firm.balance("dept") == (22_000 + 5, 0)


async def _correction(firm: Firm) -> Correction:
    turn = await firm.answer(used(10, 10))
    told = await firm.ledger.request(turn.id)
    assert told is not None
    entry = msgspec.structs.replace(told.entries[1], step=2, kind="correction", amount_nano_usd=5)
    return Correction(entry, told.entries[1].at, ())


async def test_a_server_that_hangs_at_the_end_keeps_no_process_from_ending(
    mortal_postgres: PostgresServer, tmp_path: Path
) -> None:
    async with Proxy(tmp_path, mortal_postgres.port) as proxy:
        engine = make_engine(mortal_postgres.url_through(proxy.port), timeout_seconds=0.5)
        async with engine.connect():
            pass
        await proxy.black_hole()
        async with asyncio.timeout(3):
            await engine.dispose()
