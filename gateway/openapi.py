"""What is answered here, told to tools: one OpenAPI document for the edge's table and for the control plane.

It is made of what answers: the table's rows, the types that the doors read, the errors' own classes and FastAPI's
description of `/api`. Written down beside that is only what no type says: which errors end which endpoint, and what
answers look like, which is the providers' to say. It checks nothing and decides nothing.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any

import msgspec
from msgspec import Struct

from cost import BudgetExhausted, BudgetHeld, ModelUnpriced, NoTarget
from cost import Overloaded as BooksOverloaded
from gateway import openapi_shapes as shapes
from gateway.edge import Access, Endpoint
from gateway.errors import (
    AppKeyRequired,
    Crowded,
    HeadersTooLarge,
    InternalError,
    InvalidRequest,
    NotFound,
    Overloaded,
    RequestTimeout,
    RequestTooLarge,
    ShuttingDown,
    UnsupportedEncoding,
)
from governance import (
    ApprovalRequired,
    InvalidKey,
    ModelNotAllowed,
    PolicyDenied,
    RateLimited,
    SealBroken,
    UseCaseRequired,
)
from kernel import PlatformError, StoreUnavailable
from router import (
    ModelNotFound,
    ModelRetired,
    OperationNotOffered,
    TargetsResting,
    UpstreamBroken,
    UpstreamBusy,
    UpstreamError,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnreachable,
)

Json = dict[str, Any]
Refusal = tuple[int, type[PlatformError]]

_ABOUT = (
    "The data plane under /v1 speaks OpenAI's wire and Anthropic's: what a provider says is handed on as it came. "
    "The control plane is under /api. Members of a body that are not named here are the provider's to understand."
)
_JSON, _EVENTS = "application/json", "text/event-stream"
_FIRST_ERROR = 400
_NOT_ANSWERED = frozenset({"HTTPValidationError", "ValidationError"})  # by us, whatever FastAPI says


def _with(*errors: type[PlatformError]) -> tuple[Refusal, ...]:
    return tuple((error.status, error) for error in errors)


# Below the edge it is not known whose wire is spoken: these are in OpenAI's.
_ANYWHERE = _with(InvalidRequest, RequestTimeout, HeadersTooLarge, InternalError, Crowded)
_WITH_A_KEY = _with(InvalidKey, StoreUnavailable)
_TURN: tuple[Refusal, ...] = (
    *_with(AppKeyRequired, RequestTooLarge, UnsupportedEncoding, ShuttingDown, Overloaded, BooksOverloaded),
    *_with(UseCaseRequired, PolicyDenied, ModelNotAllowed, ApprovalRequired, RateLimited, SealBroken),
    *_with(ModelNotFound, ModelRetired, OperationNotOffered, ModelUnpriced, BudgetExhausted, BudgetHeld),
    *_with(NoTarget, TargetsResting, UpstreamUnreachable, UpstreamTimeout, UpstreamError, UpstreamBroken, UpstreamBusy),
    *((status, UpstreamRefused) for status in (400, 413, 422)),
    (429, BudgetExhausted),  # where that is how it is set
)

_HEADERS = MappingProxyType(
    {
        "x-request-id": "The id of this request, for GET /v1/requests/{id} and for questions.",
        "x-should-retry": "Whether the same request may succeed later; the SDKs obey it.",
        "retry-after": "Seconds to wait.",
        "retry-after-ms": "Milliseconds to wait.",
        "x-ratelimit-limit-requests": "Requests a minute.",
        "x-ratelimit-remaining-requests": "Requests left.",
        "x-ratelimit-reset-requests": "Until all of them are back, such as 1s or 6m0s.",
        "x-ratelimit-limit-tokens": "Tokens a minute.",
        "x-ratelimit-remaining-tokens": "Tokens left.",
        "x-ratelimit-reset-tokens": "Until all of them are back.",
        "openai-processing-ms": "Milliseconds until the answer began.",
        "x-penstock-model": "The model that answered.",
        "x-penstock-provider": "Its provider.",
        "x-penstock-attempts": "How many targets were tried.",
        "x-penstock-cost-usd": "What the turn cost; of a stream, its last event says so.",
        "x-penstock-max-output-tokens": "The ceiling that the budget left for the answer.",
        "x-penstock-observed": "What would have refused the turn, were it not only observed.",
    }
)
_LIMIT_HEADERS = tuple(name for name in _HEADERS if name.startswith("x-ratelimit-"))
_TURN_HEADERS = (*_LIMIT_HEADERS, *(name for name in _HEADERS if name.startswith(("openai-", "x-penstock-"))))
_ERROR_HEADERS = ("x-request-id", "x-should-retry", "retry-after", "retry-after-ms")


@dataclass(frozen=True, slots=True)
class Described:
    """What the document says of a row that the row does not say itself.

    answer, asks: types. streams: whether the answer may also come as events. refusals: beside those of every endpoint;
    error: their shape. unready: what a 503 says that is no error.
    """

    summary: str
    answer: Any
    asks: type[Struct] | None = None
    kind: str = _JSON
    streams: bool = False
    refusals: tuple[Refusal, ...] = ()
    hints: type[Struct] | None = None
    error: type[Struct] = shapes.Error
    unready: Any = None


_turn = partial(Described, refusals=_TURN, hints=shapes.HintHeaders)
_message = partial(Described, refusals=_TURN, hints=shapes.MessageHeaders, error=shapes.MessagesError)

ENDPOINTS: Mapping[str, Described] = MappingProxyType(
    {
        "/healthz": Described("Whether this process answers", shapes.Health),
        "/readyz": Described("Whether what it needs is there", shapes.States, unready=shapes.States),
        "/metrics": Described("Prometheus' text format", str, kind="text/plain", refusals=_with(InvalidKey)),
        "/api/openapi.json": Described("This document", Json),
        "/v1/models": Described("The names this key may use", shapes.ModelList, refusals=_with(AppKeyRequired)),
        "/v1/requests/": Described("What happened to a request", shapes.RequestTold, refusals=_with(NotFound)),
        "/v1/chat/completions": _turn(
            "Ask a model, in OpenAI's wire", shapes.ChatCompletion, shapes.ChatRequest, streams=True
        ),
        "/v1/completions": _turn("Let a model go on", shapes.Completion, shapes.CompletionRequest, streams=True),
        "/v1/embeddings": _turn("Embed texts", shapes.EmbeddingList, shapes.EmbeddingRequest),
        "/v1/messages": _message(
            "Ask a model, in Anthropic's wire", shapes.Message, shapes.MessageRequest, streams=True
        ),
        "/v1/messages/count_tokens": _message("How long a message is", shapes.TokenCount, shapes.CountRequest),
    }
)


def describe(rows: Iterable[Endpoint], control: Mapping[str, Any]) -> Json:
    """The document. control: FastAPI's own, of `/api`. Raises KeyError for a row that `ENDPOINTS` does not describe."""
    known, paths = _Shapes(), dict[str, Any]()
    for row in rows:
        path = f"{row.path}{{id}}" if row.path.endswith("/") else row.path
        paths.setdefault(path, {})[row.method.lower()] = _operation(row, ENDPOINTS[row.path], known)
    for path, operations in _inlined(control["paths"]).items():
        paths[path] = {method: _administration(operation, known) for method, operation in operations.items()}
    described = control.get("components", {}).get("schemas", {})
    administrative = {name: each for name, each in _inlined(described).items() if name not in _NOT_ANSWERED}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Penstock", "version": "v1", "description": _ABOUT},
        "security": [{"bearer": []}, {"x-api-key": []}],
        "paths": paths,
        "components": {
            "schemas": known.schemas | administrative,
            "responses": known.responses,
            "headers": {name: {"description": told, "schema": {"type": "string"}} for name, told in _HEADERS.items()},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
    }


