"""How a request can fail on its way to a target. Messages name the target, never an address, a key or a prompt."""

import logging
import re

from kernel import PlatformError

_CODE = re.compile(r"[A-Za-z0-9_.-]{1,100}")


class ModelNotFound(PlatformError):
    """No model or alias in force has this name, or its caller may not know of it."""

    status, code, kind = 404, "model_not_found", "invalid_request_error"

    def __init__(self, name: str) -> None:
        super().__init__(
            f"The model `{name[:200]}` does not exist or you do not have access to it.",
            param="model",
        )


class ModelRetired(ModelNotFound):
    """Nobody may use the model any more. For those only who may know of it; `end` says since when and what instead."""

    def __init__(self, requested: str, model: str, end: str) -> None:
        super().__init__(requested)
        behind = "" if requested == model else f", to which `{requested[:200]}` leads,"
        self.message = f"The model `{model}`{behind} {end}."
        self.args = (self.message,)


class OperationNotOffered(PlatformError):
    """The model exists, but does something else than what it was asked for."""

    status, code, kind = 400, "operation_not_offered", "invalid_request_error"


class UpstreamError(PlatformError):
    """A target did not answer as it should.

    unbilled: nothing was ever sent, or the provider refused; otherwise it may send an invoice for the attempt.
    curable: another target may do better with the same request. blames: it counts against the target's health.
    """

    status, code, log_level = 502, "upstream_error", logging.WARNING
    unbilled: bool = False
    curable: bool = True
    blames: bool = True

    def _told(self, *, unbilled: bool) -> None:
        """What is known of this one: what may be billed is not retryable, or a client that retries pays twice."""
        self.unbilled = unbilled
        vars(self).update(retryable=unbilled)  # laid over the class's own


class UpstreamUnreachable(UpstreamError):
    """No byte of the request left for the target."""

    code, retryable = "upstream_unreachable", True
    unbilled = True


class UpstreamTimeout(UpstreamError):
    """The target took longer than its provider declares; the message names the phase that ran out."""

    status, code = 504, "upstream_timeout"

    def __init__(self, target: str, phase: str, *, sent: bool) -> None:
        super().__init__(f"The target `{target}` ran out of time in the phase `{phase}`.")
        self._told(unbilled=not sent)


class UpstreamFailed(UpstreamError):
    """The provider answered with an error status that says nothing against the request itself."""

    def __init__(self, target: str, status: int, retry_after_seconds: float | None = None) -> None:
        super().__init__(
            f"The target `{target}` answered with status {status}.", retry_after_seconds=retry_after_seconds
        )
        # A proxy in front of a provider says 408 and 504 while the model may still be at work.
        self._told(unbilled=status >= 400 and status not in {408, 504})  # noqa: PLR2004 - the first error status


class UpstreamBusy(UpstreamError):
    """The provider's own rate limit is reached."""

    status, code, kind, retryable = 429, "rate_limit_exceeded", "requests", True
    unbilled = True

    def __init__(self, target: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(
            f"The target `{target}` is at its provider's rate limit; try again later.",
            retry_after_seconds=retry_after_seconds,
        )


class UpstreamRefused(UpstreamError):
    """The provider found the request wrong, and says so in its own words, cut at 500 characters.

    They may quote the request: for the caller to read, not for a log. Its code is logged and kept, so that it is the
    provider's only where it is one word.
    """

    status, code, kind, log_level = 400, "invalid_request", "invalid_request_error", logging.INFO
    unbilled, curable = True, False

    def __init__(self, message: str, *, status: int = 400, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message[:500], param=param and param[:200])
        # Status and code belong to a class elsewhere in the family; here they are the provider's, so they are
        # laid over the class's own.
        vars(self).update(status=status, code=code if code and _CODE.fullmatch(code) else self.code)


class UpstreamBroken(UpstreamError):
    """The answer was cut or malformed after the request had left."""

    code = "upstream_broken"


class UpstreamOverlong(UpstreamBroken):
    """The answer is longer than we take. That bound is ours, and whoever asks for such answers is not the target."""

    blames = False


class TargetsResting(UpstreamError):
    """Nothing was sent: every target that could be tried failed too often and rests, or is draining."""

    status, code, retryable = 503, "targets_resting", True
    unbilled = True
