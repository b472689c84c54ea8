"""Documents, keys and credentials on every store: versions, all or nothing, one order of changes for everybody."""

import asyncio
from datetime import timedelta
from typing import ClassVar

import pytest
from pydantic import BaseModel
from sqlalchemy import func, select, text
from sqlalchemy.exc import IntegrityError, OperationalError

from governance import (
    KINDS,
    Allowance,
    AuditReader,
    AuditTrail,
    Credentials,
    Declaration,
    Directory,
    InvalidKey,
    Keys,
    NewKey,
    NotFound,
    Register,
    Rules,
    SealBroken,
    Vault,
    parse,
    render,
)
from governance.sql import SqlStore
from governance.sql_audit import SqlChains, SqlTrail
from governance.tables import AuditRow, ChangeRow, DocumentRow
from kernel import InvalidDeclaration, Role, StoreUnavailable

FILE = """
departments: [{name: sales, title: Sales}, {name: legal}]
use_cases: [{name: chat, purpose: talk}]
apps:
- {name: crm, department: sales, use_cases: [chat], requests_per_minute: 60, observe: {policy: 2026-12-01}}
users: [{name: ada, department: legal, roles: [platform_admin]}]
policies: [{name: p, models: ["*"], departments: [sales], use_cases: ["*"], data_class: internal}]
grants: [{name: g, app: crm, model: m, use_case: chat, until: "2027-01-01T00:00:00+02:00", reason: trial}]
"""


def check(documents):
    Directory.of(documents)
    Rules.of(documents)


class Office:
    """Everything one process has for administration."""

    def __init__(self, engine, clock, writer="admin-1"):
        self.store = SqlStore(engine, AuditTrail(SqlChains(), writer, clock=clock), clock=clock)
        self.register = Register(self.store, KINDS, clock=clock, check=check)
        self.reader = AuditReader(SqlTrail(engine))
        self.directory = Directory.of([])
        self.keys = Keys(self.store, b"p" * 32, directory=lambda: self.directory, clock=clock)
        self.credentials = Credentials(self.store, Vault(b"m" * 32))

    async def apply(self, text=FILE, *, by="ada", prune=False):
        done = await self.register.apply(parse(text, KINDS), by, prune=prune)
        self.directory = Directory.of((await self.register.load())[1])
        return done


@pytest.fixture
def office(engine, clock):
    return Office(engine, clock)


async def rows(engine, table):
    async with engine.connect() as connection:
        return await connection.scalar(select(func.count()).select_from(table))


async def test_export_applied_again_is_an_empty_plan_and_writes_nothing(office, engine):
    assert {each.action.value for each in await office.apply()} == {"create"}
    _, documents = await office.register.load()
    exported = render(office.register.export(documents))
    before = [await rows(engine, table) for table in (DocumentRow, ChangeRow, AuditRow)]
    assert {each.action.value for each in await office.register.plan(parse(exported, KINDS), prune=True)} == {
        "unchanged"
    }
    assert {each.action.value for each in await office.apply(exported, prune=True)} == {"unchanged"}
    assert [await rows(engine, table) for table in (DocumentRow, ChangeRow, AuditRow)] == before


async def test_update_adds_a_version_and_says_which_fields_changed(office, clock):
    await office.apply()
    clock.advance(5)
    crm = {"department": "sales", "use_cases": ["chat"], "requests_per_minute": 30}
    planned = await office.register.plan([Declaration("app", "crm", crm)])
    done = await office.register.apply([Declaration("app", "crm", crm)], "bob")
    assert planned == done
    assert [(f.path, f.old, f.new) for f in done[0].fields] == [
        ("requests_per_minute", 60, 30),
        ("observe.policy", "2026-12-01", None),
    ]
    first, second = await office.register.history("app", "crm")
    assert (first.version, first.author, first.body["requests_per_minute"]) == (1, "ada", 60)
    assert (second.version, second.author, second.at) == (2, "bob", clock.now())
    _, documents = await office.register.load()
    assert [each.version for each in documents if each.name == "crm"] == [2]


async def test_all_faults_are_told_at_once_and_nothing_is_written(office, engine):
    wanted = [
        Declaration("app", "crm", {"departmnt": "x", "use_cases": []}),
        Declaration("department", "no spaces", {}),
        Declaration("team", "t", {}),
        Declaration("department", "twice", {}),
        Declaration("department", "twice", {}),
    ]
    with pytest.raises(InvalidDeclaration) as fault:
        await office.register.apply(wanted, "ada")
    message = fault.value.message
    for words in (
        "app 'crm': department: Field required",
        "app 'crm': use_cases: List should have at least 1 item",
        "app 'crm': departmnt: unknown field; App has",
        "department 'no spaces': name is",
        "team 't': kind is unknown",
        "department 'twice': declared twice",
    ):
        assert words in message
    assert await rows(engine, DocumentRow) == 0


