"""What one request will cost, and what the provider saw of all of them."""

from collections import Counter
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from tests.sim.answer import Answer
from tests.sim.invoice import Finish, Invoice, Line


@dataclass(slots=True)
class Stats:
    """What the provider saw since the last reset. retries: requests by `x-stainless-retry-count`."""

    requests: int = 0
    answering: int = 0
    max_concurrent: int = 0
    cancelled: int = 0
    billed: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    retries: Counter[str] = field(default_factory=Counter)

    def reset(self) -> None:
        """Count anew, but for what is being answered."""
        self.requests = self.cancelled = self.billed = 0
        self.max_concurrent = self.answering
        self.statuses.clear()
        self.retries.clear()


class Bill:
    """The one line a request will have on the invoice, written once: by whoever closes it first.

    ids: the provider's of the request, and the client's. Leaving it open means that the client left, or that the
    provider is stopping.
    """

    def __init__(self, invoice: Invoice, stats: Stats, answer: Answer, ids: tuple[str, str | None]) -> None:
        self.answer = answer
        self.generated = 0
        self.started = False
        self._invoice = invoice
        self._stats = stats
        self._ids = ids
        self._open = True

    def close(self, finish: Finish) -> None:
        """Bill what was generated, unless that is done or waived."""
        if not self._open:
            return
        self._open = False
        ask = self.answer.ask
        tokens = self.answer.tokens(self.generated, started=self.started)
        self._invoice.write(Line(*self._ids, tokens=tokens, finish=finish, model=ask.model, stream=ask.stream))
        self._stats.billed += 1
        self._stats.cancelled += finish is Finish.CANCELLED

    def waive(self) -> None:
        """Bill nothing: the answer is an error status, or costs nothing."""
        self._open = False

    def generate(self, tokens: int) -> None:
        """So many text tokens exist by now."""
        self.started = True
        self.generated = tokens

    def __enter__(self) -> Self:
        self._stats.answering += 1
        self._stats.max_concurrent = max(self._stats.max_concurrent, self._stats.answering)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stats.answering -= 1
        self.close(Finish.CANCELLED)
