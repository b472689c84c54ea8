"""A trail in memory: records count only once the transaction they joined is durable."""

from collections.abc import Sequence

from sqlalchemy.ext.asyncio import AsyncConnection

from kernel import AuditRecord, ChainHead


class MemoryTrail:
    """An AuditSink whose records are a list."""

    def __init__(self) -> None:
        self.records: list[AuditRecord] = []
        self.forgotten = 0
        self.is_full = False
        self._joined: list[AuditRecord] = []

    async def append(self, connection: AsyncConnection, records: Sequence[AuditRecord]) -> ChainHead:
        if self.is_full:
            raise OSError("no space left")
        self._joined = list(records)
        return ChainHead(len(self.records) + len(records), "")

    def advance(self, head: ChainHead) -> None:
        self.records += self._joined
        self._joined = []
        assert head.sequence == len(self.records)

    def forget(self) -> None:
        self.forgotten += 1
        self._joined = []

    def events(self, turn_id: str | None = None) -> list[str]:
        return [record.event for record in self.records if turn_id in {None, record.turn_id}]

    def last(self, turn_id: str) -> AuditRecord:
        return [record for record in self.records if record.turn_id == turn_id][-1]
