"""What tokens cost, in integers. It prices usage, bounds what a call can cost, and inverts that bound.

It does not choose which price is in force; book.Book does.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType

import msgspec

from kernel import Component, Usage

_PICO_PER_NANO = 1000
_UNBOUNDED = 10**9
_FALLBACKS = MappingProxyType({Component.CACHED_INPUT: Component.INPUT, Component.REASONING: Component.OUTPUT})


class Cost(msgspec.Struct, frozen=True):
    """An amount and its parts. `estimated` where a component had to be billed at another's price."""

    nano_usd: int
    components: Mapping[Component, int] = {}
    estimated: bool = False


@dataclass(frozen=True, slots=True)
class Price:
    """Pico-dollars per token by component; input and output are always among them.

    id: `name@version` of the document it was declared by.
    """

    id: str
    pico_usd_per_token: Mapping[Component, int]
    valid_from: datetime
    _dearest_input: int = field(init=False, compare=False)
    _dearest_output: int = field(init=False, compare=False)

    def __post_init__(self) -> None:
        """Find the dearest rates once; every hold asks for them."""
        for name, is_output in (("_dearest_input", False), ("_dearest_output", True)):
            rates = [rate for part, rate in self.pico_usd_per_token.items() if part.is_output is is_output]
            object.__setattr__(self, name, max(rates))

    def cost(self, usage: Usage) -> Cost:
        """What `usage` costs: each component rounded up once, in nano-dollars."""
        rates, parts, nano_usd, estimated = self.pico_usd_per_token, dict[Component, int](), 0, False
        for part, tokens in usage.tokens.items():
            if tokens:
                rate = rates.get(part)
                if rate is None:
                    fallback = _FALLBACKS.get(part)
                    estimated = estimated or fallback is None
                    rate = self._dearest(part) if fallback is None else rates[fallback]
                parts[part] = amount = -(-tokens * rate // _PICO_PER_NANO)
                nano_usd += amount
        return Cost(nano_usd, parts, estimated)

    def worst_case(self, input_tokens: int, output_tokens: int) -> int:
        """Nano-dollars that no split of so many tokens over components can exceed."""
        into = _bound(input_tokens, self._dearest_input, _INPUT_SLACK)
        return into + _bound(output_tokens, self._dearest_output, _OUTPUT_SLACK)

    def output_tokens_within(self, nano_usd: int, input_tokens: int, choices: int) -> int:
        """The most output tokens per choice whose worst case is at most `nano_usd`; 0 where not one fits.

        A price without output rates bounds nothing: the answer is then a thousand million.
        """
        spare = nano_usd - _bound(input_tokens, self._dearest_input, _INPUT_SLACK)
        rate = self._dearest_output
        if spare < 0 or rate == 0:
            return 0 if spare < 0 else _UNBOUNDED
        return max(0, (spare - _OUTPUT_SLACK) * _PICO_PER_NANO // rate // choices)

    def _dearest(self, part: Component) -> int:
        return self._dearest_output if part.is_output else self._dearest_input


def _bound(tokens: int, rate: int, slack: int) -> int:
    return -(-tokens * rate // _PICO_PER_NANO) + slack if tokens and rate else 0


# Rounding up n parts instead of their sum costs at most n - 1 more; a provider may split over all of them.
_OUTPUT_SLACK = sum(part.is_output for part in Component) - 1
_INPUT_SLACK = len(Component) - _OUTPUT_SLACK - 2