@dataclass(frozen=True, slots=True)
class _Shapes:
    """What endpoints share: the schemas of types that have a name, and refusals."""

    schemas: Json = field(default_factory=dict)
    responses: Json = field(default_factory=dict)

    def of(self, kind: Any) -> Json:
        """The schema, or a reference to it."""
        (schema,), found = msgspec.json.schema_components([kind], ref_template="#/components/schemas/{name}")
        self.schemas.update(found)
        return schema

    def content(self, *kinds: Any) -> Json:
        """The content of a JSON answer that is one of these."""
        told = [self.of(kind) for kind in dict.fromkeys(kinds)]
        return {_JSON: {"schema": told[0] if len(told) == 1 else {"anyOf": told}}}


def _operation(row: Endpoint, said: Described, known: _Shapes) -> Json:
    operation: Json = {"summary": said.summary, "operationId": row.path.strip("/").replace("/", "_"), "parameters": []}
    if row.access is Access.OPEN:
        operation["security"] = [{}, {"bearer": []}] if said.refusals else []
    if row.path.endswith("/"):
        operation["parameters"].append({"name": "id", "in": "path", "required": True, "schema": {"type": "string"}})
    if said.hints is not None:
        _, found = msgspec.json.schema_components([said.hints])
        told = found[said.hints.__name__]["properties"]
        operation["parameters"] += [{"name": name, "in": "header", "schema": told[name]} for name in told]
    if said.asks is not None:
        operation["requestBody"] = {"required": True, "content": known.content(said.asks)}
    content = {said.kind: {"schema": known.of(said.answer)}}
    if said.streams:
        content[_EVENTS] = {"schema": known.of(shapes.Event)}
    headers = ("x-request-id", *(_TURN_HEADERS if said.asks else ()))
    responses = {"200": {"description": said.summary, "content": content, "headers": _headers(headers)}}
    closed = () if row.access is Access.OPEN else _WITH_A_KEY
    operation["responses"] = responses | _refusals((*_ANYWHERE, *closed, *said.refusals), said, known)
    if said.unready is not None:
        operation["responses"]["503"] = {"description": "Not now.", "content": known.content(said.unready, said.error)}
    return operation


