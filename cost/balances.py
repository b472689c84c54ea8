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


class Balances:
    """The locked periods of one batch. Closings go first, holds in the order in which they came."""

    def __init__(self, at: datetime, process: str, *, hold_nano_usd_max: int) -> None:
        self._at = at
        self._process = process
        self._hold_max = hold_nano_usd_max
        self._periods: dict[str, Period] = {}
        self._rows: dict[Period, Balance] = {}
        self._changes: dict[Period, Balance] = {}

    def wanted(self, released: Iterable[Sequence[Period]], holds: Iterable[Hold]) -> dict[Period, Budget | None]:
        """The periods to lock before these are decided, with the budgets of those that may have to be opened."""
        wanted: dict[Period, Budget | None] = {period: None for periods in released for period in periods}
        for hold in holds:
            if hold.ask is not None and worst_case(hold.ask):
                wanted.update((self._period(budget), budget) for budget in hold.ask.budgets)
        return wanted

    def load(self, rows: Mapping[Period, Balance]) -> None:
        """Start from these rows, which are locked."""
        self._rows.update(rows)

    @property
    def changes(self) -> Mapping[Period, Balance]:
        """What to add to each period that was moved."""
        return {period: change for period, change in self._changes.items() if any(change)}

    def close(self, closing: Closing, periods: tuple[Period, ...]) -> Entry:
        """Give back what the hold set aside in these periods and post what was spent. The hold must be open."""
        held = closing.hold.entry
        assert held is not None
        # Posted at the hold means in tokens too: reports must not fall below the invoice either.
        at_hold = closing.amount_nano_usd is None
        amount = held.amount_nano_usd if closing.amount_nano_usd is None else closing.amount_nano_usd
        self._move(periods, posted=amount, held=-held.amount_nano_usd)
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
        output, amount = ask.output_tokens, 0
        periods: tuple[Period, ...] = ()
        if ask.price is not None and worst_case(ask):
            output, amount = self._worst_case_that_fits(ask, ask.price)
            periods = tuple(self._period(budget) for budget in ask.budgets)
            self._move(periods, held=amount)
        hold.output_tokens = output
        hold.entry = self._entry(ask, output=output, amount=amount, periods=periods)
        return hold.entry

    def _worst_case_that_fits(self, ask: Ask, price: Price) -> tuple[int, int]:
        """The answer's ceiling in tokens and what it sets aside: 402 where it is spent, 429 where it is only held."""
        hard = [(budget, self._rows[self._period(budget)]) for budget in ask.budgets if budget.hard]
        unspent = min((b.limit_nano_usd - row.posted_nano_usd for b, row in hard), default=self._hold_max)
        output, amount = ask.output_tokens, worst_case(ask)
        if amount > (most := min(unspent, self._hold_max)):
            output = min(output, price.output_tokens_within(most, ask.input_tokens, ask.choices))
            amount = price.worst_case(ask.input_tokens, output * ask.choices)
            if output < min(ask.output_tokens, ask.output_tokens_min) or amount > most:
                raise _exhausted(ask, [budget for budget, row in hard if _unspent(budget, row) <= most], self._at)
        for budget, row in hard:
            if amount > _unspent(budget, row) - row.held_nano_usd:
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

    def _move(self, periods: tuple[Period, ...], *, posted: int = 0, held: int = 0) -> None:
        for period in periods:
            for balances in (self._rows, self._changes):
                posted_before, held_before = balances.get(period, (0, 0))
                balances[period] = Balance(posted_before + posted, held_before + held)

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


def worst_case(ask: Ask) -> int:
    """Nano-dollars that cover the ask whole."""
    return ask.price.worst_case(ask.input_tokens, ask.output_tokens * ask.choices) if ask.price else 0


def _unspent(budget: Budget, row: Balance) -> int:
    return budget.limit_nano_usd - row.posted_nano_usd


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
