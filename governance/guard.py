"""The content scan: what a request holds that asks for a higher data class. It raises, and never refuses or lowers.

It keeps nothing of what it reads, and does not decide who may use a raised request: that is policy's.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType

from governance.detectors import ESCAPE, EXPRESSIONS, HINTS, Detector, unescaped
from governance.directory import Directory
from governance.scanner import CANDIDATES_MAX, Candidate, Scanner
from kernel import Caller, Clock, DataClass, ModelRequest

_ESCAPE = len(EXPRESSIONS)


@dataclass(frozen=True)  # no slots: what was found in nearly all requests, nothing, is put into words once
class Findings:
    """How much was found by which detector, never what or where; what can be read in two ways counts twice.

    raised_to: the class that the findings ask for, where the caller's is lower. observed: it was not raised to it.
    """

    counts: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    raised_to: DataClass | None = None
    observed: bool = False

    def as_json(self) -> Mapping[str, object]:
        """JSON values for the trail."""
        return self._as_json

    @cached_property
    def _as_json(self) -> Mapping[str, object]:
        raised_to = None if self.raised_to is None else self.raised_to.label
        return {"found": dict(self.counts), "raised_to": raised_to} | ({"observed": True} if self.observed else {})


_NOTHING = Findings()


class Guard:
    """Looks through requests; those over a mebibyte may be inspected in threads."""

    def __init__(self, directory: Callable[[], Directory], *, clock: Clock) -> None:
        self._directory = directory
        self._clock = clock

    def prepare(self) -> None:
        """Compile what is looked for, a fifth of a second, so that the first request need not wait for it."""
        _ = self._scanner

    @cached_property
    def _scanner(self) -> Scanner:
        return Scanner([each.pattern for each in EXPRESSIONS], once=ESCAPE, hints=HINTS)

    def inspect(self, caller: Caller, request: ModelRequest) -> tuple[Caller, Findings]:
        """The caller, raised to what the request holds, and what that is. Takes time in proportion to the bytes."""
        # A line break ends whatever is found, so that no two members make one thing; their names carry text as well.
        counts = self._counts(b"\n".join((b"", *map(str.encode, request.fields), *request.fields.values(), b"")))
        return self._judged(caller, counts) if counts else (caller, _NOTHING)

    def _counts(self, text: bytes) -> Mapping[Detector, int]:
        candidates = self._scanner.candidates(text)
        if not candidates:
            return {}
        beyond = self._beyond(text, candidates)
        if _ESCAPE in beyond or any(each.expression == _ESCAPE for each in candidates):
            text = unescaped(text)
            candidates = self._scanner.candidates(text)
            beyond = self._beyond(text, candidates)
        found = {
            (expression.detector, each.start)
            for each in candidates
            if each.expression != _ESCAPE
            and (expression := EXPRESSIONS[each.expression]).holds(text, each.start, each.end)
        }
        # What nobody looks at any more counts as what it looks like.
        unseen = (EXPRESSIONS[each].detector for each in beyond if each != _ESCAPE)
        return Counter([*(detector for detector, _ in found), *unseen])

    def _beyond(self, text: bytes, candidates: list[Candidate]) -> list[int]:
        """What follows where there were too many candidates, from the sign on that ended the last one."""
        if len(candidates) < CANDIDATES_MAX:
            return []
        return self._scanner.expressions_after(text, candidates[-1].end - 1)

    def _judged(self, caller: Caller, counts: Mapping[Detector, int]) -> tuple[Caller, Findings]:
        directory = self._directory()
        asked = {each: directory.detectors[each] for each in counts}
        kept = {each.value: counts[each] for each in Detector if asked.get(each) is not None}
        highest = max((each for each in asked.values() if each is not None), default=caller.data_class)
        if highest <= caller.data_class:
            return caller, Findings(MappingProxyType(kept))
        observed = self._observed(directory, caller)
        findings = Findings(MappingProxyType(kept), highest, observed)
        return (caller if observed else caller.raised(highest)), findings

    def _observed(self, directory: Directory, caller: Caller) -> bool:
        app = directory.apps.get(caller.app or "")
        until = app.scan_observed_until if app else None
        return until is not None and self._clock.now().date() <= until
