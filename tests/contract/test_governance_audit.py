"""The trail on every store: what joins a transaction, and what a tamperer cannot hide."""

import random

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from governance import AuditReader, AuditTrail
from governance.sql_audit import SqlChains, SqlTrail
from kernel import AuditRecord, ChainHead

RECORDS = [
    AuditRecord("turn.admitted", {"z": 1, "a": {"ü": [True, None, "\x00"]}}, f"turn_{n}", "crm", "sales")
    for n in range(10)
]


@pytest.fixture
def reader(engine):
    return AuditReader(SqlTrail(engine))


async def written(engine, clock, records=RECORDS, writer="w1"):
    trail = AuditTrail(SqlChains(), writer, clock=clock)
    async with engine.begin() as connection:
        head = await trail.append(connection, records)
    trail.advance(head)
    return trail


async def sql(engine, *statements):
    async with engine.begin() as connection:
        for statement in statements:
            await connection.execute(text(statement))


async def test_chain_goes_on_across_transactions_and_processes(engine, clock, reader):
    trail = await written(engine, clock)
    async with engine.begin() as connection:
        trail.advance(await trail.append(connection, RECORDS[:1]))
    await written(engine, clock)
    await written(engine, clock, writer="w2")
    verdict = await reader.verify()
    assert (verdict.intact, verdict.records) == (True, 31)
    assert {writer: head.sequence for writer, head in verdict.heads.items()} == {"w1": 21, "w2": 10}
    [first, *others] = await reader.of_turn("turn_0")
    assert (first.body, first.app, first.at) == ({"a": {"ü": [True, None, "\x00"]}, "z": 1}, "crm", clock.now())
    assert len(others) == 3
    assert len(await reader.recent(limit=5)) == 5
    assert await reader.recent(event="admin.") == []


async def test_rolled_back_records_leave_no_gap(engine, clock, reader):
    trail = await written(engine, clock)
    async with engine.connect() as connection:
        await connection.begin()
        await trail.append(connection, RECORDS)
        await connection.rollback()
    trail.forget()
    async with engine.begin() as connection:
        trail.advance(await trail.append(connection, RECORDS[:3]))
    verdict = await reader.verify()
    assert (verdict.intact, verdict.records) == (True, 13)


async def test_two_appends_in_one_transaction_are_one_chain(engine, clock, reader):
    trail = await written(engine, clock)
    async with engine.begin() as connection:
        await trail.append(connection, RECORDS[:2])
        head = await trail.append(connection, RECORDS[2:4])
        assert await trail.append(connection, []) == head
    trail.advance(head)
    assert head.sequence == 14
    assert (await reader.verify()).intact


async def test_two_writers_of_one_name_cannot_both_go_on(engine, clock):
    one = await written(engine, clock)
    await written(engine, clock)
    with pytest.raises(IntegrityError):
        async with engine.begin() as connection:
            await one.append(connection, RECORDS)


SWAP = (
    "UPDATE audit SET sequence = -1 WHERE writer = 'w1' AND sequence = 4",
    "UPDATE audit SET sequence = 4 WHERE writer = 'w1' AND sequence = 6",
    "UPDATE audit SET sequence = 6 WHERE writer = 'w1' AND sequence = -1",
)
INSERT = (
    *(f"UPDATE audit SET sequence = {n + 1} WHERE writer = 'w1' AND sequence = {n}" for n in range(10, 4, -1)),
    (
        "INSERT INTO audit SELECT writer, 5, at, event, turn_id, app, department, body, previous, digest FROM audit "
        "WHERE writer = 'w1' AND sequence = 4"
    ),
)
EDITS = ("body = '{}'", "event = 'x'", "turn_id = NULL", "app = 'y'", "department = 'z'", "at = '2020-01-01 00:00:00'")


@pytest.mark.parametrize(
    ("statements", "sequence", "reason"),
    [
        *(((f"UPDATE audit SET {edit} WHERE writer = 'w1' AND sequence = 5",), 5, "edited") for edit in EDITS),
        (("UPDATE audit SET digest = 'x' WHERE writer = 'w1' AND sequence = 5",), 5, "edited"),
        (("DELETE FROM audit WHERE writer = 'w1' AND sequence = 5",), 5, "missing"),
        (("DELETE FROM audit WHERE writer = 'w1' AND sequence = 1",), 1, "missing"),
        (
            (
                "DELETE FROM audit WHERE writer = 'w1' AND sequence = 9",
                "UPDATE audit SET sequence = 9 WHERE writer = 'w1' AND sequence = 10",
            ),
            9,
            "reordered",
        ),
        (SWAP, 4, "reordered"),
        (INSERT, 5, "reordered"),
    ],
)
async def test_tampering_is_found_where_it_was_done(engine, clock, reader, statements, sequence, reason):
    await written(engine, clock)
    await written(engine, clock, writer="w2")
    await sql(engine, *statements)
    verdict = await reader.verify()
    assert [(each.writer, each.sequence, each.reason) for each in verdict.breaks] == [("w1", sequence, reason)]
    assert not verdict.intact


async def test_anchor_shows_what_a_chain_cannot(engine, clock, reader):
    await written(engine, clock)
    anchors = (await reader.verify()).heads
    await sql(engine, "DELETE FROM audit WHERE sequence > 8")
    assert (await reader.verify()).intact
    assert [(each.sequence, each.reason) for each in (await reader.verify(anchors)).breaks] == [(9, "missing")]
    await sql(engine, "DELETE FROM audit")
    clock.advance(1)
    await written(engine, clock)
    assert (await reader.verify()).intact
    assert [(each.sequence, each.reason) for each in (await reader.verify(anchors)).breaks] == [(10, "edited")]
    assert (await reader.verify({"w9": ChainHead(1, "x")})).breaks[0].writer == "w9"


async def test_no_random_edit_of_a_row_goes_unseen(engine, clock, reader):
    await written(engine, clock)
    draw = random.Random(7)
    fields = ("event", "turn_id", "app", "department", "body", "previous", "digest")
    for _ in range(40):
        field, sequence = draw.choice(fields), draw.randint(1, 10)
        where = f"WHERE writer = 'w1' AND sequence = {sequence}"
        async with engine.begin() as connection:
            old = await connection.scalar(text(f"SELECT {field} FROM audit {where}"))
            at = draw.randrange(len(old))
            forged = old[:at] + chr(ord(old[at]) ^ 1) + old[at + 1 :]
            await connection.execute(text(f"UPDATE audit SET {field} = :v {where}"), {"v": forged})
        assert [each.sequence for each in (await reader.verify()).breaks] == [sequence]
        async with engine.begin() as connection:
            await connection.execute(text(f"UPDATE audit SET {field} = :v {where}"), {"v": old})
    assert (await reader.verify()).intact
