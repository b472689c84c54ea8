"""What governance refuses, in words a caller can act on. No message holds a key, a secret or another department."""

import logging
from collections.abc import Mapping
from types import MappingProxyType

from kernel import PlatformError


class Denied(PlatformError):
    """Policy lets this caller use none of the targets; `verdict` is what the trail should say about it."""

    status, code, kind = 403, "policy_denied", "permission_error"

    def __init__(self, message: str, *, param: str | None = None, verdict: Mapping[str, object] | None = None) -> None:
        super().__init__(message, param=param)
        self.verdict = verdict


class PolicyDenied(Denied):
    """A policy opens the model to the department, but not for this use case or data class."""


class ModelNotAllowed(Denied):
    """The model exists, and no policy opens it to the caller's department."""

    code = "model_not_allowed"


class ApprovalRequired(Denied):
    """Everything fits but for a grant that somebody has to approve."""

    code = "approval_required"


class UseCaseRequired(PlatformError):
    """The app has several use cases and the request names none of them."""

    status, code, kind = 400, "use_case_required", "invalid_request_error"


class InvalidKey(PlatformError):
    """The key opens nothing. The message never says why; `reason` does, for the trail only.

    reason: `unknown`, `revoked`, `expired` or `orphaned` (its app or user is gone). key_id: set where the key is known.
    """

    status, code, kind = 401, "invalid_api_key", "invalid_request_error"

    def __init__(self, reason: str, *, key_id: str | None = None) -> None:
        super().__init__("The API key is not valid. Check it, or ask a platform administrator for a new one.")
        self.reason = reason
        self.key_id = key_id


class Forbidden(PlatformError):
    """The caller is known and its role does not permit this."""

    status, code, kind = 403, "permission_denied", "permission_error"


class RateLimited(PlatformError):
    """A limit of the app or of the key is used up for now. `headers` say which, as `x-ratelimit-*`."""

    status, code, kind, retryable = 429, "rate_limit_exceeded", "requests", True
    headers: Mapping[str, str] = MappingProxyType({})


class TokensLimited(RateLimited):
    """The tokens of this minute are used up."""

    kind = "tokens"


class NeverFits(TokensLimited):
    """The request is larger than the whole limit: waiting does not help."""

    retryable = False


class SealBroken(PlatformError):
    """A sealed secret does not open: another master key, another place, or altered bytes."""

    status, code, log_level = 503, "credential_unreadable", logging.ERROR


class NotFound(PlatformError):
    """Nothing of that name is in force."""

    status, code, kind = 404, "not_found", "invalid_request_error"


class TooLarge(PlatformError):
    """The body is larger than this route reads."""

    status, code, kind = 413, "request_too_large", "invalid_request_error"
