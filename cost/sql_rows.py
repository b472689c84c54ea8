"""Entries and open holds as rows, and rows as entries. It asks nothing and decides nothing."""

from collections.abc import Callable, Iterable
from datetime import datetime
from functools import lru_cache
from typing import Any, TypeVar

import msgspec
from sqlalchemy import Row

from cost.budgets import Period
from cost.entries import Entry
from kernel import Component

_TEXT_MAX = 300
_JSON_FIELDS = ("periods", "tokens", "cost", "rates")
_PLAIN_FIELDS = tuple(name for name in Entry.__struct_fields__ if name not in _JSON_FIELDS)
_OUTPUTS = tuple(part for part in Component if part.is_output)
_KNOWN_MAX = 1024

Item = TypeVar("Item")


class EntryLine(msgspec.Struct):
    """A row of the table of entries: its columns in their order, which drivers are given as they are."""

    turn_id: str
    attempt: int
    step: int
    kind: str
    at: datetime | str
    held_at: datetime | str
    amount_nano_usd: int
    estimated: bool
    target: str
    provider: str
    upstream_model: str
    price_id: str | None
    department: str | None
    app: str | None
    key_id: str
    user: str | None
    use_case: str | None
    data_class: str
    process: str
    budgets: str
    tokens: str
    input_tokens: int
    output_tokens: int
    cost: str
    rates: str | None
    provider_request_id: str | None
    reason: str | None


def entry_line(entry: Entry, instant: Callable[[datetime], datetime | str] | None = None) -> EntryLine:
    """The entry as its row. instant: how instants are written, where not as they are."""
    tokens, output = entry.tokens, 0
    for part in _OUTPUTS:
        output += tokens.get(part, 0)
    return EntryLine(
        entry.turn_id,
        entry.attempt,
        entry.step,
        entry.kind,
        entry.at if instant is None else instant(entry.at),
        entry.held_at if instant is None else instant(entry.held_at),
        entry.amount_nano_usd,
        entry.estimated,
        entry.target,
        entry.provider,
        entry.upstream_model,
        entry.price_id,
        entry.department,
        entry.app,
        entry.key_id,
        _storable(entry.user),
        entry.use_case,
        entry.data_class,
        entry.process,
        write_periods(entry.periods),
        as_json(tokens),
        sum(tokens.values()) - output,
        output,
        as_json(entry.cost),
        None if entry.rates is None else as_json(entry.rates),
        _storable(entry.provider_request_id),
        entry.reason,
    )


def read_entry(row: Row[Any]) -> Entry:
    """The entry of a row."""
    plain = {name: getattr(row, name) for name in _PLAIN_FIELDS}
    return Entry(
        **plain,
        periods=read_periods(row.budgets),
        tokens=msgspec.json.decode(row.tokens, type=dict[Component, int]),
        cost=msgspec.json.decode(row.cost, type=dict[Component, int]),
        rates=None if row.rates is None else msgspec.json.decode(row.rates, type=dict[Component, int]),
    )


@lru_cache(_KNOWN_MAX)
def read_periods(written: str) -> tuple[Period, ...]:
    """The periods that a row names."""
    return msgspec.json.decode(written, type=tuple[Period, ...])


@lru_cache(_KNOWN_MAX)
def write_periods(periods: tuple[Period, ...]) -> str:
    """As `read_periods` reads them."""
    return as_json(periods)


def as_json(value: object) -> str:
    """As it is written into rows."""
    return _encode(value).decode()


_encode = msgspec.json.Encoder().encode


def _storable(text: str | None) -> str | None:
    # What a stranger sent must not keep a batch from being written: PostgreSQL takes neither NUL nor lone surrogates.
    if text is None or (text.isprintable() and text.isascii() and len(text) <= _TEXT_MAX):
        return text
    return text[:_TEXT_MAX].replace("\0", "").encode(errors="replace").decode()


def padded(keys: Iterable[Item]) -> list[Item]:
    """The keys, the last one repeated: every length of a list is a statement of its own to prepare.

    Powers of two keep those to a dozen.
    """
    listed = list(keys)
    return listed + listed[-1:] * ((1 << (len(listed) - 1).bit_length()) - len(listed))
