"""Whether what was heard is what must come: statuses, OpenAI's error object, the end of the connection."""

import json

from tests.hostile.table import Case
from tests.hostile.wire import Answer, Heard

_KEYS = {"message", "type", "param", "code"}


def fault_of(case: Case, heard: Heard) -> str:
    """What is wrong with what was heard; empty where nothing is."""
    told = [answer.status for answer in heard.answers]
    if heard.malformed:
        return f"{heard.malformed} after {told[:8]}"
    for answer in heard.answers:
        wrong = _fault_of_answer(answer, heads_only=case.heads_only)
        if wrong:
            return wrong
    must = case.must
    if must.closes and heard.end == "open":
        return f"open after {heard.seconds:.1f} s, having said {_short(told)}"
    due = must.answers
    least = len(due) if must.least is None or heard.end == "open" else must.least
    if least <= len(told) <= len(due) and all(status in each for status, each in zip(told, due, strict=False)):
        return ""
    return f"{_short(told)} where {_short([sorted(each) for each in due])} is due, {heard.end}"


def fault_of_damaged(case: Case, heard: Heard) -> str:
    """As for any case, but that nobody knows how many answers are due, and that it leaves in the middle of one."""
    if not heard.answers:
        return "" if heard.end != "open" else f"open after {heard.seconds:.1f} s"
    if heard.malformed and not heard.malformed.startswith("ended within"):
        return heard.malformed
    return next(filter(None, (_fault_of_answer(each, heads_only=case.heads_only) for each in heard.answers)), "")


def _fault_of_answer(answer: Answer, *, heads_only: bool) -> str:
    if answer.status >= 500:
        return f"{answer.status}: {answer.body[:200]!r}"
    if answer.status < 400 or heads_only:
        return ""
    if answer.headers.get("content-type", "") != "application/json":
        return f"{answer.status} as {answer.headers.get('content-type')}"
    try:
        error = json.loads(answer.body)["error"]
    except (ValueError, KeyError, TypeError):
        return f"{answer.status} without an error object: {answer.body[:100]!r}"
    if not isinstance(error, dict) or set(error) != _KEYS or not error["message"] or not error["type"]:
        return f"{answer.status} with another error object: {answer.body[:100]!r}"
    return (
        "" if answer.headers.get("x-should-retry") in {"true", "false"} else f"{answer.status} without x-should-retry"
    )


def _short(told: list) -> str:
    return str(told if len(told) < 9 else [*told[:4], "...", *told[-4:]])
