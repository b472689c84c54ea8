"""Rows for people: a table as wide as its content, or a block per row where the terminal is narrower than that.

Nothing is cut off, because what is shown is there to be read and copied. JSON is made by whoever was asked for it.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.cells import cell_len

from governance import Change

Row = Mapping[str, Any]

_GAP = "  "


def rendered(rows: Sequence[Row], terminal_columns: int | None) -> str:
    """The rows, which all have the same columns; one that is empty in every row is left out.

    terminal_columns: None where it is no terminal that reads, so that a row is always one line.
    """
    names = [name for name in rows[0] if any(_told(row[name]) for row in rows)]
    told = [[_told(row[name]) for name in names] for row in rows]
    widths = [max(map(cell_len, column)) for column in zip(names, *told, strict=True)]
    if terminal_columns is None or len(_line(names, widths)) <= terminal_columns:
        return "\n".join(_line(each, widths).rstrip() for each in (names, *told))
    label = max(map(cell_len, names))
    blocks = ([_line(pair, (label, 0)) for pair in zip(names, each, strict=True) if pair[1]] for each in told)
    return "\n\n".join("\n".join(block) for block in blocks)


def change_rows(changes: Iterable[Change]) -> list[dict[str, Any]]:
    """What changes, without what stays. Fields only of what is there already: the rest stands in the file."""
    return [
        {
            "kind": change.kind,
            "name": change.name,
            "action": change.action.value,
            "version": change.version,
            "fields": [
                f"{each.path}: {_told(each.old) or 'none'} -> {_told(each.new) or 'none'}" for each in change.fields
            ]
            if change.action == "update"
            else [],
        }
        for change in changes
        if change.action != "unchanged"
    ]


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return _GAP.join(cell + " " * (width - cell_len(cell)) for cell, width in zip(cells, widths, strict=True))


def _told(value: object) -> str:
    """A value in one line; nothing for what is not set."""
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
        case Mapping():
            return ", ".join(f"{name}: {told}" for name, each in value.items() if (told := _told(each)))
        case list() | tuple():
            return ", ".join(map(_told, value))
    return " ".join(str(value).splitlines())
