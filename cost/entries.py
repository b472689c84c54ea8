"""The lines of the ledger, and what a turn asks to be written. Deciding is in balances.py, writing in sql.py."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, NamedTuple

import msgspec

from cost.budgets import Budget, Period
from cost.prices import Price
from kernel import AuditRecord, Caller, Component, PlatformError, Target

Kind = Literal["hold", "post", "void", "correction"]


class AttemptKey(NamedTuple):
    """Which call to a target, of which turn."""

    turn_id: str
    attempt: int


class Entry(msgspec.Struct, frozen=True):
    """An append-only line: step 0 holds, step 1 posts or voids, each further step corrects by a difference.

    at: when it was written. held_at: when its attempt was held, which decides the periods of all its entries.
    rates: on a hold, pico-dollars per token as they stood, so that an invoice is applied at the price of its day.
    process: the process that wrote it. reason: why it is not simply what the provider said.
    """

    turn_id: str
    attempt: int
    step: int
    kind: Kind
    at: datetime
    held_at: datetime
    amount_nano_usd: int
    estimated: bool
    target: str
    provider: str
    upstream_model: str
    price_id: str | None
    department: str | None
    app: str | None
    key_id: str
    user: str | None
    use_case: str | None
    data_class: str
    process: str
    periods: tuple[Period, ...] = ()
    tokens: Mapping[Component, int] = {}
    cost: Mapping[Component, int] = {}
    rates: Mapping[Component, int] | None = None
    provider_request_id: str | None = None
    reason: str | None = None

    @property
    def key(self) -> AttemptKey:
        """The attempt it belongs to."""
        return AttemptKey(self.turn_id, self.attempt)


@dataclass(frozen=True, slots=True)
class Correction:
    """A further line for an attempt that has ended.

    closed_at: when it ended. budgets: the periods of the budgets now in force that it falls in; those opened since then
    have counted its earlier lines without being named by them.
    """

    entry: Entry
    closed_at: datetime
    budgets: tuple[Period, ...]


@dataclass(frozen=True, slots=True)
class TurnEntries:
    """All lines of one turn, by attempt and step."""

    turn_id: str
    entries: tuple[Entry, ...]


class Ask(msgspec.Struct, frozen=True):
    """What a hold must cover. output_tokens: ceiling per choice. budgets: those it counts against, by id.

    nano_usd: what covers it whole; 0 where there is no price.
    """

    key: AttemptKey
    target: Target
    caller: Caller
    price: Price | None
    budgets: tuple[Budget, ...]
    input_tokens: int
    output_tokens: int
    output_tokens_min: int
    choices: int
    nano_usd: int


class Hold(msgspec.Struct, eq=False):
    """Money set aside, or about to be. `entry` is its line once it was granted; `output_tokens` the ceiling it covers.

    A hold that a dead process left behind has no ask. is_doubtful: its commit was given up, and may have happened or
    happen yet. is_counted: it is one of its process's open holds.
    """

    ask: Ask | None
    entry: Entry | None = None
    output_tokens: int = 0
    is_doubtful: bool = False
    is_counted: bool = False


class Closing(msgspec.Struct, frozen=True):
    """How an attempt ends. It takes effect if its hold is open, once."""

    hold: Hold
    kind: Literal["post", "void"]
    amount_nano_usd: int | None  # None: what was held
    estimated: bool = False
    tokens: Mapping[Component, int] = {}
    cost: Mapping[Component, int] = {}
    provider_request_id: str | None = None
    reason: str | None = None


class Step(msgspec.Struct, eq=False):
    """What is written together or not at all.

    done: None once durable, or what it was refused for; cancelled by a waiter that gave up.
    must_last: it is tried until it is durable; anything else is given back to whoever waits.
    record: for the trail; beside closings it is written only if one of them took effect, so a repetition adds nothing.
    refused: the record that is written instead if the hold is refused. is_suspect: it failed on its own.
    waits: how often it was set aside for a budget to be opened; waits_until: the loop's time when it is refused.
    """

    done: asyncio.Future[PlatformError | None]
    must_last: bool
    closings: tuple[Closing, ...]
    hold: Hold | None
    record: AuditRecord | None
    refused: Callable[[PlatformError], AuditRecord] | None
    is_suspect: bool = False
    waits: int = 0
    waits_until: float = float("inf")