async def test_set_that_does_not_hold_together_is_refused_whole(office, engine):
    for attempt in (office.register.plan, lambda wanted: office.register.apply(wanted, "ada")):
        with pytest.raises(InvalidDeclaration, match="'nowhere', which is not declared"):
            await attempt(
                [
                    Declaration("department", "sales", {}),
                    Declaration("user", "ada", {"department": "nowhere"}),
                ]
            )
    assert [await rows(engine, table) for table in (DocumentRow, ChangeRow, AuditRow)] == [0, 0, 0]


async def test_removed_document_is_out_of_force_and_its_name_goes_on_counting(office):
    await office.apply()
    with pytest.raises(InvalidDeclaration, match="department names department 'legal'"):
        await office.register.remove("department", "legal", "ada")
    await office.register.remove("user", "ada", "ada")
    await office.register.remove("department", "legal", "ada")
    with pytest.raises(NotFound):
        await office.register.remove("department", "legal", "ada")
    assert "legal" not in {each.name for each in (await office.register.load())[1]}
    done = await office.register.apply([Declaration("department", "legal", {})], "ada")
    assert [(each.action.value, each.version) for each in done] == [("create", 3)]
    assert [each.version for each in await office.register.history("department", "legal")] == [1, 3]


async def test_prune_withdraws_what_the_file_does_not_name(office):
    await office.apply()
    done = await office.apply("departments: [{name: sales, title: Sales}]", prune=True)
    assert {each.name for each in done if each.action.value == "remove"} == {"legal", "chat", "crm", "ada", "p", "g"}
    assert [each.name for each in (await office.register.load())[1]] == ["sales"]


async def test_concurrent_applies_give_one_order_without_gaps(engine, clock):
    offices = [Office(engine, clock, f"admin-{n}") for n in range(3)]
    await asyncio.gather(
        *(
            offices[n % 3].register.apply([Declaration("department", "sales", {"title": f"t{n}"})], f"by{n}")
            for n in range(12)
        )
    )
    history = await offices[0].register.history("department", "sales")
    assert [each.version for each in history] == list(range(1, 13))
    notes = await offices[0].register.changes_since(0)
    assert [note.version for note in notes] == list(range(1, 13))
    assert await offices[1].register.version() == 12
    verdict = await offices[0].reader.verify()
    assert (verdict.intact, verdict.records) == (True, 12)


async def test_every_change_is_in_the_feed_in_the_order_of_commits(office):
    await office.apply()
    created = await office.keys.create(NewKey("k", app="crm"), "ada")
    await office.credentials.put("openai", "s3cret", "ada")
    await office.keys.revoke(created.id, "ada")
    await office.keys.revoke(created.id, "ada")
    await office.credentials.remove("openai", "ada")
    notes = await office.register.changes_since(0)
    assert [(note.version, note.kind, note.ref) for note in notes] == [
        (1, "documents", None),
        (2, "key", created.id),
        (3, "credential", "openai"),
        (4, "key", created.id),
        (5, "credential", "openai"),
    ]
    assert await office.register.changes_since(4) == notes[4:]
    assert all(note.at.tzinfo is not None for note in notes)
    assert [record.event for record in await office.reader.recent(event="admin.")] == [
        "admin.credential_removed",
        "admin.key_revoked",
        "admin.credential_put",
        "admin.key_created",
        "admin.applied",
    ]


async def test_issued_key_identifies_its_app_and_is_nowhere_in_the_store(office, engine):
    await office.apply()
    created = await office.keys.create(
        NewKey("k", app="crm", limits=Allowance(requests_per_minute=5, concurrent=2)), "ada"
    )
    assert (created.key[:3], len(created.key)) == ("pk-", 46)
    assert created.key not in repr(created)
    caller = office.keys.identify(created.key)
    assert (caller.app, caller.department, caller.use_cases) == ("crm", "sales", ("chat",))
    assert office.keys.identify(created.key) is caller
    assert office.keys.allowance_of(created.id) == Allowance(5, None, 2)
    async with engine.connect() as connection:
        everything = [list(await connection.execute(text(f"SELECT * FROM {t}"))) for t in ("keys", "audit", "changes")]
    assert created.key[3:] not in repr(everything)


