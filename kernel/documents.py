"""One declared thing (a department, a model, a price, a budget) as every capability receives it."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any


@dataclass(frozen=True, slots=True)
class Document:
    """A version of something an operator declared. Versions are append-only; the newest is in force.

    `body` holds JSON values, already validated by the capability that owns `kind`. since: the version with which this
    declaration began, uninterrupted and with the same identity; its own if not told.
    """

    kind: str
    name: str
    version: int
    body: Mapping[str, Any]
    author: str
    at: datetime
    since: int = 0

    def __post_init__(self) -> None:
        """A declaration that continues no other begins with itself."""
        if not self.since:
            object.__setattr__(self, "since", self.version)
