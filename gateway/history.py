"""What happened to one request: the trail and the books of its turn, told without content."""

from datetime import datetime
from typing import Any

from cost import Ledger, TurnEntries
from gateway.errors import NotFound
from governance import AuditReader, StoredRecord
from kernel import Caller, Role, format_usd

_BEATS = ("identify", "admit", "hold", "do", "settle")


class History:
    """Explains turns to the app that made them, and to administrators."""

    def __init__(self, ledger: Ledger, trail: AuditReader) -> None:
        self._ledger = ledger
        self._trail = trail

    async def explain(self, caller: Caller, turn_id: str) -> dict[str, Any]:
        """Plan, attempts, milliseconds per beat, policy and limits met, cost with price ids.

        Raises NotFound for turns of other apps, exactly as for turns that never were.
        """
        records = await self._trail.of_turn(turn_id)
        admin = Role.PLATFORM_ADMIN in caller.roles
        if not records or not (admin or (caller.app is not None and records[0].app == caller.app)):
            raise NotFound(f"There is no request {turn_id[:64]} of yours.")
        first, last = records[0], records[-1]
        entries = await self._ledger.request(turn_id)
        ended = last.event in {"turn.ended", "turn.refused", "turn.swept"}
        told = {
            "id": turn_id,
            "object": "request",
            "at": first.at.isoformat(),
            "app": first.app,
            "department": first.department,
            **first.body,
            "outcome": last.body.get("outcome", last.event.removeprefix("turn.")) if ended else "open",
        }
        if ended and last is not first:
            told |= {key: value for key, value in last.body.items() if key != "milliseconds"}
        told["milliseconds"] = _milliseconds(first, last)
        told["attempts"] = _attempts(entries) if entries else []
        told["cost_usd"] = format_usd(sum(row["cost_nano_usd"] for row in told["attempts"]))
        return told


def _milliseconds(first: StoredRecord, last: StoredRecord) -> dict[str, float]:
    """Time per beat, in the order of the beats; settling lasts until its record was written."""
    spent = {**first.body.get("milliseconds", {}), **last.body.get("milliseconds", {})}
    if "ended_at" in last.body:
        spent["settle"] = round((last.at - datetime.fromisoformat(last.body["ended_at"])).total_seconds() * 1000, 3)
    return {beat: spent[beat] for beat in _BEATS if beat in spent}


def _attempts(entries: TurnEntries) -> list[dict[str, Any]]:
    """One row per attempt: its hold, how it ended, and each later correction."""
    rows: dict[int, dict[str, Any]] = {}
    for entry in entries.entries:
        if entry.step == 0:
            rows[entry.attempt] = {
                "attempt": entry.attempt,
                "target": entry.target,
                "provider": entry.provider,
                "price_id": entry.price_id,
                "held_nano_usd": entry.amount_nano_usd,
                "state": "pending",
                "cost_nano_usd": 0,
                "tokens": {},
                "estimated": False,
                "provider_request_id": None,
            }
            continue
        row = rows[entry.attempt]
        row["cost_nano_usd"] += entry.amount_nano_usd
        for part, count in entry.tokens.items():
            row["tokens"][part] = row["tokens"].get(part, 0) + count
        if entry.step == 1:
            row |= {"state": "posted" if entry.kind == "post" else "voided", "estimated": entry.estimated}
            row |= {"provider_request_id": entry.provider_request_id, "reason": entry.reason}
        else:
            row["estimated"] = False
            row["corrected"] = True
    return list(rows.values())
