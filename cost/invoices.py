"""A provider's invoice as rows: JSON lines or CSV, read whole and checked whole before any of it counts."""

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, TypeVar

import msgspec

from cost.errors import InvalidInvoice
from kernel import Component

_NAMED_ROWS_MAX = 20
_ID_COLUMNS = ("provider_request_id", "client_request_id", "model")

Tokens = Annotated[int, msgspec.Meta(ge=0, le=10**9)]
Item = TypeVar("Item")
Row = TypeVar("Row")

Identifier = Annotated[str, msgspec.Meta(max_length=300)]


@dataclass(frozen=True, slots=True)
class InvoiceLine:
    """What a provider bills for one call. client_request_id: `turn_id/attempt`, as it was sent with the call."""

    provider_request_id: Identifier | None = None
    client_request_id: Identifier | None = None
    tokens: Mapping[Component, Tokens] = field(default_factory=dict)
    model: Identifier | None = None

    @property
    def name(self) -> str:
        """What it is called in reports."""
        return self.provider_request_id or self.client_request_id or "(no id)"


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    tokens: dict[Component, Tokens]
    provider_request_id: Identifier | None = None
    client_request_id: Identifier | None = None
    model: Identifier | None = None


def read_jsonl(text: str) -> list[InvoiceLine]:
    """Lines such as `{"client_request_id": "req_1/1", "tokens": {"input": 12}}`. Raises InvalidInvoice."""
    rows = ((number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip())
    return _checked(rows, lambda line: msgspec.json.decode(line, type=_Line))


def read_csv(text: str) -> list[InvoiceLine]:
    """Columns provider_request_id, client_request_id, model, and one per component. Raises InvalidInvoice."""
    reader = csv.DictReader(io.StringIO(text), strict=True)
    try:
        unknown = set(reader.fieldnames or ()) - {*_ID_COLUMNS, *Component}
        if unknown or not reader.fieldnames:
            raise InvalidInvoice(
                f"Line 1: {', '.join(sorted(unknown))[:200] or 'the header'} is no column; "
                f"take {', '.join((*_ID_COLUMNS, *Component))}."
            )
        rows = [(reader.line_num, row) for row in reader]
    except csv.Error as broken:
        raise InvalidInvoice(f"Line {reader.reader.line_num}: {broken}.") from broken
    return _checked(rows, _from_columns)


def _from_columns(row: Mapping[str, str | None]) -> _Line:
    if None in row or None in row.values():
        raise ValueError("the number of columns is not that of the header")
    ids = {name: row.get(name) or None for name in _ID_COLUMNS}
    tokens = {part.value: row[part] or "0" for part in Component if part in row}
    return msgspec.convert({**ids, "tokens": tokens}, _Line, strict=False)


def _checked(rows: Iterable[tuple[int, Row]], read: Callable[[Row], _Line]) -> list[InvoiceLine]:
    lines: list[InvoiceLine] = []
    wrong: list[str] = []
    seen: set[str] = set()
    for number, row in rows:
        try:
            line = _line(read(row))
        except (ValueError, msgspec.MsgspecError) as reason:
            wrong.append(f"line {number}: {reason}")
            continue
        if line.provider_request_id in seen:
            wrong.append(f"line {number}: a second line for {line.provider_request_id}")
        seen.update(filter(None, [line.provider_request_id]))
        lines.append(line)
    if wrong:
        raise InvalidInvoice(f"{len(wrong)} rows cannot be read: {'; '.join(wrong[:_NAMED_ROWS_MAX])}.")
    return lines


def _line(row: _Line) -> InvoiceLine:
    if not row.provider_request_id and not row.client_request_id:
        raise ValueError("it has neither provider_request_id nor client_request_id")
    return InvoiceLine(row.provider_request_id, row.client_request_id, row.tokens, row.model)


def batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of at most `size` items, in order."""
    listed = list(items)
    return (listed[start : start + size] for start in range(0, len(listed), size))