async def test_revocation_reaches_another_process_through_the_feed(engine, clock):
    here, there = Office(engine, clock), Office(engine, clock, "admin-2")
    await here.apply()
    there.directory = here.directory
    created = await here.keys.create(NewKey("k", app="crm"), "ada")
    await there.keys.load()
    there.keys.identify(created.key)
    seen = await there.register.version()
    await here.keys.revoke(created.id, "ada")
    with pytest.raises(InvalidKey):
        here.keys.identify(created.key)
    await there.keys.refresh([note.ref for note in await there.register.changes_since(seen) if note.kind == "key"])
    with pytest.raises(InvalidKey) as refused:
        there.keys.identify(created.key)
    assert (refused.value.reason, refused.value.key_id) == ("revoked", created.id)


async def test_key_unknown_here_can_be_revoked_here(engine, clock):
    here, there = Office(engine, clock), Office(engine, clock, "admin-2")
    created = await here.keys.create(NewKey("root", roles=frozenset({Role.PLATFORM_ADMIN})), "setup")
    await there.keys.revoke(created.id, "ada")
    [key] = await here.keys.listing()
    assert (key.revoked_by, key.revoked_at) == ("ada", clock.now())
    with pytest.raises(NotFound):
        await there.keys.revoke("key_unknown", "ada")


async def test_every_invalid_key_gets_the_same_answer(office, clock):
    await office.apply()
    soon = clock.now() + timedelta(minutes=1)
    expiring = await office.keys.create(NewKey("k", user="ada", expires_at=soon), "ada")
    orphan = await office.keys.create(NewKey("k", app="crm"), "ada")
    assert office.keys.identify(expiring.key).roles == {Role.PLATFORM_ADMIN}
    clock.advance(60)
    office.directory = Directory.of([])
    refusals = {}
    for presented in (expiring.key, orphan.key, "pk-" + "x" * 43, "", "\ud800"):
        with pytest.raises(InvalidKey) as refused:
            office.keys.identify(presented)
        refusals.setdefault(refused.value.reason, set()).add(str(refused.value))
    assert set(refusals) == {"expired", "orphaned", "unknown"}
    assert len(set().union(*refusals.values())) == 1


async def test_key_belongs_to_exactly_one(office, clock):
    await office.apply()
    admin = frozenset({Role.PLATFORM_ADMIN})
    for wrong in (
        NewKey("k"),
        NewKey("k", app="crm", user="ada"),
        NewKey("k", app="crm", roles=admin),
        NewKey("k", app="gone"),
        NewKey("k", user="gone"),
        NewKey("no spaces", roles=admin),
        NewKey("k", roles=admin, expires_at=clock.now()),
        NewKey("k", roles=admin, expires_at=clock.now().replace(tzinfo=None)),
    ):
        with pytest.raises(InvalidDeclaration, match="key '"):
            await office.keys.create(wrong, "ada")
    assert await office.keys.listing() == []


async def test_other_pepper_knows_no_key(office, clock):
    created = await office.keys.create(NewKey("k", roles=frozenset({Role.MEMBER})), "ada")
    other = Keys(office.store, b"q" * 32, directory=lambda: office.directory, clock=clock)
    await other.load()
    with pytest.raises(InvalidKey):
        other.identify(created.key)
    await office.keys.load()
    assert office.keys.identify(created.key).roles == {Role.MEMBER}


async def test_credential_is_readable_here_sealed_in_the_store_and_tied_to_its_name(office, engine):
    await office.credentials.put("openai", "sk-canary", "ada")
    await office.credentials.put("other", "sk-other", "ada")
    await office.credentials.put("openai", "sk-canary-2", "ada")
    assert office.credentials.get("openai") == "sk-canary-2"
    assert office.credentials.get("none") is None
    async with engine.begin() as connection:
        everything = [list(await connection.execute(text(f"SELECT * FROM {t}"))) for t in ("credentials", "audit")]
        assert "canary" not in repr(everything)
        stolen = await connection.scalar(text("SELECT sealed FROM credentials WHERE name = 'openai'"))
        await connection.execute(text("UPDATE credentials SET sealed = :s WHERE name = 'other'"), {"s": stolen})
    await office.credentials.load()
    assert office.credentials.get("openai") == "sk-canary-2"
    assert office.credentials.names() == ("openai", "other")
    with pytest.raises(SealBroken, match="'credentials/other' was altered or moved"):
        office.credentials.get("other")
    with pytest.raises(NotFound):
        await office.credentials.remove("none", "ada")


