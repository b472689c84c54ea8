"""What was spent and how budgets stand, asked directly and over HTTP, and who may ask."""

import json
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

import pytest
from fastapi import FastAPI
from fastapi.responses import JSONResponse

from cost import InvalidInvoice, InvalidReport, Spend
from cost.api import routes
from kernel import Caller, PlatformError, Role
from tests.fakes.ledgers import CALLER, HELD, TARGET, Firm, budget, by, used

MONTH = {"since": datetime(2026, 11, 1, tzinfo=UTC), "until": datetime(2026, 12, 1, tzinfo=UTC)}
OTHER = by(CALLER, department="ops", app="search", key_id="key_2")
ADMIN = Caller("key_a", "admin", roles=frozenset({Role.PLATFORM_ADMIN}))


@pytest.fixture
async def firm(books, clock):
    documents = [
        budget("dept", "sales", 10 * HELD),
        budget("ops", "ops", 10**9),
        budget("key", "key_1", 1, "key", hard=False),
    ]
    async with Firm(books, documents, clock=clock).opened() as opened:
        await opened.answer(used(10, 5))
        clock.advance(86_400)
        await opened.answer(used(20, 5))
        await opened.answer(None)
        await opened.answer(used(1, 1), caller=OTHER)
        yield opened


def _spend(firm: Firm) -> Spend:
    return Spend(firm.reports, book=lambda: firm.book, clock=firm.clock)


async def test_spend_is_grouped_and_the_dearest_comes_first(firm: Firm) -> None:
    rows = await _spend(firm).report(["department"], **MONTH)
    assert [(dict(row.group), row.calls, row.cost_nano_usd, row.estimated_nano_usd) for row in rows] == [
        ({"department": "sales"}, 3, 40_000 + HELD, HELD),
        ({"department": "ops"}, 1, 2_000, 0),
    ]
    assert (rows[0].input_tokens, rows[0].output_tokens) == (30 + 100, 10 + 100)


async def test_spend_by_day_and_model_within_one_app(firm: Firm) -> None:
    rows = await _spend(firm).report(["day", "model"], **MONTH, where={"app": "mail"})
    assert {row.group["day"]: row.calls for row in rows} == {"2026-11-20": 1, "2026-11-21": 2}
    assert {row.group["model"] for row in rows} == {TARGET.name}


async def test_the_whole_is_one_row_and_nothing_is_no_row(firm: Firm) -> None:
    assert [row.calls for row in await _spend(firm).report([], **MONTH)] == [4]
    nobody = await _spend(firm).report([], **MONTH, where={"app": "nobody"})
    assert nobody == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"by": ["colour"]},
        {"by": [], "since": datetime(2027, 1, 1, tzinfo=UTC)},
        {"by": [], "until": datetime(2026, 12, 1)},  # noqa: DTZ001 - without an offset, on purpose
    ],
)
async def test_a_question_that_makes_no_sense_is_refused(firm: Firm, wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidReport):
        await _spend(firm).report(**{**MONTH, **wrong})


async def test_budgets_tell_what_is_left_when_they_reset_and_which_alerts_are_due(firm: Firm) -> None:
    async with firm.turn() as turn, turn.attempt(TARGET):
        dept, key, ops = await _spend(firm).budget_states()
    assert (dept.posted_nano_usd, dept.held_nano_usd) == (40_000 + HELD, HELD)
    assert dept.remaining_nano_usd == 10 * HELD - 2 * HELD - 40_000
    assert dept.resets_at == MONTH["until"]
    assert (dept.alerts, key.alerts, ops.alerts) == ((), (80, 100), ())
    (later, *_) = await _spend(firm).budget_states(MONTH["until"])
    assert (later.period, later.posted_nano_usd) == ("2026-12", 0)


async def test_a_budget_that_nobody_has_met_yet_knows_what_its_scope_spent(firm: Firm) -> None:
    firm.book = type(firm.book).of([budget("new", "mail", 10**9, "app")])
    (state,) = await _spend(firm).budget_states()
    assert state.posted_nano_usd == 40_000 + HELD


class _Door:
    """The routes, asked directly, behind a door that lets in whom it is told to."""

    def __init__(self, firm: Firm) -> None:
        self.caller = ADMIN
        self.app = FastAPI()
        self.app.include_router(routes(_spend(firm), firm.reconciliation(), lambda: self.caller))

        @self.app.exception_handler(PlatformError)
        def refuse(_: object, error: PlatformError) -> JSONResponse:
            told = {"code": error.code, "kind": error.kind, "message": error.message, "param": error.param}
            return JSONResponse(told, error.status)

    async def ask(
        self, caller: Caller, path: str, *, body: bytes = b"", kind: str = "", **query: Any
    ) -> tuple[int, Any]:
        self.caller, sent = caller, []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "scheme": "http", "path": path,
            "method": "POST" if path == "/reconcile" else "GET", "raw_path": path.encode(),
            "query_string": urlencode(query, doseq=True).encode(), "headers": [(b"content-type", kind.encode())],
        }  # fmt: skip
        await self.app(scope, receive, send)
        return sent[0]["status"], json.loads(b"".join(message.get("body", b"") for message in sent))


