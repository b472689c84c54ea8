"""A turn and its attempts as the hot path sees them: hold, do, and leave; the books follow by themselves.

Plain classes instead of context-manager functions, because every call passes here and those cost six times as much.
Leaving never suspends, so a caller that hangs up cannot leave anything open. What an upstream's error says about
money and cures is read here and nowhere else.
"""

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import msgspec

from cost.book import Book
from cost.committer import Committer
from cost.entries import Ask, AttemptKey, Closing, Hold, Step
from cost.errors import ModelUnpriced, NoTarget, Overloaded
from cost.prices import Cost
from cost.settings import LedgerSettings
from kernel import (
    AuditRecord,
    Caller,
    Clock,
    Component,
    ModelRequest,
    Plan,
    PlatformError,
    StoreUnavailable,
    Target,
    Usage,
)

_PLAUSIBLE_TOKENS_MAX = 10**9


@dataclass(frozen=True, slots=True)
class Desk:
    """What all turns of a process share."""

    book: Callable[[], Book]
    committer: Committer
    clock: Clock
    settings: LedgerSettings


class Turn:
    """One request in the books, from its first hold to its last closing.

    target: the one that answered. usage: what the provider last reported. notes: merged into the outcome's record.
    milliseconds: time spent holding and doing, over all attempts. Whoever cancels it says why first: ended_by, what the
    caller is told; gone, nobody is left to tell. Without either it is this process that stops.
    """

    def __init__(self, desk: Desk, caller: Caller, request: ModelRequest, plan: Plan, admission: AuditRecord) -> None:
        assert admission.turn_id is not None
        self.id = admission.turn_id
        self.attempts: list[Attempt] = []
        self.target: Target | None = None
        self.usage: Usage | None = None
        self.notes: dict[str, Any] = {}
        self.ended_by: PlatformError | None = None
        self.gone = False
        self.milliseconds: dict[str, float] = {"hold": 0.0, "do": 0.0}
        self._desk = desk
        self._caller = caller
        self._sizes = request.output_tokens_max, request.input_tokens_max, request.choices  # a turn outlives its text
        self._plan = plan
        self._admission = admission
        self._asked = 0
        self._failure: PlatformError | None = None
        self._unsettled: list[Closing] = []
        self._last: Step | None = None
        self._over = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._over:
            return
        self._over = True
        record = self._ending(error)
        if self._unsettled:
            self._last = self._desk.committer.submit(self._unsettled, record=record)
        elif not self._asked:
            with contextlib.suppress(Overloaded):
                refusal = error if isinstance(error, PlatformError) else self.failure()
                self._last = self._desk.committer.submit(record=self._refusal(refusal))

    def attempt(self, target: Target) -> "Attempt":
        """The next call of this turn; entering it holds its worst case durably."""
        self._asked += 1
        return Attempt(self, target, self._asked)

    def failure(self) -> PlatformError:
        """Why no target answered: what the last one said."""
        return self._failure or NoTarget(f"No target of `{self._plan.requested}` could be asked.")

    @property
    def closing(self) -> "asyncio.Future[PlatformError | None] | None":
        """Done once everything that this turn wrote is durable; None while there is nothing to wait for."""
        return None if self._last is None else self._last.done

    async def settled(self) -> None:
        """Wait until everything this turn wrote is durable."""
        if self._last is not None:
            await asyncio.shield(self._last.done)

    @property
    def cost_nano_usd(self) -> int:
        """What this turn has cost so far, known as soon as usage is."""
        return sum([attempt.cost_nano_usd for attempt in self.attempts])

    async def hold(self, attempt: "Attempt") -> Hold:
        """Set the attempt's worst case aside, durably. A fallback that cannot be held leaves the failure standing."""
        began = self._desk.clock.monotonic()
        hold = Hold(self._ask(attempt))
        try:
            await self._write(hold)
        except PlatformError as refusal:
            if attempt.number > 1:
                raise self.failure() from refusal
            raise
        finally:
            attempt.began = self._spend_time("hold", began)
        self.attempts.append(attempt)
        return hold

    def cut(self) -> tuple[str, int, str]:
        """How it ends when it is cancelled: outcome, status and code."""
        if self.ended_by is not None:
            return "cut", self.ended_by.status, self.ended_by.code
        return ("caller_gone", 499, "caller_gone") if self.gone else ("cut", 503, "shutting_down")

    def close(self, attempt: "Attempt", closing: Closing, error: BaseException | None) -> None:
        """Keep the closing for the next step: with the next hold, or with the outcome."""
        self._unsettled.append(closing)
        attempt.ended = self._spend_time("do", attempt.began)
        if error is None:
            self.target = attempt.target
        elif isinstance(error, PlatformError):
            self._failure = error

    async def _write(self, hold: Hold) -> None:
        ask, committer = hold.ask, self._desk.committer
        assert ask is not None
        if ask.price is None and not ask.target.unpriced:
            unpriced = ModelUnpriced(f"`{ask.target.name}` has no price in force; an operator has to declare one.")
            if self._asked == 1:
                self._over = True
                await committer.write(committer.submit(record=self._refusal(unpriced)))
            raise unpriced
        admission = self._admission if self._asked == 1 else None
        step = committer.submit(self._unsettled, hold=hold, record=admission, refused=self._unheld)
        try:
            await committer.write(step)
        except (StoreUnavailable, asyncio.CancelledError) as lost:
            if hold.entry is not None or isinstance(lost, asyncio.CancelledError):
                # It may be durable all the same. The closing finds nothing to close if it is not.
                self._unsettled.append(Closing(hold, "void", 0, reason="unknown"))
            raise
        except PlatformError:
            self._over = True
            raise
        self._unsettled.clear()

    def _ask(self, attempt: "Attempt") -> Ask:
        target, caller, desk = attempt.target, self._caller, self._desk
        asked, bound, choices = self._sizes
        overhead = target.prompt_overhead_tokens if bound else 0  # what counts tokens and sends no prompt is free
        into = target.context_tokens if bound is None else bound + overhead
        out = target.output_tokens_max if asked is None or asked > target.output_tokens_max else asked
        book = desk.book()
        price = book.price(target.name, desk.clock.now())
        return Ask(
            key=AttemptKey(self.id, attempt.number),
            target=target,
            caller=caller,
            price=price,
            budgets=book.budgets(caller),
            input_tokens=into,
            output_tokens=out,
            output_tokens_min=desk.settings.output_tokens_min,
            choices=choices,
            nano_usd=0 if price is None else price.worst_case(into, out * choices),
        )

    def _spend_time(self, beat: str, began: float) -> float:
        now = self._desk.clock.monotonic()
        self.milliseconds[beat] = round(self.milliseconds[beat] + (now - began) * 1000, 3)
        return now

    def _unheld(self, refusal: PlatformError) -> AuditRecord:
        return self._refusal(refusal) if self._asked == 1 else self._ending(None)

    def _refusal(self, error: PlatformError) -> AuditRecord:
        body = {**self._admission.body, **self.notes, "status": error.status, "code": error.code}
        return msgspec.structs.replace(self._admission, event="turn.refused", body=body)

    def _ending(self, error: BaseException | None) -> AuditRecord:
        outcome, status, code = self._outcome(error)
        attempts, estimated = [], False
        for attempt in self.attempts:
            attempts.append(attempt.summary())
            estimated = estimated or attempt.is_estimated
        body = {
            "outcome": outcome,
            "status": status,
            "code": code,
            "attempts": attempts,
            "cost_nano_usd": self.cost_nano_usd,
            "estimated": estimated,
            "ended_at": self._desk.clock.now().isoformat(),
            "milliseconds": self.milliseconds.copy(),
            **self.notes,
        }
        return msgspec.structs.replace(self._admission, event="turn.ended", body=body)

    def _outcome(self, error: BaseException | None) -> tuple[str, int, str | None]:
        if self.target is not None:
            return "answered", 200, None
        if isinstance(error, asyncio.CancelledError | GeneratorExit):
            return self.cut()
        told = self.failure() if error is None else error
        if isinstance(told, PlatformError):
            return "failed", told.status, told.code
        return "failed", PlatformError.status, PlatformError.code


