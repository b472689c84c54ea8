"""The declared kinds that cost owns, as they are written in a file. What they mean is in prices.py and budgets.py."""

from collections.abc import Mapping
from decimal import Decimal
from types import MappingProxyType
from typing import Annotated, ClassVar, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints

from kernel import Component

_USD_PER_MILLION_MAX = Decimal(1_000_000)
_LIMIT_USD_MAX = Decimal(1_000_000_000)

Name = Annotated[str, StringConstraints(min_length=1, max_length=200)]


def _at_most(decimals: int, amount: Decimal, cure: str) -> Decimal:
    exponent = amount.normalize().as_tuple().exponent
    if isinstance(exponent, int) and -exponent > decimals:
        raise ValueError(f"{amount} has more than {decimals} decimals; {cure}")
    return amount


def _rate(amount: Decimal) -> Decimal:
    return _at_most(6, amount, "a token's price is kept in whole pico-dollars, so write at most 6")


def _limit(amount: Decimal) -> Decimal:
    return _at_most(9, amount, "money is kept in whole nano-dollars, so write at most 9")


def _both_directions(rates: Mapping[Component, Decimal]) -> Mapping[Component, Decimal]:
    missing = [part.value for part in (Component.INPUT, Component.OUTPUT) if part not in rates]
    if missing:
        raise ValueError(f"a price for {' and '.join(missing)} is missing; add it, 0 if it is free")
    return rates


def _zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as unknown:
        raise ValueError(f"{name!r} is no IANA time zone; write one such as Europe/Berlin") from unknown
    return name


Rate = Annotated[Decimal, Field(ge=0, le=_USD_PER_MILLION_MAX), AfterValidator(_rate)]


class _Declared(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PriceBody(_Declared):
    """What a model costs from `valid_from` on (None: always), in US dollars per million tokens of a component."""

    model: Name
    usd_per_million_tokens: Annotated[Mapping[Component, Rate], AfterValidator(_both_directions)]
    valid_from: AwareDatetime | None = None
    source: Annotated[str, StringConstraints(max_length=500)] | None = None


class BudgetBody(_Declared):
    """How much a department, an app or a key may spend in a calendar month or day of its own time zone.

    of: the department's or app's name, or the key's id. hard: refuse what does not fit, instead of only counting it.
    IDENTITY: what it counts; where that changes, counting begins anew.
    """

    IDENTITY: ClassVar = ("scope", "of", "period", "timezone")

    scope: Literal["department", "app", "key"]
    of: Name
    period: Literal["month", "day"]
    limit_usd: Annotated[Decimal, Field(ge=0, le=_LIMIT_USD_MAX), AfterValidator(_limit)]
    hard: bool = True
    timezone: Annotated[str, AfterValidator(_zone)] = "UTC"
    alert_at_percent: tuple[Annotated[int, Field(ge=1, le=1000)], ...] = (80, 100)


KINDS: Mapping[str, type[BaseModel]] = MappingProxyType({"price": PriceBody, "budget": BudgetBody})
