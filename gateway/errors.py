"""The one translator from our errors to HTTP, in OpenAI's shape. Nothing else here makes an error body."""

import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import msgspec

from kernel import PlatformError

_STATUS_BUDGET = 402


class InvalidRequest(PlatformError):
    """The request cannot be understood; the message names the field and the cure."""

    status, code, kind = 400, "invalid_value", "invalid_request_error"


class RequestTooLarge(PlatformError):
    """The body is larger than this gateway reads."""

    status, code, kind = 413, "request_too_large", "invalid_request_error"


class UnsupportedEncoding(PlatformError):
    """The body comes in a coding that is not read here; nothing is ever unpacked."""

    status, code, kind = 415, "unsupported_content_encoding", "invalid_request_error"


class HeadersTooLarge(PlatformError):
    """The request's head is larger than this gateway reads."""

    status, code, kind = 431, "headers_too_large", "invalid_request_error"


class RequestTimeout(PlatformError):
    """The request did not arrive in time. Nothing was sent anywhere, so a retry is safe."""

    status, code, kind, retryable = 408, "request_timeout", "timeout", True


class CallerGone(PlatformError):
    """The caller hung up before its request was complete; nobody reads this answer."""

    status, code, kind = 499, "caller_gone", "invalid_request_error"


class NotFound(PlatformError):
    """There is no such endpoint or object, or the caller may not know of it."""

    status, code, kind = 404, "not_found", "invalid_request_error"


class MethodNotAllowed(PlatformError):
    """The endpoint exists, under another method. allowed: those that it has, with commas."""

    status, code, kind = 405, "method_not_allowed", "invalid_request_error"

    def __init__(self, message: str, allowed: str) -> None:
        super().__init__(message)
        self.allowed = allowed


class AppKeyRequired(PlatformError):
    """A person's or operator's key administers; only an app's key may use models."""

    status, code, kind = 403, "app_key_required", "permission_error"


class ShuttingDown(PlatformError):
    """The process takes no new work; another one, or this one after its restart, will."""

    status, code, retryable = 503, "shutting_down", True


class Crowded(PlatformError):
    """More connections are open than this process serves; another one, or this one in a moment, will."""

    status, code, retryable = 503, "crowded", True


class Overloaded(PlatformError):
    """More turns come than this process can do in time; nothing of the request was looked at."""

    status, code, retryable = 503, "overloaded", True


class InternalError(PlatformError):
    """A bug of ours; the log has it under the request id, the caller gets nothing but that id."""

    status, code, retryable = 500, "internal_error", True


def error_body(error: PlatformError) -> dict[str, Any]:
    """OpenAI's error object, all four keys always present."""
    return {"error": {"message": error.message, "type": error.kind, "param": error.param, "code": error.code}}


def encode_error(error: PlatformError) -> bytes:
    """`error_body` as JSON."""
    return msgspec.json.encode(error_body(error))


def status_of(error: PlatformError, budget_exhausted_status: int = _STATUS_BUDGET) -> int:
    """The HTTP status, where spent money may be configured to look as OpenAI's own."""
    return budget_exhausted_status if error.status == _STATUS_BUDGET else error.status


def error_headers(error: PlatformError) -> Mapping[str, str]:
    """The headers that tell an SDK what to do next; `x-should-retry` is always among them."""
    headers = {"x-should-retry": "true" if error.retryable else "false"}
    if error.retry_after_seconds is not None:
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after_seconds)))
        headers["retry-after-ms"] = str(max(1, math.ceil(error.retry_after_seconds * 1000)))
    if error.status == HTTPStatus.UNAUTHORIZED:
        headers["www-authenticate"] = "Bearer"
    if isinstance(error, MethodNotAllowed):
        headers["allow"] = error.allowed
    return headers


def error_lines(error: PlatformError) -> bytes:
    """`error_headers` and the content's type as header lines, for those who answer below the edge."""
    headers = {**error_headers(error), "content-type": "application/json"}
    return "".join([f"{name}: {value}\r\n" for name, value in headers.items()]).encode()
