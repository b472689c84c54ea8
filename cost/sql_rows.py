"""Entries and open holds as rows, and rows as entries. It asks nothing and decides nothing."""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, TypeVar

import msgspec
from sqlalchemy import Row

from cost.budgets import Period
from cost.entries import Entry
from kernel import Component

_TEXT_MAX = 300
_JSON_FIELDS = ("periods", "tokens", "cost", "rates")
_PLAIN_FIELDS = tuple(name for name in Entry.__struct_fields__ if name not in _JSON_FIELDS)

Item = TypeVar("Item")


def entry_row(entry: Entry) -> dict[str, Any]:
    """The entry as its row."""
    row = msgspec.structs.asdict(entry)
    row["user"], row["provider_request_id"] = _storable(entry.user), _storable(entry.provider_request_id)
    row["budgets"], row["tokens"], row["cost"] = as_json(row.pop("periods")), as_json(entry.tokens), as_json(entry.cost)
    row["rates"] = None if entry.rates is None else as_json(entry.rates)
    whole = sum(entry.tokens.values())
    row["output_tokens"] = output = sum([count for part, count in entry.tokens.items() if part.is_output])
    row["input_tokens"] = whole - output
    return row


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


def as_instant(at: datetime) -> str:
    """As the tables' type writes it on SQLite."""
    return at.astimezone(UTC).isoformat(" ", "microseconds")[:26]


def read_periods(written: str) -> tuple[Period, ...]:
    """The periods that a row names."""
    return msgspec.json.decode(written, type=tuple[Period, ...])


def as_json(value: object) -> str:
    """As it is written into rows."""
    return msgspec.json.encode(value).decode()


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
