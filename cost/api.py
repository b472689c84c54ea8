"""Spend, budgets and invoices over HTTP: wire shapes and who may ask. It decides nothing about money."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import AwareDatetime, BaseModel

from cost.errors import Forbidden, InvalidInvoice
from cost.invoices import read_csv, read_jsonl
from cost.reconcile import ReconcileReport, Reconciliation
from cost.spend import BudgetState, Spend
from cost.store import SpendRow
from kernel import Caller, Role, format_usd

_INVOICE_BYTES_MAX = 64 * 1024 * 1024
_ROWS_AT_ONCE = 200

# For the OpenAPI document alone.
_FORBIDDEN: dict[int | str, dict[str, Any]] = {403: {"description": "More than its own is for who has platform_admin."}}
_WRONG: dict[int | str, dict[str, Any]] = {422: {"description": "What was sent is wrong; the message says where."}}
_INVOICE = {
    "requestBody": {
        "required": True,
        "content": {each: {"schema": {"type": "string"}} for each in ("application/jsonl", "text/csv")},
    }
}


class SpendRowView(BaseModel):
    """One group of a report."""

    group: dict[str, str | None]
    calls: int
    input_tokens: int
    output_tokens: int
    cost_usd: str
    estimated_usd: str


class SpendView(BaseModel):
    """Money spent in [since, until), by group, dearest first."""

    since: datetime
    until: datetime
    rows: list[SpendRowView]


class BudgetStateView(BaseModel):
    """How a budget stands in its present period."""

    budget: str
    scope: str
    of: str
    period: str
    hard: bool
    limit_usd: str
    posted_usd: str
    held_usd: str
    remaining_usd: str
    percent: int
    alerts: list[int]
    resets_at: datetime


class ReconcileView(BaseModel):
    """What an invoice changed."""

    lines: int
    unchanged: int
    corrected: int
    withdrawn: int
    still_open: int
    contended: int
    unknown: int
    unknown_ids: list[str]
    difference_usd: str


class SpendFilter(BaseModel):
    """Only what was spent there."""

    department: str | None = None
    app: str | None = None
    key: str | None = None
    user: str | None = None
    model: str | None = None
    provider: str | None = None
    use_case: str | None = None


def routes(spend: Spend, reconciliation: Reconciliation, caller_of: Callable[..., Caller]) -> APIRouter:
    """The routes of this folder; whoever mounts them chooses the prefix."""
    routes = APIRouter(tags=["cost"])

    @routes.get("/spend", response_model=SpendView, responses=_FORBIDDEN | _WRONG)
    async def report(
        since: AwareDatetime,
        until: AwareDatetime,
        by: Annotated[list[str], Query(default_factory=list)],
        only: Annotated[SpendFilter, Depends()],
        caller: Annotated[Caller, Depends(caller_of)],
    ) -> Response:
        """What was spent, grouped; an app sees its own, a person what the department spent."""
        where = {name: value for name, value in only.model_dump().items() if value is not None}
        if Role.PLATFORM_ADMIN not in caller.roles:
            where |= _own(caller, where)
        rows = await spend.report(by, since=since, until=until, where=where)
        return Response(await _report(since, until, rows), media_type="application/json")

    @routes.get("/budgets/state")
    async def budgets(caller: Annotated[Caller, Depends(caller_of)]) -> list[BudgetStateView]:
        """How budgets stand now; who administers sees all, others those that bind them."""
        return [_state_view(state) for state in await spend.budget_states() if _may_see(caller, state)]

    @routes.post("/reconcile", responses=_FORBIDDEN | _WRONG, openapi_extra=_INVOICE)
    async def reconcile(
        request: Request,
        since: AwareDatetime,
        until: AwareDatetime,
        caller: Annotated[Caller, Depends(caller_of)],
        *,
        provider: Annotated[str | None, Query(max_length=200)] = None,
        complete: bool = False,
    ) -> ReconcileView:
        """Apply an invoice: JSON lines, or CSV where the content type says so. Administrators only."""
        if Role.PLATFORM_ADMIN not in caller.roles:
            raise Forbidden("Reconciling takes the role `platform_admin`.")
        text = await _text(request)
        is_csv = request.headers.get("content-type", "").partition(";")[0].strip() == "text/csv"
        lines = read_csv(text) if is_csv else read_jsonl(text)
        applied = await reconciliation.run(
            lines, since=since, until=until, provider=provider, complete=complete, by=caller.name
        )
        return _reconcile_view(applied)

    return routes


async def _report(since: datetime, until: datetime, rows: Sequence[SpendRow]) -> str:
    """A `SpendView` in JSON, written by so many rows at a time: turns do not wait until a long one is whole."""
    head = SpendView(since=since, until=until, rows=[]).model_dump_json().removesuffix("]}")
    written = list[str]()
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        written += [_row_view(row).model_dump_json() for row in rows[start : start + _ROWS_AT_ONCE]]
        await asyncio.sleep(0)
    return f"{head}{','.join(written)}]}}"


def _row_view(row: SpendRow) -> SpendRowView:
    return SpendRowView(
        group=dict(row.group),
        calls=row.calls,
        input_tokens=row.input_tokens,
        output_tokens=row.output_tokens,
        cost_usd=format_usd(row.cost_nano_usd),
        estimated_usd=format_usd(row.estimated_nano_usd),
    )


def _own(caller: Caller, asked: Mapping[str, str]) -> dict[str, str]:
    """The filter that keeps a caller to its own: its department's spend, of which an app sees its own part."""
    own = {name: of for name, of in (("department", caller.department), ("app", caller.app)) if of is not None}
    if "department" not in own or any(asked.get(name, of) != of for name, of in own.items()):
        raise Forbidden(
            "An app's key sees what its app spends, a person's what the department spends; "
            "more takes the role `platform_admin`."
        )
    return own


def _may_see(caller: Caller, state: BudgetState) -> bool:
    own = {("department", caller.department), ("app", caller.app), ("key", caller.key_id)}
    return Role.PLATFORM_ADMIN in caller.roles or (state.budget.scope, state.budget.of) in own


def _state_view(state: BudgetState) -> BudgetStateView:
    budget = state.budget
    return BudgetStateView(
        budget=budget.id,
        scope=budget.scope,
        of=budget.of,
        period=state.period,
        hard=budget.hard,
        limit_usd=format_usd(budget.limit_nano_usd),
        posted_usd=format_usd(state.posted_nano_usd),
        held_usd=format_usd(state.held_nano_usd),
        remaining_usd=format_usd(state.remaining_nano_usd),
        percent=state.percent,
        alerts=list(state.alerts),
        resets_at=state.resets_at,
    )


def _reconcile_view(report: ReconcileReport) -> ReconcileView:
    return ReconcileView(
        lines=report.lines,
        unchanged=report.unchanged,
        corrected=report.corrected,
        withdrawn=report.withdrawn,
        still_open=report.still_open,
        contended=report.contended,
        unknown=report.unknown,
        unknown_ids=list(report.unknown_ids),
        difference_usd=format_usd(report.difference_nano_usd),
    )


async def _text(request: Request) -> str:
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > _INVOICE_BYTES_MAX:
            raise InvalidInvoice(f"The invoice is larger than {_INVOICE_BYTES_MAX} bytes; send it in parts.")
    try:
        return body.decode("utf-8-sig")
    except UnicodeDecodeError as broken:
        raise InvalidInvoice(f"The invoice is not UTF-8 at byte {broken.start}.") from broken