async def test_failed_write_leaves_neither_a_change_nor_a_broken_chain(office, engine):
    await office.apply()

    async def interrupted():
        async with office.store.writing() as transaction:
            await transaction.put_credential("x", b"y", "ada")
            raise OperationalError("disk", None, OSError("full"))

    with pytest.raises(StoreUnavailable):
        await interrupted()
    await office.credentials.put("openai", "s", "ada")
    assert await rows(engine, ChangeRow) == 2
    assert (await office.reader.verify()).intact


async def test_caller_follows_the_directory(office):
    await office.apply()
    created = await office.keys.create(NewKey("k", app="crm"), "ada")
    assert office.keys.identify(created.key).department == "sales"
    await office.apply("apps: [{name: crm, department: legal, use_cases: [chat], data_class: restricted}]")
    moved = office.keys.identify(created.key)
    assert (moved.department, moved.data_class.label) == ("legal", "restricted")


async def test_declaration_keeps_its_beginning_until_it_is_withdrawn_or_becomes_another_thing(office, clock):
    class Vessel(BaseModel):
        IDENTITY: ClassVar = ("of",)
        of: dict[str, str]
        size: int = 0

    register = Register(office.store, {"vessel": Vessel}, clock=clock, check=lambda documents: None)
    began = []

    async def declare(of, size=0):
        await register.apply([Declaration("vessel", "v", {"of": {"it": of}, "size": size})], "ada")
        [document] = (await register.load())[1]
        began.append((document.version, document.since))

    await declare("a")
    await declare("a", 7)
    await declare("b", 7)
    await declare("b", 8)
    await declare("a", 8)
    await register.remove("vessel", "v", "ada")
    await declare("a", 8)
    await declare("a", 9)
    assert began == [(1, 1), (2, 1), (3, 3), (4, 3), (5, 5), (7, 7), (8, 7)]
    assert [document.since for document in await register.history("vessel", "v")] == [1, 1, 3, 3, 5, 7, 7]


async def test_document_written_under_an_older_shape_can_be_brought_up_to_date(office, clock):
    class Newer(BaseModel):
        title: int
        since: str = "always"

    await office.apply()
    later = Register(office.store, {"department": Newer}, clock=clock, check=lambda documents: None)
    [change] = await later.apply([Declaration("department", "sales", {"title": 7})], "ada")
    assert [(f.path, f.old, f.new) for f in change.fields] == [("title", "Sales", 7), ("since", None, "always")]

    class Newest(Newer):
        more: bool = False

    latest = Register(office.store, {"department": Newest}, clock=clock, check=lambda documents: None)
    [change] = await latest.plan([Declaration("department", "sales", {"title": 7})])
    assert change.action.value == "unchanged"


async def test_chain_shared_by_mistake_stops_one_of_the_two_and_the_next_attempt_goes_on(engine, clock):
    here, there = Office(engine, clock), Office(engine, clock)
    await here.credentials.put("a", "s", "ada")
    await there.credentials.put("b", "s", "ada")
    with pytest.raises(IntegrityError):
        await here.credentials.put("c", "s", "ada")
    await here.credentials.put("c", "s", "ada")
    verdict = await here.reader.verify()
    assert (verdict.intact, verdict.records) == (True, 3)


async def test_weak_pepper_and_unfit_credential_are_refused(office, clock):
    with pytest.raises(ValueError, match="16 are the least"):
        Keys(office.store, b"short", directory=lambda: office.directory, clock=clock)
    for name, secret in (("no spaces", "s"), ("a", ""), ("a", "s\n"), ("a", "s" * 16_385)):
        with pytest.raises(InvalidDeclaration):
            await office.credentials.put(name, secret, "ada")
    assert office.credentials.names() == ()


class LostTrail:
    """A sink that cannot write, and notes what it is told."""

    def __init__(self):
        self.told = []

    async def append(self, connection, records):
        raise OSError("no sink")

    def advance(self, head):
        self.told.append("advance")

    def forget(self):
        self.told.append("forget")


async def test_change_that_cannot_be_audited_does_not_happen(engine, clock):
    trail = LostTrail()
    credentials = Credentials(SqlStore(engine, trail, clock=clock), Vault(b"m" * 32))
    with pytest.raises(StoreUnavailable):
        await credentials.put("openai", "s", "ada")
    assert trail.told == ["forget"]
    await credentials.load()
    assert credentials.names() == ()
