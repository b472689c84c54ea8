"""The one family of errors that a caller may see. gateway/errors.py alone makes HTTP of them."""

import logging
from typing import ClassVar


class PlatformError(Exception):
    """Something a caller can understand and act on; the message never holds content, keys or credentials.

    `status` is the HTTP status, `code` is stable, `kind` is OpenAI's error type, `retryable` becomes
    `x-should-retry`. `param` names the field at fault. `retry_after_seconds` is set where waiting helps.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    kind: ClassVar[str] = "server_error"
    retryable: ClassVar[bool] = False
    log_level: ClassVar[int] = logging.INFO

    def __init__(self, message: str, *, param: str | None = None, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_seconds = retry_after_seconds


class InvalidDeclaration(PlatformError):
    """A declared document is wrong; the message names its kind, its name, the field and the cure."""

    status, code, kind = 422, "validation_error", "invalid_request_error"


class StoreUnavailable(PlatformError):
    """The state of record cannot be reached: nothing can be checked or booked, so nothing is let through."""

    status, code, retryable, log_level = 503, "store_unavailable", True, logging.ERROR
