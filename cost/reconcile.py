"""Makes the books equal to a provider's invoice, by adding corrections. It never changes what was written.

Reading invoice files is in invoices.py.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import msgspec

from cost.book import Book
from cost.entries import AttemptKey, Correction, Entry
from cost.errors import InvalidReport
from cost.invoices import InvoiceLine, batched
from cost.prices import Cost, Price
from cost.store import CorrectionStore
from cost.windows import require_window
from kernel import AuditRecord, Clock, Component, Usage

_BATCH = 200
_NAMED_MAX = 20
_ATTEMPT_DIGITS_MAX = 6


@dataclass(slots=True)
class ReconcileReport:
    """What an invoice changed.

    corrected: attempts whose tokens or amount were not the invoice's. withdrawn: estimates of calls that a complete
    invoice does not list. still_open: attempts that have not ended, to be reconciled later. contended: attempts that
    somebody else corrected meanwhile; run it again. unknown: lines that are no attempt of ours with that provider, the
    first 20 named.
    """

    lines: int = 0
    unchanged: int = 0
    corrected: int = 0
    withdrawn: int = 0
    still_open: int = 0
    contended: int = 0
    unknown: int = 0
    unknown_ids: tuple[str, ...] = ()
    difference_nano_usd: int = 0


@dataclass(slots=True)
class _Bill:
    """All that an invoice says of one attempt."""

    tokens: dict[Component, int]
    provider_request_id: str | None

    def add(self, line: InvoiceLine) -> None:
        for part, count in line.tokens.items():
            self.tokens[part] = self.tokens.get(part, 0) + count
        self.provider_request_id = self.provider_request_id or line.provider_request_id


class Reconciliation:
    """Applies invoices. Applying one twice changes nothing the second time."""

    def __init__(
        self,
        store: CorrectionStore,
        *,
        book: Callable[[], Book],
        record: Callable[[AuditRecord], Awaitable[None]],
        clock: Clock,
        process: str,
    ) -> None:
        self._store = store
        self._book = book
        self._record = record
        self._clock = clock
        self._process = process

    async def run(
        self,
        lines: Iterable[InvoiceLine],
        *,
        since: datetime,
        until: datetime,
        provider: str | None,
        complete: bool,
        by: str,
    ) -> ReconcileReport:
        """Correct every attempt that the lines name.

        provider: whose invoice it is; None: of whomever its lines belong to. complete: it lists every call to that
        provider held in [since, until), which have passed, so that estimates it does not list were never billed and go
        to zero. by: who is responsible, for the trail. Raises InvalidReport, StoreUnavailable; what was applied before
        an outage stays, and running it again does the rest.
        """
        require_window(since, until)
        whose = self._complete_of(provider, until) if complete else None
        listed = list(lines)
        window = {"since": since.isoformat(), "until": until.isoformat()}
        body = {"lines": len(listed), "provider": provider, "complete": complete, "by": by, **window}
        await self._record(AuditRecord("admin.reconciled", body))
        report = ReconcileReport(lines=len(listed))
        bills = await self._bills(listed, provider, report)
        for keys in batched(bills, _BATCH):
            await self._apply(keys, bills, report)
        if whose is not None:
            missing = [key for key in await self._store.unconfirmed(whose, since, until) if key not in bills]
            before = report.corrected
            for keys in batched(missing, _BATCH):
                await self._apply(keys, {key: _Bill({}, None) for key in keys}, report)
            report.withdrawn, report.corrected = report.corrected - before, before
        return report

    def _complete_of(self, provider: str | None, until: datetime) -> str:
        """The provider whose complete invoice it is. Raises InvalidReport where that would withdraw too much."""
        if provider is None:
            raise InvalidReport("A complete invoice is one provider's: say which with `provider`.", param="provider")
        if until > self._clock.now():
            raise InvalidReport("A complete invoice cannot be of the future: `until` must have passed.", param="until")
        return provider

    async def _bills(
        self, lines: Sequence[InvoiceLine], provider: str | None, report: ReconcileReport
    ) -> dict[AttemptKey, _Bill]:
        bills: dict[AttemptKey, _Bill] = {}
        for batch in batched(lines, _BATCH):
            named = {key for line in batch if (key := _named(line))}
            written = await self._store.entries_of({key.turn_id for key in named})
            ours = {entry.key for entry in written if provider in {None, entry.provider}}
            others = {line.provider_request_id for line in batch if _named(line) not in ours}
            by_provider = await self._store.by_provider_id({name for name in others if name}, provider)
            for line in batch:
                key = _named(line)
                if key not in ours:
                    found = by_provider.get(line.provider_request_id or "", set())
                    key = next(iter(found)) if len(found) == 1 else None
                if key is None:
                    report.unknown += 1
                    report.unknown_ids = (*report.unknown_ids, line.name)[:_NAMED_MAX]
                else:
                    bills.setdefault(key, _Bill({}, None)).add(line)
        return bills

    async def _apply(self, keys: Sequence[AttemptKey], bills: dict[AttemptKey, _Bill], report: ReconcileReport) -> None:
        written: dict[AttemptKey, list[Entry]] = {}
        for entry in await self._store.entries_of({key.turn_id for key in keys}):
            written.setdefault(entry.key, []).append(entry)
        corrections: list[Correction] = []
        book = self._book()
        for key in keys:
            entries = written[key]
            if entries[-1].step == 0:
                report.still_open += 1
            elif (correction := self._correction(entries, bills[key])) is None:
                report.unchanged += 1
            else:
                corrections.append(_counting(correction, entries[1].at, book))
        added = await self._store.correct(corrections) if corrections else set()
        report.corrected += len(added)
        report.contended += len(corrections) - len(added)
        report.difference_nano_usd += sum(c.entry.amount_nano_usd for c in corrections if c.entry.key in added)

    def _correction(self, entries: Sequence[Entry], bill: _Bill) -> Entry | None:
        """The difference between what an attempt's entries say and what was billed, at the price it was held at."""
        hold, last, posted = entries[0], entries[-1], entries[1:]
        price = Price(hold.price_id or "", hold.rates, hold.held_at) if hold.rates else None
        cost = price.cost(Usage(bill.tokens)) if price else Cost(0)
        tokens = _difference(bill.tokens, [entry.tokens for entry in posted])
        amount = cost.nano_usd - sum(entry.amount_nano_usd for entry in posted)
        is_estimate = last.kind == "post" and last.estimated
        if not tokens and not amount and not is_estimate:
            return None
        return msgspec.structs.replace(
            hold,
            step=last.step + 1,
            kind="correction",
            at=self._clock.now(),
            amount_nano_usd=amount,
            estimated=cost.estimated,
            process=self._process,
            periods=posted[0].periods,
            tokens=tokens,
            cost=_difference(cost.components, [entry.cost for entry in posted]),
            rates=None,
            provider_request_id=bill.provider_request_id or last.provider_request_id,
            reason="invoice",
        )


def _counting(entry: Entry, closed_at: datetime, book: Book) -> Correction:
    budgets = book.counting(entry.department, entry.app, entry.key_id)
    return Correction(entry, closed_at, tuple(budget.at(entry.held_at) for budget in budgets))


def _difference(wanted: Mapping[Component, int], written: Sequence[Mapping[Component, int]]) -> dict[Component, int]:
    left = dict(wanted)
    for counts in written:
        for part, count in counts.items():
            left[part] = left.get(part, 0) - count
    return {part: count for part, count in left.items() if count}


def _named(line: InvoiceLine) -> AttemptKey | None:
    turn_id, _, attempt = (line.client_request_id or "").rpartition("/")
    return (
        AttemptKey(turn_id, int(attempt))
        if turn_id and attempt.isdecimal() and len(attempt) <= _ATTEMPT_DIGITS_MAX
        else None
    )
