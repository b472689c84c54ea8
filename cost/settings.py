"""The ledger's limits, each with a unit and a default. The process's settings are read elsewhere."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LedgerSettings:
    """How the ledger commits, holds and sweeps.

    sole: no other process can have the store open (SQLite behind the data folder's lock), so every hold that another
    process left open is an orphan. queue_max: steps waiting, beyond which new holds are refused; closings never are.
    open_timeout_seconds: how long counting what new budgets' scopes have spent may take; turns wait no longer than for
    a commit. hold_nano_usd_max: what one attempt may set aside at most, budget or not.
    """

    sole: bool = False
    queue_max: int = 10_000
    batch_max: int = 256
    commit_timeout_seconds: float = 2.0
    open_timeout_seconds: float = 60.0
    close_seconds: float = 30.0
    retry_seconds_max: float = 1.0
    output_tokens_min: int = 16
    hold_nano_usd_max: int = 10**15
    sweep_seconds: float = 5.0
    sweep_max: int = 500
    lease_seconds: float = 15.0
