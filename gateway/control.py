"""The control plane: a FastAPI application under `/api`, behind the edge, which has already identified the caller."""

import logging
from collections.abc import Sequence
from functools import partial
from http import HTTPStatus

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from gateway.errors import InternalError, InvalidRequest, MethodNotAllowed, NotFound, encode_error, error_headers
from kernel import Caller, PlatformError

_log = logging.getLogger("penstock.control")
_PREFIX = "/api"


def caller_of(request: Request) -> Caller:
    """The caller whom the edge identified; absent only by a bug of ours, which must not let anyone in."""
    caller = request.scope.get("penstock.caller")
    if not isinstance(caller, Caller):
        raise InternalError("The request did not pass the gate.")
    return caller


def create_control(routers: Sequence[APIRouter]) -> FastAPI:
    """The application with every capability's routes under `/api` and errors in OpenAI's shape."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)  # the edge answers what describes both planes
    for routes in routers:
        app.include_router(routes, prefix=_PREFIX)
    app.add_exception_handler(PlatformError, _platform_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, partial(_http_error, routers))
    app.add_exception_handler(Exception, _bug)
    return app


def _answer(error: PlatformError) -> Response:
    return Response(encode_error(error), error.status, error_headers(error), media_type="application/json")


async def _platform_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, PlatformError)
    return _answer(error)


async def _validation_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    param = ".".join(str(part) for part in first["loc"] if part != "body")
    return _answer(InvalidRequest(f"{param}: {first['msg']}", param=param))


async def _http_error(routers: Sequence[APIRouter], request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        # FastAPI names the methods of one route, where a path may have several.
        path = request.url.path.removeprefix(_PREFIX)
        known = [route for each in routers for route in each.routes if isinstance(route, APIRoute)]
        allowed = sorted({method for route in known if route.path_regex.match(path) for method in route.methods or ()})
        return _answer(MethodNotAllowed(f"{_PREFIX}{path} is called with {' or '.join(allowed)}.", ", ".join(allowed)))
    return _answer(NotFound("There is no such endpoint under /api; GET /api/openapi.json lists them."))


async def _bug(request: Request, error: Exception) -> Response:
    _log.error("control plane: %s on %s", type(error).__name__, request.scope.get("penstock.request_id"))
    return _answer(InternalError("Something went wrong on our side; quote the x-request-id."))
