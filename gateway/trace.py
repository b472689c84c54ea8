"""What is remembered of one turn while it runs: its id, its beats, and what was decided. Never content."""

from dataclasses import dataclass, field
from typing import Any

from cost import Turn
from governance import Permit
from kernel import AuditRecord, Caller, Clock, new_id


@dataclass(slots=True)
class Trace:
    """One turn's notes, filled beat by beat.

    milliseconds: time spent per beat, in the order of the beats. facts: what the admission record says.
    """

    clock: Clock
    turn_id: str = field(default_factory=lambda: new_id("req"))
    milliseconds: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    caller: Caller | None = None
    permit: Permit | None = None
    turn: Turn | None = None
    started: float = 0.0
    _mark: float = 0.0

    def __post_init__(self) -> None:
        """Start the first beat."""
        self.started = self._mark = self.clock.monotonic()

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
        caller = self.caller
        body = {**self.facts, "milliseconds": dict(self.milliseconds)}
        if caller is not None:
            body |= {
                "key": caller.key_id,
                "user": caller.user,
                "use_case": caller.use_case,
                "data_class": caller.data_class.label,
            }
        return AuditRecord(
            event,
            body,
            turn_id=self.turn_id,
            app=caller.app if caller else None,
            department=caller.department if caller else None,
        )
