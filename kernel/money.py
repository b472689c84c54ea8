"""Money is an integer of nano-dollars everywhere but in prices and reports."""

from typing import NewType

NanoUSD = NewType("NanoUSD", int)

NANO_PER_USD = 1_000_000_000


def format_usd(amount: int) -> str:
    """Dollars as a plain decimal string with all nine places, for example `0.000012500`."""
    dollars, nanos = divmod(abs(amount), NANO_PER_USD)
    return f"{'-' * (amount < 0)}{dollars}.{nanos:09d}"
