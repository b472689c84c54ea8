"""The decision itself: locked balances in memory, moved by closings and holds. It knows no store and no time-out."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

import msgspec

from cost.budgets import Budget, Period
from cost.entries import Ask, Closing, Entry, Hold
from cost.errors import BudgetExhausted, BudgetHeld
from cost.prices import Price
from cost.store import Balance
from kernel import Component, format_usd

_RETRY_AFTER_SECONDS = 1.0


class _Account(msgspec.Struct, gc=False):
    """A period as its row was locked, and as it stands by now."""

    before: Balance
    posted_nano_usd: int
    held_nano_usd: int


class Balances:
    """The locked periods of one batch. Closings go first, holds in the order in which they came."""

    def __init__(self, at: datetime, process: str, *, hold_nano_usd_max: int) -> None:
        self._at = at
        self._process = process
        self._hold_max = hold_nano_usd_max
        self._periods: dict[str, Period] = {}
        self._accounts: dict[Period, _Account] = {}

    def wanted(self, released: Iterable[Sequence[Period]], holds: Iterable[Hold]) -> dict[Period, Budget | None]:
        """The periods to lock before these are decided, with the budgets of those that may have to be opened."""
        wanted: dict[Period, Budget | None] = {period: None for periods in released for period in periods}
        for hold in holds:
            if hold.ask is not None and hold.ask.nano_usd:
                for budget in hold.ask.budgets:
                    wanted[self._period(budget)] = budget
        return wanted

    def load(self, rows: Mapping[Period, Balance]) -> None:
        """Start from these rows, which are locked."""
        for period, row in rows.items():
            self._accounts[period] = _Account(row, row.posted_nano_usd, row.held_nano_usd)

    @property
    def changes(self) -> Mapping[Period, Balance]:
        """What to add to each period that was moved."""
        changes = {}
        for period, account in self._accounts.items():
            posted, held = account.before
            if account.posted_nano_usd != posted or account.held_nano_usd != held:
                changes[period] = Balance(account.posted_nano_usd - posted, account.held_nano_usd - held)
        return changes

    def close(self, closing: Closing, periods: tuple[Period, ...]) -> Entry:
        """Give back what the hold set aside in these periods and post what was spent. The hold must be open."""
        held = closing.hold.entry
        assert held is not None
        # Posted at the hold means in tokens too: reports must not fall below the invoice either.
        at_hold = closing.amount_nano_usd is None
        amount = held.amount_nano_usd if closing.amount_nano_usd is None else closing.amount_nano_usd
        self._move(periods, amount, -held.amount_nano_usd)
        return msgspec.structs.replace(
            held,
            step=1,
            kind=closing.kind,
            at=self._at,
            amount_nano_usd=amount,
            estimated=closing.estimated,
            process=self._process,
            periods=periods,
            tokens=held.tokens if at_hold else closing.tokens,
            cost=closing.cost,
            rates=None,
            provider_request_id=closing.provider_request_id,
            reason=closing.reason,
        )

    def grant(self, hold: Hold) -> Entry:
        """Set aside the worst case of what is asked, its answer shortened to what is unspent.

        Raises BudgetExhausted where not even the shortest useful answer fits what is unspent, BudgetHeld where it
        would but for other open holds. A call that costs nothing is never refused, whatever was spent.
        """
        ask = hold.ask
        assert ask is not None
        output, amount = ask.output_tokens, ask.nano_usd
        periods: tuple[Period, ...] = ()
        if amount and ask.price is not None:
            periods = tuple([self._period(budget) for budget in ask.budgets])
            output, amount = self._worst_case_that_fits(ask, ask.price, periods)
            self._move(periods, 0, amount)
        hold.output_tokens = output
        hold.entry = self._entry(ask, output=output, amount=amount, periods=periods)
        return hold.entry

    def _worst_case_that_fits(self, ask: Ask, price: Price, periods: tuple[Period, ...]) -> tuple[int, int]:
        """The answer's ceiling in tokens and what it sets aside: 402 where it is spent, 429 where it is only held."""
        output, amount, most = ask.output_tokens, ask.nano_usd, self._hold_max
        hard = []
        for budget, period in zip(ask.budgets, periods, strict=True):
            if budget.hard:
                account = self._accounts[period]
                unspent = budget.limit_nano_usd - account.posted_nano_usd
                hard.append((budget, unspent, account.held_nano_usd))
                most = min(most, unspent)
        if amount > most:
            output = min(output, price.output_tokens_within(most, ask.input_tokens, ask.choices))
            amount = price.worst_case(ask.input_tokens, output * ask.choices)
            if output < min(ask.output_tokens, ask.output_tokens_min) or amount > most:
                raise _exhausted(ask, [budget for budget, unspent, _ in hard if unspent <= most], self._at)
        for budget, unspent, held in hard:
            if amount > unspent - held:
                raise BudgetHeld(
                    f"Budget `{budget.id}` has the money, but open calls hold it; try again in a moment.",
                    retry_after_seconds=_RETRY_AFTER_SECONDS,
                )
        return output, amount

    def _period(self, budget: Budget) -> Period:
        # Telling a calendar period costs microseconds, and a batch asks for the same few over and over.
        period = self._periods.get(budget.key)
        if period is None:
            period = self._periods[budget.key] = budget.at(self._at)
        return period

    def _move(self, periods: tuple[Period, ...], posted: int, held: int) -> None:
        for period in periods:
            account = self._accounts.get(period)
            if account is None:
                account = self._accounts[period] = _Account(Balance(), 0, 0)
            account.posted_nano_usd += posted
            account.held_nano_usd += held

    def _entry(self, ask: Ask, *, output: int, amount: int, periods: tuple[Period, ...]) -> Entry:
        target, caller, price = ask.target, ask.caller, ask.price
        return Entry(
            turn_id=ask.key.turn_id,
            attempt=ask.key.attempt,
            step=0,
            kind="hold",
            at=self._at,
            held_at=self._at,
            amount_nano_usd=amount,
            estimated=False,
            target=target.name,
            provider=target.provider,
            upstream_model=target.upstream_model,
            price_id=price.id if price else None,
            department=caller.department,
            app=caller.app,
            key_id=caller.key_id,
            user=caller.user,
            use_case=caller.use_case,
            data_class=caller.data_class.label,
            process=self._process,
            periods=periods,
            tokens={Component.INPUT: ask.input_tokens, Component.OUTPUT: output * ask.choices},
            rates=price.pico_usd_per_token if price else None,
            reason=None if price else "unpriced",
        )


def _exhausted(ask: Ask, tight: list[Budget], at: datetime) -> BudgetExhausted:
    if not tight:
        return BudgetExhausted(f"One call of `{ask.target.name}` may not set aside so much; ask for less.")
    budget = tight[0]
    _, resets_at = budget.period_bounds(budget.period_key(at))
    return BudgetExhausted(
        f"Budget `{budget.id}` ({format_usd(budget.limit_nano_usd)} USD a {budget.period} for {budget.scope} "
        f"`{budget.of}`) has too little left for this call of `{ask.target.name}`; send less, have the budget raised, "
        f"or wait until {resets_at:%Y-%m-%dT%H:%M:%SZ}."
    )
