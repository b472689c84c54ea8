"""What the ledger refuses, and why. Messages name budgets, models and dates, never content or keys."""

from kernel import PlatformError, StoreUnavailable


class BudgetExhausted(PlatformError):
    """A hard budget's money is spent; raise the budget or wait for its next period."""

    status, code, kind = 402, "budget_exhausted", "insufficient_quota"


class BudgetHeld(PlatformError):
    """The money is there, but turns that are still open hold it; some of it comes back when they end."""

    status, code, kind, retryable = 429, "budget_held", "insufficient_quota", True


class ModelUnpriced(PlatformError):
    """The model has no price in force, so nobody can say what a call would cost."""

    status, code, kind = 403, "model_unpriced", "invalid_request_error"


class Overloaded(StoreUnavailable):
    """More turns wait to be booked than are let wait."""

    code = "overloaded"


class NoTarget(PlatformError):
    """A plan was walked to its end without a target to blame."""

    status, code, retryable = 503, "no_target", True


class Forbidden(PlatformError):
    """The caller's roles do not cover what it asks to see or do."""

    status, code, kind = 403, "permission_denied", "permission_error"


class InvalidReport(PlatformError):
    """A question about spend names a column, an instant or a filter that there is not."""

    status, code, kind = 422, "validation_error", "invalid_request_error"


class InvalidInvoice(PlatformError):
    """An invoice file has rows that cannot be read; none of its rows was applied."""

    status, code, kind = 422, "invalid_invoice", "invalid_request_error"
