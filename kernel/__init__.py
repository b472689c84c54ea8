"""The words everyone shares. No I/O, no SQL statements, no HTTP, no settings, no provider's field names."""

from kernel.audit import AuditRecord, AuditSink, ChainHead
from kernel.caller import Caller, DataClass, Role
from kernel.clock import Clock, SystemClock
from kernel.documents import Document
from kernel.errors import InvalidDeclaration, PlatformError, StoreUnavailable
from kernel.ids import new_id
from kernel.money import NANO_PER_USD, NanoUSD, format_usd
from kernel.turn import (
    NO_HINTS,
    Chunk,
    Component,
    Hints,
    ModelReply,
    ModelRequest,
    Operation,
    Plan,
    Target,
    Usage,
)

__all__ = [
    "NANO_PER_USD",
    "NO_HINTS",
    "AuditRecord",
    "AuditSink",
    "Caller",
    "ChainHead",
    "Chunk",
    "Clock",
    "Component",
    "DataClass",
    "Document",
    "Hints",
    "InvalidDeclaration",
    "ModelReply",
    "ModelRequest",
    "NanoUSD",
    "Operation",
    "Plan",
    "PlatformError",
    "Role",
    "StoreUnavailable",
    "SystemClock",
    "Target",
    "Usage",
    "format_usd",
    "new_id",
]
