"""The control plane's routes for governance. It reads bodies and shows results; it decides nothing but the role.

Bodies are read and parsed here and not by FastAPI: bounded, and without echoing what was sent when it is wrong.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Annotated, Any, Generic, TypeVar

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from governance.audit import AuditReader, Break, StoredRecord
from governance.declarations import FILE_BYTES_MAX, Declaration, render
from governance.errors import Forbidden, NotFound, TooLarge
from governance.keys import Keys, NewKey
from governance.register import Change, Register, field_faults
from governance.store import Allowance, Key
from governance.vault import Credentials
from governance.wire import Limit, Name
from kernel import Caller, ChainHead, Document, InvalidDeclaration, Role

_SMALL_BODY_BYTES_MAX = 65_536


class NewKeyBody(BaseModel):
    """A key to issue."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name
    app: Name | None = None
    user: Name | None = None
    roles: frozenset[Role] = frozenset()
    expires_at: AwareDatetime | None = None
    requests_per_minute: Limit | None = None
    tokens_per_minute: Limit | None = None
    concurrent: Limit | None = None


class CredentialBody(BaseModel):
    """A provider's secret."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    secret: str


Row = TypeVar("Row")


class Listed(BaseModel, Generic[Row]):
    """Several of a kind."""

    data: list[Row]


class Changes(BaseModel):
    """What becomes of each document."""

    changes: list[Change]


class Issued(BaseModel):
    """A key, shown this once."""

    id: str
    key: str


class Verdict(BaseModel):
    """What walking every chain found."""

    intact: bool
    records: int
    breaks: list[Break]
    heads: dict[str, ChainHead]


BodyT = TypeVar("BodyT", bound=BaseModel)
Administrator = Callable[..., Caller]
Told = dict[int | str, dict[str, Any]]

# What a route answers, for the OpenAPI document alone: the answers themselves are made by hand, below.
_FORBIDDEN: Told = {403: {"description": "The key has not the role platform_admin."}}
_NOT_FOUND: Told = {404: {"description": "There is no such thing."}}
_WRONG: Told = {422: {"description": "What was sent is wrong; the message says where and what to do."}}
_TOO_LARGE: Told = {413: {"description": "The body is larger than this route reads."}}
_WRONG_BODY = _WRONG | _TOO_LARGE


def _told(shape: object, status: int = 200) -> Told:
    return {status: {"model": shape}}


def _asked(schema: dict[str, Any], *media_types: str, required: bool = True) -> dict[str, Any]:
    return {"requestBody": {"required": required, "content": {each: {"schema": schema} for each in media_types}}}


def routes(
    register: Register,
    keys: Keys,
    *,
    credentials: Credentials,
    audit: AuditReader,
    caller_of: Callable[..., Any],
    changed: Callable[[], Awaitable[None]],
) -> APIRouter:
    """Everything under /api that governance owns; all of it is for platform administrators.

    caller_of: a FastAPI dependency that gives the Caller. changed: awaited after each change, so that this process
    sees its own.
    """

    def administrator(caller: Annotated[Caller, Depends(caller_of)]) -> Caller:
        if Role.PLATFORM_ADMIN not in caller.roles:
            raise Forbidden("This needs the role platform_admin.")
        return caller

    # The dependency stands on the router, so that a route added later is closed too.
    routes = APIRouter(tags=["governance"], dependencies=[Depends(administrator)], responses=_FORBIDDEN)
    _mount_documents(routes, register, administrator, changed=changed)
    _mount_keys(routes, keys, administrator, changed=changed)
    _mount_credentials(routes, credentials, administrator, changed=changed)
    _mount_audit(routes, audit)
    return routes


def _mount_documents(
    routes: APIRouter, register: Register, administrator: Administrator, *, changed: Callable[[], Awaitable[None]]
) -> None:
    written = register.schema()
    file = _asked(written, "application/yaml", "application/json", required=False)  # nothing declares nothing
    changes = _told(Changes) | _WRONG_BODY

    @routes.post("/plan", responses=changes, openapi_extra=file)
    async def plan(request: Request, *, prune: bool = False) -> dict[str, Any]:
        """What applying the file in the body would change."""
        return _changes(await register.plan(await _declarations(request, register), prune=prune))

    @routes.post("/apply", responses=changes, openapi_extra=file)
    async def apply(
        request: Request, caller: Annotated[Caller, Depends(administrator)], *, prune: bool = False
    ) -> dict[str, Any]:
        """Put the file in the body in force, all or none."""
        done = await register.apply(await _declarations(request, register), _author(caller), prune=prune)
        await changed()
        return _changes(done)

    @routes.get(
        "/export", response_class=Response, responses={200: {"content": {"application/yaml": {"schema": written}}}}
    )
    async def export() -> Response:
        """Everything in force, as the file that changes nothing when applied."""
        _, documents = await register.load()
        return Response(render(register.export(documents)), media_type="application/yaml")

    @routes.get("/documents/{kind}", responses=_told(Listed[Document]))
    async def documents_of(kind: str) -> dict[str, Any]:
        """All documents of a kind in force."""
        _, documents = await register.load()
        return {"data": [asdict(document) for document in documents if document.kind == kind]}

    @routes.get("/documents/{kind}/{name:path}", responses=_told(Document) | _NOT_FOUND)
    async def document(kind: str, name: str, version: int | None = None) -> dict[str, Any]:
        """The document in force, or a version that once was."""
        if version is None:
            _, found = await register.load()
        else:
            found = [each for each in await register.history(kind, name) if each.version == version]
        for each in found:
            if (each.kind, each.name) == (kind, name):
                return asdict(each)
        raise NotFound(f"There is no {kind[:64]} '{name[:128]}' of that version.")

    @routes.delete("/documents/{kind}/{name:path}", status_code=204, responses=_NOT_FOUND | _WRONG)
    async def remove(kind: str, name: str, caller: Annotated[Caller, Depends(administrator)]) -> None:
        """Withdraw a document."""
        await register.remove(kind, name, _author(caller))
        await changed()


def _mount_keys(
    routes: APIRouter, keys: Keys, administrator: Administrator, *, changed: Callable[[], Awaitable[None]]
) -> None:
    wanted = _asked(NewKeyBody.model_json_schema(), "application/json")

    issued = _told(Issued, 201) | _WRONG_BODY

    @routes.post("/keys", status_code=201, responses=issued, openapi_extra=wanted)
    async def create(request: Request, caller: Annotated[Caller, Depends(administrator)]) -> dict[str, str]:
        """Issue a key; the answer is the only place where it is ever shown."""
        body = await _body(request, NewKeyBody)
        new = NewKey(
            name=body.name,
            app=body.app,
            user=body.user,
            roles=body.roles,
            expires_at=body.expires_at,
            limits=Allowance(body.requests_per_minute, body.tokens_per_minute, body.concurrent),
        )
        created = await keys.create(new, _author(caller))
        await changed()
        return {"id": created.id, "key": created.key}

    @routes.get("/keys", responses=_told(Listed[Key]))
    async def listing(after: str = "", limit: Annotated[int, Query(ge=1, le=1_000)] = 100) -> dict[str, Any]:
        """Keys without the keys, in the order of their making."""
        return {"data": [_key(key) for key in await keys.listing() if key.id > after][:limit]}

    @routes.delete("/keys/{key_id}", status_code=204, responses=_NOT_FOUND)
    async def revoke(key_id: str, caller: Annotated[Caller, Depends(administrator)]) -> None:
        """Make a key useless."""
        await keys.revoke(key_id, _author(caller))
        await changed()


def _mount_credentials(
    routes: APIRouter,
    credentials: Credentials,
    administrator: Administrator,
    *,
    changed: Callable[[], Awaitable[None]],
) -> None:
    secret = _asked(CredentialBody.model_json_schema(), "application/json")

    @routes.get("/credentials", responses=_told(Listed[str]))
    async def names() -> dict[str, Any]:
        """The names of all credentials; the secrets are never shown."""
        return {"data": list(credentials.names())}

    @routes.put("/credentials/{name:path}", status_code=204, responses=_WRONG_BODY, openapi_extra=secret)
    async def put(name: str, request: Request, caller: Annotated[Caller, Depends(administrator)]) -> None:
        """Add or replace a credential."""
        body = await _body(request, CredentialBody)
        await credentials.put(name, body.secret, _author(caller))
        await changed()

    @routes.delete("/credentials/{name:path}", status_code=204, responses=_NOT_FOUND)
    async def remove(name: str, caller: Annotated[Caller, Depends(administrator)]) -> None:
        """Remove a credential."""
        await credentials.remove(name, _author(caller))
        await changed()


def _mount_audit(routes: APIRouter, audit: AuditReader) -> None:
    @routes.get("/audit", responses=_told(Listed[StoredRecord]))
    async def records(
        turn_id: str | None = None,
        event: str | None = None,
        limit: Annotated[int, Query(ge=1, le=1_000)] = 100,
    ) -> dict[str, Any]:
        """One turn's records, oldest first, or the newest of all, by the event's prefix."""
        found = await (audit.of_turn(turn_id) if turn_id else audit.recent(limit=limit, event=event))
        return {"data": [_record(record) for record in found]}

    @routes.get("/audit/verify", responses=_told(Verdict))
    async def verify() -> dict[str, Any]:
        """Walk every chain and name what is broken."""
        verdict = await audit.verify()
        return {
            "intact": verdict.intact,
            "records": verdict.records,
            "breaks": [asdict(broken) for broken in verdict.breaks],
            "heads": {writer: asdict(head) for writer, head in verdict.heads.items()},
        }


async def _read(request: Request, bytes_max: int) -> bytes:
    received = bytearray()
    async for part in request.stream():
        received += part
        if len(received) > bytes_max:
            raise TooLarge(f"The body has more than {bytes_max} bytes.")
    return bytes(received)


async def _body(request: Request, shape: type[BodyT]) -> BodyT:
    try:
        return shape.model_validate_json(await _read(request, _SMALL_BODY_BYTES_MAX))
    except ValidationError as fault:
        faults = "\n".join(field_faults(fault, shape))
    # Outside the handler, so that no traceback carries what was sent.
    raise InvalidDeclaration(faults)


async def _declarations(request: Request, register: Register) -> list[Declaration]:
    text = (await _read(request, FILE_BYTES_MAX)).decode(errors="replace")
    return await asyncio.to_thread(register.parse, text)


def _author(caller: Caller) -> str:
    return caller.user or caller.key_id


def _changes(changes: list[Change]) -> dict[str, Any]:
    return {"changes": [asdict(change) for change in changes]}


def _key(key: Key) -> dict[str, Any]:
    return asdict(key) | {"roles": sorted(key.roles)}


def _record(record: StoredRecord) -> dict[str, Any]:
    return asdict(record)