@pytest.fixture
def door(firm: Firm) -> _Door:
    return _Door(firm)


WINDOW = {name: at.isoformat() for name, at in MONTH.items()}


async def test_an_administrator_sees_the_spend_of_all_departments(door: _Door) -> None:
    status, told = await door.ask(ADMIN, "/spend", by=["department"], **WINDOW)
    assert status == 200
    assert [(row["group"], row["cost_usd"]) for row in told["rows"]] == [
        ({"department": "sales"}, "0.000240007"),
        ({"department": "ops"}, "0.000002000"),
    ]


async def test_an_app_sees_what_it_spent_and_a_person_what_the_department_did(door: _Door, firm: Firm) -> None:
    await firm.answer(used(7, 0), caller=by(OTHER, app="chat"))
    person = Caller("key_u", "bob", department="ops", user="bob")
    seen = [(await door.ask(who, "/spend", by=["app"], **WINDOW))[1]["rows"] for who in (OTHER, person)]
    assert [[row["group"]["app"] for row in rows] for rows in seen] == [["search"], ["chat", "search"]]
    status, told = await door.ask(OTHER, "/spend", app="chat", **WINDOW)
    assert (status, told["code"]) == (403, "permission_denied")
    assert (await door.ask(person, "/spend", app="chat", **WINDOW))[1]["rows"][0]["calls"] == 1


@pytest.mark.parametrize("path", ["/spend", "/reconcile"])
@pytest.mark.parametrize(
    ("field", "at"),
    [("since", "0001-01-01T00:00:00+14:00"), ("until", "9999-12-31T23:59:59-14:00"), ("since", "1999-12-31T00:00:00Z")],
)
async def test_an_instant_far_from_the_present_is_refused_by_name(door: _Door, path: str, field: str, at: str) -> None:
    status, told = await door.ask(ADMIN, path, **{**WINDOW, field: at})
    assert (status, told["code"], told["param"]) == (422, "validation_error", field)
    assert field in told["message"]


async def test_a_complete_invoice_without_its_provider_is_refused_by_name(door: _Door) -> None:
    status, told = await door.ask(ADMIN, "/reconcile", complete="true", **WINDOW)
    assert (status, told["param"]) == (422, "provider")


async def test_others_see_the_spend_of_their_own_department_only(door: _Door) -> None:
    assert (await door.ask(OTHER, "/spend", by=["department"], **WINDOW))[1]["rows"][0]["calls"] == 1
    status, told = await door.ask(OTHER, "/spend", department="sales", **WINDOW)
    assert (status, told["code"]) == (403, "permission_denied")
    assert (await door.ask(by(OTHER, department=None), "/spend", **WINDOW))[0] == 403


async def test_others_see_only_the_budgets_that_bind_them(door: _Door) -> None:
    seen = [[row["budget"] for row in (await door.ask(who, "/budgets/state"))[1]] for who in (ADMIN, CALLER, OTHER)]
    assert seen == [["dept", "key", "ops"], ["dept", "key"], ["ops"]]


async def test_only_an_administrator_reconciles(door: _Door) -> None:
    status, told = await door.ask(CALLER, "/reconcile", **WINDOW)
    assert (status, told["kind"]) == (403, "permission_error")


async def test_an_invoice_is_taken_as_json_lines_or_as_csv(door: _Door, firm: Firm) -> None:
    turn = await firm.answer(None)
    row = {"client_request_id": f"{turn.id}/1", "tokens": {"input": 50, "output": 5}}
    status, told = await door.ask(ADMIN, "/reconcile", body=json.dumps(row).encode(), **WINDOW)
    assert (status, told["corrected"], told["difference_usd"]) == (200, 1, "-0.000145007")
    table = f"client_request_id,input,output\n{turn.id}/1,50,5\n".encode()
    status, told = await door.ask(ADMIN, "/reconcile", body=table, kind="text/csv; charset=utf-8", **WINDOW)
    assert (status, told["corrected"], told["unchanged"]) == (200, 0, 1)


@pytest.mark.parametrize("body", [b"\xff", b"{", b'{"tokens": {"input": 1}}'])
async def test_an_invoice_that_cannot_be_read_changes_nothing(door: _Door, firm: Firm, body: bytes) -> None:
    status, told = await door.ask(ADMIN, "/reconcile", body=body, **WINDOW)
    assert (status, told["code"]) == (422, InvalidInvoice.code)
    assert "admin.reconciled" not in firm.trail.events()
