"""The control plane: a FastAPI application under `/api`, behind the edge, which has already identified the caller."""

import logging
from collections.abc import Sequence
from http import HTTPStatus

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from gateway.errors import InternalError, InvalidRequest, MethodNotAllowed, NotFound, encode_error, error_headers
from kernel import Caller, PlatformError

_log = logging.getLogger("penstock.control")


def caller_of(request: Request) -> Caller:
    """The caller whom the edge identified; absent only by a bug of ours, which must not let anyone in."""
    caller = request.scope.get("penstock.caller")
    if not isinstance(caller, Caller):
        raise InternalError("The request did not pass the gate.")
    return caller


def create_control(routers: Sequence[APIRouter]) -> FastAPI:
    """The application with every capability's routes under `/api` and errors in OpenAI's shape."""
    app = FastAPI(title="Penstock control plane", openapi_url="/api/openapi.json", docs_url=None, redoc_url=None)
    for routes in routers:
        app.include_router(routes, prefix="/api")
    app.add_exception_handler(PlatformError, _platform_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _bug)
    return app


def _answer(request: Request, error: PlatformError) -> Response:
    headers = {**error_headers(error), "x-request-id": request.scope.get("penstock.request_id", "")}
    return Response(encode_error(error), error.status, headers, media_type="application/json")


async def _platform_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, PlatformError)
    return _answer(request, error)


async def _validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    param = ".".join(str(part) for part in first["loc"] if part != "body")
    return _answer(request, InvalidRequest(f"{param}: {first['msg']}", param=param))


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        return _answer(request, MethodNotAllowed(f"{request.url.path} is called with another method."))
    return _answer(request, NotFound("There is no such endpoint under /api; GET /api/openapi.json lists them."))


async def _bug(request: Request, error: Exception) -> Response:
    _log.error("control plane: %s on %s", type(error).__name__, request.scope.get("penstock.request_id"))
    return _answer(request, InternalError("Something went wrong on our side; quote the x-request-id."))