def _refusals(refusals: Iterable[Refusal], said: Described, known: _Shapes) -> Json:
    """An answer for each status, which says what it may mean."""
    by_status: dict[int, dict[str, str]] = {}
    for status, error in refusals:
        by_status.setdefault(status, {})[error.code] = (error.__doc__ or "").partition("\n")[0]
    below, told = {status for status, _ in _ANYWHERE}, dict[str, Any]()
    for status, meanings in sorted(by_status.items()):
        name = ".".join((said.error.__name__, str(status), *sorted(meanings)))
        known.responses[name] = {
            "description": "\n".join(f"`{code}`: {meaning}" for code, meaning in sorted(meanings.items())),
            "content": known.content(said.error, shapes.Error) if status in below else known.content(said.error),
            "headers": _headers((*_ERROR_HEADERS, *(_LIMIT_HEADERS if RateLimited.code in meanings else ()))),
        }
        told[str(status)] = {"$ref": f"#/components/responses/{name}"}
    return told


def _administration(operation: Json, known: _Shapes) -> Json:
    """FastAPI's operation with the errors that all have, in our shape; its own 422 is never answered."""
    for each in (*operation["responses"].values(), operation.get("requestBody", {})):
        for media in each.get("content", {}).values():
            media["schema"] = _named(media["schema"], known)
    responses = _refusals((*_ANYWHERE, *_WITH_A_KEY), Described("", None), known)
    for status, response in operation["responses"].items():
        if int(status) >= _FIRST_ERROR and "HTTPValidationError" not in str(response):
            told = known.content(shapes.Error)
            responses[status] = response | {"content": told, "headers": _headers(_ERROR_HEADERS)}
        elif int(status) < _FIRST_ERROR:
            responses[status] = response | {"headers": _headers(("x-request-id",))}
    promise, _, operation["description"] = operation["description"].partition("\n")
    operation["summary"] = promise.rstrip(".")
    return operation | {"responses": dict(sorted(responses.items()))}


def _named(schema: Json, known: _Shapes) -> Json:
    """The schema as a component, if it has members and a name."""
    if "properties" in schema and "title" in schema:
        known.schemas[schema["title"]] = schema
        return {"$ref": f"#/components/schemas/{schema['title']}"}
    return {"$ref": schema["$ref"]} if "$ref" in schema else schema


def _headers(names: Iterable[str]) -> Json:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _inlined(schema: Any, definitions: Mapping[str, Any] = MappingProxyType({})) -> Any:
    """The JSON without `$defs`, which in OpenAPI nothing could refer to; none of ours refers to itself."""
    if isinstance(schema, list):
        return [_inlined(each, definitions) for each in schema]
    if not isinstance(schema, dict):
        return schema
    definitions = schema.get("$defs", definitions)
    known = {name: _inlined(each, definitions) for name, each in schema.items() if name != "$defs"}
    name = str(known.get("$ref", ""))
    if not name.startswith("#/$defs/"):
        return known
    return _inlined(definitions[name.rpartition("/")[2]], definitions) | {k: v for k, v in known.items() if k != "$ref"}
