"""The audit trail as other folders see it: what a record says, and how it joins somebody else's transaction."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from msgspec import Struct


class AuditRecord(Struct, frozen=True):
    """One fact for the trail. `body` holds JSON values and never content, keys or credentials.

    event: `turn.admitted`, `turn.refused`, `turn.ended`, `turn.swept` or `admin.<what>`.
    """

    event: str
    body: Mapping[str, Any] = {}
    turn_id: str | None = None
    app: str | None = None
    department: str | None = None


@dataclass(frozen=True, slots=True)
class ChainHead:
    """The last link of a writer's chain."""

    sequence: int
    digest: str


class AuditSink(Protocol):
    """A writer's chain. One task at a time appends to it; losing it means refusing.

    connection: of the driver or library that the sink was made for, which only the wiring knows.
    """

    async def append(self, connection: Any, records: Sequence[AuditRecord]) -> ChainHead:
        """Write the records within the transaction open on `connection`; nothing counts until `advance`."""
        ...

    def advance(self, head: ChainHead) -> None:
        """The transaction is durable: go on from here."""
        ...

    def forget(self) -> None:
        """The transaction's fate is unknown or it failed: read the head from the store before the next link."""
        ...
