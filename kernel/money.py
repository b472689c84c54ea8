"""Money is an integer of nano-dollars everywhere but in prices and reports."""

from decimal import Decimal
from typing import NewType

NanoUSD = NewType("NanoUSD", int)

NANO_PER_USD = 1_000_000_000


def format_usd(amount: int) -> str:
    """Dollars as a plain decimal string with all nine places, for example `0.000012500`."""
    return f"{Decimal(amount) / NANO_PER_USD:.9f}"
