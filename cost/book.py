"""The prices and budgets in force, as one immutable book. What was spent is the store's to say."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from types import MappingProxyType
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from cost.budgets import Budget
from cost.prices import Price
from cost.wire import BudgetBody, PriceBody
from kernel import NANO_PER_USD, Caller, Document, InvalidDeclaration

Body = TypeVar("Body", bound=BaseModel)

_PICO_PER_USD_PER_MILLION = 1_000_000
_ALWAYS = datetime.min.replace(tzinfo=UTC)
_NO_BASES: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Book:
    """Every price and budget in force, found in one step."""

    prices: Mapping[str, tuple[Price, ...]]
    scopes: Mapping[tuple[str, str], tuple[Budget, ...]]
    _callers: dict[tuple[str | None, str | None, str], tuple[Budget, ...]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @classmethod
    def of(cls, documents: Iterable[Document], bases: Mapping[str, str] = _NO_BASES) -> "Book":
        """The book that these documents say; other kinds are passed over. Raises InvalidDeclaration.

        bases: model to the one it was made from, which has none itself. Until a price of its own is in force, a model
        costs what its base costs, under the name of that price.
        """
        prices: dict[str, list[Price]] = {}
        scopes: dict[tuple[str, str], list[Budget]] = {}
        for document in documents:
            if document.kind == "price":
                model, price = price_of(document)
                prices.setdefault(model, []).append(price)
            elif document.kind == "budget":
                budget = budget_of(document)
                scopes.setdefault((budget.scope, budget.of), []).append(budget)
        own = {model: _newest_first(model, known) for model, known in prices.items()}
        inherited = {model: own.get(model, ()) + own[base] for model, base in bases.items() if base in own}
        return cls(own | inherited, {scope: tuple(budgets) for scope, budgets in scopes.items()})

    def price(self, model: str, at: datetime) -> Price | None:
        """The model's own price with the latest `valid_from` that is not after `at`, else its base's."""
        for price in self.prices.get(model, ()):
            if price.valid_from <= at:
                return price
        return None

    def budgets(self, caller: Caller) -> tuple[Budget, ...]:
        """All budgets that a turn of this caller counts against, by id."""
        who = caller.department, caller.app, caller.key_id
        known = self._callers.get(who)
        if known is None:
            known = self._callers[who] = self.counting(*who)
        return known

    def counting(self, department: str | None, app: str | None, key_id: str) -> tuple[Budget, ...]:
        """All budgets that what these three spend counts against, by id."""
        keys = (("department", department), ("app", app), ("key", key_id))
        found = [budget for scope, of in keys if of is not None for budget in self.scopes.get((scope, of), ())]
        return tuple(sorted(found, key=lambda budget: budget.id)) if len(found) > 1 else tuple(found)

    def every_budget(self) -> tuple[Budget, ...]:
        """All budgets in force, by id."""
        return tuple(sorted((b for budgets in self.scopes.values() for b in budgets), key=lambda budget: budget.id))


def price_of(document: Document) -> tuple[str, Price]:
    """The model and the price that a document declares. Raises InvalidDeclaration."""
    body = _read(document, PriceBody)
    rates = {part: int(usd * _PICO_PER_USD_PER_MILLION) for part, usd in body.usd_per_million_tokens.items()}
    return body.model, Price(f"{document.name}@{document.version}", rates, body.valid_from or _ALWAYS)


def budget_of(document: Document) -> Budget:
    """The budget that a document declares. Raises InvalidDeclaration."""
    body = _read(document, BudgetBody)
    return Budget(
        id=document.name,
        scope=body.scope,
        of=body.of,
        period=body.period,
        limit_nano_usd=int(body.limit_usd * NANO_PER_USD),
        hard=body.hard,
        timezone=body.timezone,
        alert_at_percent=tuple(sorted(set(body.alert_at_percent))),
        since=document.since,
    )


def _read(document: Document, shape: type[Body]) -> Body:
    try:
        return shape.model_validate(document.body)
    except ValidationError as wrong:
        first = wrong.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "body"
        raise InvalidDeclaration(f"{document.kind} {document.name}: {where}: {first['msg']}.", param=where) from wrong


def _newest_first(model: str, prices: list[Price]) -> tuple[Price, ...]:
    ordered = sorted(prices, key=lambda price: price.valid_from, reverse=True)
    for newer, older in pairwise(ordered):
        if newer.valid_from == older.valid_from:
            names = " and ".join(sorted(price.id.rpartition("@")[0] for price in (newer, older)))
            raise InvalidDeclaration(
                f"price {names}: valid_from: both say what {model} costs from the same instant; "
                "withdraw one or give it another valid_from.",
                param="valid_from",
            )
    return tuple(ordered)
