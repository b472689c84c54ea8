"""The control plane's routes: closed to everybody but administrators, bounded, and silent about secrets."""

import json
from types import SimpleNamespace

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute

from governance import (
    KINDS,
    AuditReader,
    AuditTrail,
    Credentials,
    Directory,
    Keys,
    Register,
    Vault,
)
from governance.api import routes
from governance.sql import SqlStore
from governance.sql_audit import SqlChains, SqlTrail
from kernel import Caller, PlatformError, Role
from kernel.db import Base, make_engine

ADMIN = Caller("key_admin", "root", roles=frozenset({Role.PLATFORM_ADMIN}))
FILE = "departments: [{name: sales}, {name: a/b}]\nusers: [{name: ada, department: sales}]"


async def call(app, method, path, *, query="", body=b""):
    """One request straight into the application: status and parsed body."""
    sent, parts = [], [body[i : i + 60_000] for i in range(0, len(body), 60_000)] or [b""]

    async def receive():
        return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "headers": [],
        "scheme": "http",
    }
    await app(scope, receive, send)
    answer = b"".join(message.get("body", b"") for message in sent)
    try:
        return sent[0]["status"], json.loads(answer or b"null")
    except ValueError:
        return sent[0]["status"], answer.decode()


@pytest.fixture
async def office(tmp_path, clock):
    engine = make_engine(f"sqlite+aiosqlite:///{tmp_path}/books.db")
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    store = SqlStore(engine, AuditTrail(SqlChains(), "admin", clock=clock), clock=clock)
    register = Register(store, KINDS, clock=clock, check=Directory.of)
    state = SimpleNamespace(caller=ADMIN, changes=0, directory=Directory.of([]))
    keys = Keys(store, b"p" * 32, directory=lambda: state.directory, clock=clock)

    async def changed():
        state.changes += 1
        state.directory = Directory.of((await register.load())[1])

    state.routes = routes(
        register,
        keys,
        credentials=Credentials(store, Vault(b"m" * 32)),
        audit=AuditReader(SqlTrail(engine)),
        caller_of=lambda: state.caller,
        changed=changed,
    )
    app = FastAPI()
    app.include_router(state.routes, prefix="/api")

    @app.exception_handler(PlatformError)
    async def refuse(request: Request, fault: PlatformError):
        return JSONResponse({"code": fault.code, "message": fault.message}, fault.status)

    state.call = lambda method, path, **rest: call(app, method, f"/api{path}", **rest)
    yield state
    await engine.dispose()


async def test_every_route_is_closed_to_everybody_else(office):
    office.caller = Caller("k", "k", roles=frozenset({Role.MEMBER, Role.PROMPT_OWNER}))
    paths = [
        (method, each.path) for each in office.routes.routes if isinstance(each, APIRoute) for method in each.methods
    ]
    assert len(paths) == 14
    for method, path in paths:
        plain = path.replace("{kind}", "department").replace("{name:path}", "x").replace("{key_id}", "x")
        assert await office.call(method, plain) == (
            403,
            {"code": "permission_denied", "message": "This needs the role platform_admin."},
        )


async def test_file_is_planned_applied_shown_exported_and_withdrawn(office):
    status, plan = await office.call("POST", "/plan", body=FILE.encode())
    assert (status, len(plan["changes"]), office.changes) == (200, 3, 0)
    assert await office.call("POST", "/apply", body=FILE.encode()) == (200, plan)
    assert office.changes == 1
    status, shown = await office.call("GET", "/documents/department/a/b")
    assert (shown["name"], shown["version"], shown["author"]) == ("a/b", 1, "key_admin")
    assert (await office.call("GET", "/documents/department/a/b", query="version=2"))[0] == 404
    assert (await office.call("GET", "/documents/department/a/b", query="version=1"))[1] == shown
    assert len((await office.call("GET", "/documents/department"))[1]["data"]) == 2
    exported = (await office.call("GET", "/export"))[1]
    _, again = await office.call("POST", "/plan", query="prune=true", body=exported.encode())
    assert {each["action"] for each in again["changes"]} == {"unchanged"}
    assert (await office.call("DELETE", "/documents/department/a/b"))[0] == 204
    assert (await office.call("DELETE", "/documents/department/a/b"))[0] == 404
    assert (await office.call("DELETE", "/documents/department/sales"))[0] == 422


async def test_key_is_shown_once_and_never_listed(office):
    await office.call("POST", "/apply", body=FILE.encode())
    status, created = await office.call("POST", "/keys", body=b'{"name": "k", "user": "ada", "concurrent": 2}')
    assert status == 201
    _, listed = await office.call("GET", "/keys")
    assert [each["id"] for each in listed["data"]] == [created["id"]]
    assert created["key"] not in json.dumps(listed)
    assert listed["data"][0]["allowance"]["concurrent"] == 2
    assert (await office.call("GET", "/keys", query=f"after={created['id']}"))[1] == {"data": []}
    assert (await office.call("DELETE", f"/keys/{created['id']}"))[0] == 204
    assert (await office.call("GET", "/keys"))[1]["data"][0]["revoked_by"] == "key_admin"


async def test_credential_goes_in_and_only_its_name_comes_out(office):
    assert (await office.call("PUT", "/credentials/openai", body=b'{"secret": "sk-canary"}'))[0] == 204
    assert await office.call("GET", "/credentials") == (200, {"data": ["openai"]})
    assert (await office.call("DELETE", "/credentials/openai"))[0] == 204
    assert await office.call("GET", "/credentials") == (200, {"data": []})


@pytest.mark.parametrize(
    "body", [b'{"secret": "sk-canary", "sk-canary": 1', b'{"secret": ["sk-canary"]}', b'{"secret": " sk-canary"}']
)
async def test_wrong_body_is_refused_without_an_echo(office, body):
    status, answer = await office.call("PUT", "/credentials/openai", body=body)
    assert (status, answer["code"]) == (422, "validation_error")
    assert "canary" not in answer["message"]


async def test_bodies_are_bounded(office):
    assert (await office.call("POST", "/apply", body=b"#" * 1_048_577))[0] == 413
    assert (await office.call("POST", "/keys", body=b" " * 65_537))[0] == 413
    assert (await office.call("PUT", "/credentials/x", body=b" " * 65_537))[0] == 413


async def test_trail_is_read_and_verified(office):
    await office.call("POST", "/apply", body=FILE.encode())
    [record] = (await office.call("GET", "/audit", query="event=admin."))[1]["data"]
    assert record["body"]["changes"][0] == {"kind": "department", "name": "sales", "action": "create", "version": 1}
    assert await office.call("GET", "/audit", query="turn_id=turn_x") == (200, {"data": []})
    _, verdict = await office.call("GET", "/audit/verify")
    assert (verdict["intact"], verdict["records"], verdict["breaks"]) == (True, 1, [])