class Attempt:
    """One call to one target: held before anything is sent, posted or voided on the way out.

    output_tokens_max: the ceiling per choice that is paid for. was_lowered: it is less than was asked for.
    began, ended: on the monotonic clock, from its hold to its closing. usage: the provider's last word until now.
    """

    def __init__(self, turn: Turn, target: Target, number: int) -> None:
        self.target = target
        self.number = number
        self.output_tokens_max = 0
        self.held_nano_usd = 0
        self.cost_nano_usd = 0
        self.was_lowered = self.is_answered = self.is_estimated = False
        self.began = self.ended = 0.0
        self.usage: Usage | None = None
        self.provider_request_id: str | None = None
        self._turn = turn
        self._hold: Hold | None = None
        self._is_sent = False
        self._is_final = False
        self._cost = Cost(0)
        self._closing: Closing | None = None

    async def __aenter__(self) -> Self:
        self._hold = hold = await self._turn.hold(self)
        assert hold.entry is not None
        assert hold.ask is not None
        self.output_tokens_max, self.held_nano_usd = hold.output_tokens, hold.entry.amount_nano_usd
        self.was_lowered = hold.output_tokens < hold.ask.output_tokens
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self._closing = closing = self._close(error)
        self.is_estimated = closing.estimated
        self.cost_nano_usd = self.held_nano_usd if closing.amount_nano_usd is None else closing.amount_nano_usd
        self._turn.close(self, closing, error)
        del self._turn  # it holds its attempts: what refers to itself waits for the garbage collector
        return _is_curable(error) and not self.is_answered

    def sent(self) -> None:
        """The first byte is about to leave for the target: from here on the provider may bill."""
        self._is_sent = True

    def replied(self, provider_request_id: str | None) -> None:
        """The provider named the call."""
        self.provider_request_id = provider_request_id or self.provider_request_id

    def answered(self) -> None:
        """The first content has left for the caller: from here on no other target may answer."""
        self.is_answered = self._is_sent = True

    def use(self, usage: Usage | None, provider_request_id: str | None = None, *, final: bool = True) -> None:
        """What the provider says was used. The last word counts and is never added to the one before; None is none.

        final: no more can follow. What is not final, a running count, is the whole only once the answer has ended as
        it should. Numbers that cannot be meant are passed over, as if the provider had said nothing.
        """
        self.replied(provider_request_id)
        if usage is None or not _is_plausible(usage):
            return
        assert self._hold is not None
        assert self._hold.ask is not None
        price = self._hold.ask.price
        self.usage, self._is_final = usage, final
        self._turn.usage = usage
        self._cost = price.cost(usage) if price else Cost(0)
        self.cost_nano_usd = self._cost.nano_usd

    def summary(self) -> dict[str, Any]:
        """What the trail keeps of this attempt."""
        closing = self._closing
        end, reason = (closing.kind, closing.reason) if closing else (None, None)
        return {"target": self.target.name, "cost_nano_usd": self.cost_nano_usd, "end": end, "reason": reason}

    def _close(self, error: BaseException | None) -> Closing:
        hold, usage, cost, named = self._hold, self.usage, self._cost, self.provider_request_id
        assert hold is not None
        assert hold.ask is not None
        if usage is not None and (error is None or self._is_final):
            reason = "unpriced" if hold.ask.price is None else None
            if cost.nano_usd > self.held_nano_usd:
                reason = "over_hold"  # The books follow the invoice even where a bound did not hold.
            return Closing(hold, "post", cost.nano_usd, cost.estimated, usage.tokens, cost.components, named, reason)
        why = self._why(error)
        if usage is not None:
            # It came to this much at least, and may have come to all that was held.
            tokens = _greater(hold.entry.tokens if hold.entry else {}, usage.tokens)
            most = max(self.held_nano_usd, cost.nano_usd)
            return Closing(hold, "post", most, estimated=True, tokens=tokens, provider_request_id=named, reason=why)
        if not self._is_sent or _is_unbilled(error):
            reason = why if self._is_sent else "not_sent"
            return Closing(hold, "void", 0, provider_request_id=named, reason=reason)
        # Nobody said what it came to. What was held is the only figure that cannot be below the invoice.
        return Closing(hold, "post", None, estimated=True, provider_request_id=named, reason=why)

    def _why(self, error: BaseException | None) -> str:
        if isinstance(error, PlatformError):
            return error.code
        if isinstance(error, asyncio.CancelledError | GeneratorExit):
            return self._turn.cut()[2]
        return "no_usage" if error is None else "internal_error"


def _is_plausible(usage: Usage) -> bool:
    counts = usage.tokens.values()
    return min(counts, default=0) >= 0 and sum(counts) <= _PLAUSIBLE_TOKENS_MAX


def _is_unbilled(error: BaseException | None) -> bool:
    return isinstance(error, PlatformError) and bool(getattr(error, "unbilled", False))


def _is_curable(error: BaseException | None) -> bool:
    return isinstance(error, PlatformError) and bool(getattr(error, "curable", False))


def _greater(one: Mapping[Component, int], other: Mapping[Component, int]) -> dict[Component, int]:
    """Of each component the greater count."""
    return {part: max(one.get(part, 0), other.get(part, 0)) for part in {**one, **other}}
