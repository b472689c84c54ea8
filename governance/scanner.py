"""Finds where texts look like something worth a closer look, at the speed of memory. What it means is for others.

The only file that knows hyperscan. A database looks for all of its expressions in one pass over the bytes.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import hyperscan

CANDIDATES_MAX = 1_000  # verified within a few milliseconds
_LONG_BYTES = 1_048_576


class Candidate(NamedTuple):
    """Where an expression, by its index, matches, in bytes: the leftmost start for this end."""

    expression: int
    start: int
    end: int


class Scanner:
    """Looks for all `expressions` at once; they are PCRE without back-references and look-around.

    once: a further expression, the last by index, of which one match is enough and its start unknown. hints:
    expressions that cost less, one of which matches wherever any of the others does. Texts over a mebibyte may be
    scanned by several threads at once (the interpreter's lock is not held), shorter ones by one only.
    """

    def __init__(self, expressions: Sequence[bytes], *, once: bytes, hints: Sequence[bytes]) -> None:
        several, single = hyperscan.HS_FLAG_SOM_LEFTMOST, hyperscan.HS_FLAG_SINGLEMATCH
        self._hints = _Database(dict.fromkeys(hints, single))
        self._every = _Database({**dict.fromkeys(expressions, several), once: single})
        self._any = _Database(dict.fromkeys((*expressions, once), single))

    def candidates(self, text: bytes) -> list[Candidate]:
        """The first matches, in the order of their ends; where there are CANDIDATES_MAX there may be more."""
        if not self._hints.scan(text, _stop):
            return []
        found: list[Candidate] = []

        def take(expression: int, start: int, end: int, _flags: int, _context: object) -> bool:
            found.append(Candidate(expression, start, end))
            return len(found) >= CANDIDATES_MAX

        self._every.scan(text, take)
        return found

    def expressions_after(self, text: bytes, offset: int) -> list[int]:
        """Which expressions match in what follows, each told once, so that the time depends on the size alone."""
        found: list[int] = []

        def take(expression: int, _start: int, _end: int, _flags: int, _context: object) -> None:
            found.append(expression)

        self._any.scan(text[offset:], take)
        return found


class _Database:
    """Expressions with their flags, compiled once for the processor that this runs on."""

    def __init__(self, expressions: Mapping[bytes, int]) -> None:
        self._compiled = hyperscan.Database(mode=hyperscan.HS_MODE_BLOCK)
        self._compiled.compile(
            expressions=[*expressions],
            ids=range(len(expressions)),
            elements=len(expressions),
            flags=[*expressions.values()],
        )
        self._scratch = hyperscan.Scratch(self._compiled)

    def scan(self, text: bytes, take: Callable[[int, int, int, int, object], bool | None]) -> bool:
        """Hand every match to `take`, until it says that it has enough; whether it did."""
        scratch = self._scratch if len(text) < _LONG_BYTES else hyperscan.Scratch(self._compiled)
        try:
            self._compiled.scan(text, take, scratch=scratch)
        except hyperscan.ScanTerminated:
            return True
        return False


def _stop(_expression: int, _start: int, _end: int, _flags: int, _context: object) -> bool:
    return True
