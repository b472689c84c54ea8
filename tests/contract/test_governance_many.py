"""What is read whole is read in pieces: nothing is lost between two of them, and much that is equal is kept once."""

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncEngine

from governance.sql import SqlStore
from governance.store import Allowance, Key
from governance.tables import DocumentRow, KeyRow
from kernel import Role
from tests.conftest import StillClock
from tests.fakes.audit import MemoryTrail

AT = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def store(engine: AsyncEngine, clock: StillClock) -> SqlStore:
    return SqlStore(engine, MemoryTrail(), clock=clock)


def _key(number: int) -> tuple[bytes, Key]:
    made = AT + timedelta(seconds=number)
    limits = Allowance(60, None, None) if number % 2 else Allowance()
    roles = frozenset({Role.PLATFORM_ADMIN}) if number % 3 == 0 else frozenset()
    app = f"app-{number % 7}" if not roles else None
    return number.to_bytes(32), Key(f"key_{number:06d}", "one", made, "admin", app, None, roles, limits)


async def test_every_key_is_read_whole_however_many_there_are(engine: AsyncEngine, store: SqlStore) -> None:
    keys = [_key(number) for number in range(1_003)]
    rows = [
        {
            "id": key.id,
            "digest": digest,
            "name": key.name,
            "app": key.app,
            "roles": ",".join(key.roles),
            "requests_per_minute": key.allowance.requests_per_minute,
            "created_at": key.created_at,
            "created_by": key.created_by,
        }
        for digest, key in keys
    ]
    async with engine.begin() as connection:
        await connection.execute(insert(KeyRow), rows)
    found = await store.keys()
    assert dict(found) == dict(keys)
    assert len(found) == len(keys)
    assert dict(await store.keys(key.id for _, key in keys[:600])) == dict(keys[:600])
    assert len({id(key.allowance) for _, key in found}) == 2
    assert len({id(key.roles) for _, key in found}) == 2


async def test_every_document_in_force_is_read_however_many_there_are(engine: AsyncEngine, store: SqlStore) -> None:
    rows = [
        {"kind": "app", "name": f"{number:04d}", "version": version, "body": body, "author": "a", "at": AT, "since": 1}
        for number in range(501)
        for version, body in ((1, '{"at":1}'), (2, None if number % 5 == 0 else '{"at":2}'))
    ]
    async with engine.begin() as connection:
        await connection.execute(insert(DocumentRow), rows)
    archive = await store.archive()
    assert [each.name for each in archive.documents] == [f"{number:04d}" for number in range(501) if number % 5]
    assert {each.body["at"] for each in archive.documents} == {2}
    assert archive.versions == {("app", f"{number:04d}"): 2 for number in range(501)}
