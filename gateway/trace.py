"""What is remembered of one turn while it runs: its id, its beats, and what was decided. Never content."""

from typing import Any

from cost import Turn
from governance import Permit
from kernel import AuditRecord, Caller, Clock, new_id


class Trace:
    """One turn's notes, filled beat by beat.

    milliseconds: time spent per beat, in the order of the beats. facts: what the admission record says. answered: when
    the first content was there for the caller; is_stream: it came by events.
    """

    __slots__ = (
        "_mark",
        "answered",
        "caller",
        "clock",
        "facts",
        "is_stream",
        "milliseconds",
        "permit",
        "started",
        "turn",
        "turn_id",
    )

    def __init__(self, clock: Clock) -> None:
        """Start the first beat."""
        self.clock = clock
        self.turn_id = new_id("req")
        self.milliseconds: dict[str, float] = {}
        self.facts: dict[str, Any] = {}
        self.caller: Caller | None = None
        self.permit: Permit | None = None
        self.turn: Turn | None = None
        self.answered: float | None = None
        self.is_stream = False
        self.started = self._mark = clock.monotonic()

    def beat(self, name: str) -> None:
        """End the beat `name` here; the next one begins."""
        now = self.clock.monotonic()
        self.milliseconds[name] = round((now - self._mark) * 1000, 3)
        self._mark = now

    @property
    def observed(self) -> list[str]:
        """Checks that would have refused this turn, were they not merely observed."""
        ruled = self.facts.get("policy", {})
        denied = ruled.get("observed") and not all(target["allowed"] for target in ruled["targets"])
        scanned = self.facts.get("scan", {})
        return (
            ["policy"] * bool(denied)
            + ["limits"] * bool(self.permit and self.permit.observed)
            + ["scan"] * bool(scanned.get("observed") and scanned["found"])
        )

    def admission(self, event: str = "turn.admitted") -> AuditRecord:
        """What the trail keeps of this turn so far."""
        caller, body = self.caller, {**self.facts, "milliseconds": self.milliseconds.copy()}
        if caller is None:
            return AuditRecord(event, body, self.turn_id)
        body["key"], body["user"] = caller.key_id, caller.user
        body["use_case"], body["data_class"] = caller.use_case, caller.data_class.label
        return AuditRecord(event, body, self.turn_id, caller.app, caller.department)
