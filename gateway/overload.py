"""Admission control: whether this process can take one more turn, decided before anything of it is looked at.

Two queues are measured, once in a round of the event loop: the loop itself, by how long the round takes, and the steps
that wait for the books. Streams between two events and turns that wait for their provider stand in neither. Where one
stands for a while, each round takes so many turns as bring its length to the mark and refuses the others. At three
times what can be done two of three are refused, and those that are served pay for them: so a refusal costs a
twentieth of a turn, and the trail is told of all of them once a second.

It knows no callers: who asks for more than is theirs is limits' business. Losing it would mean to allow.
"""

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import cycle
from typing import NamedTuple, Self

from gateway.errors import Overloaded, encode_error, error_lines
from gateway.metrics import Metrics
from gateway.request import STATUS_LINES
from kernel import AuditRecord, Clock, PlatformError

_log = logging.getLogger("penstock.overload")

_STANDING_SECONDS = 0.25  # a burst that is worked off by then is none
_CALM_SECONDS = 2.0  # so long without a refusal, and places are not counted any more
_LOOK_SECONDS = 0.002
_STEPS_WAITING = 256  # as many as one transaction takes
_FEWER, _MORE = 0.9, 1.05
_PLACES_MIN = 8.0  # fewer would not shorten a round: something else does that
_TELL_SECONDS = 1.0
# Not all at the same instant: they would come back as they went.
_LATER_SECONDS = (1.0, 1.12, 1.25, 1.37, 1.5, 1.62, 1.75, 1.87)


class Admission:
    """The places for new turns: endless, until a queue has stood for a while.

    refused: how often no place was left. round_seconds: the last round of the event loop that was measured.
    """

    def __init__(self, *, clock: Clock, waiting: Callable[[], int], round_seconds_max: float, metrics: Metrics) -> None:
        """waiting: steps that wait for the books. round_seconds_max: the mark for the length of a round."""
        self.refused = 0
        self.round_seconds = 0.0
        self._clock = clock
        self._waiting = waiting
        self._round_seconds_max = round_seconds_max
        self._metrics = metrics
        self._places = self._open = math.inf  # in a round as it goes, and in this one
        self._taken = self._refused_before = 0
        self._look_at = self._began = self._refused_at = 0.0
        self._standing_since: float | None = None
        self._answers = cycle([Refusal.after(seconds) for seconds in _LATER_SECONDS])
        metrics.watch_rounds(lambda: self.round_seconds)

    def take(self) -> bool:
        """Whether a turn may begin now; if so it has its place."""
        if self._clock.monotonic() >= self._look_at:
            self._look_at = math.inf
            asyncio.get_running_loop().call_soon(self._begin)
        if self._taken < self._open:
            self._taken += 1
            return True
        self.refused += 1
        return False

    def answer(self) -> "Refusal":
        """What who was not taken is told."""
        return next(self._answers)

    async def tell(self, record: Callable[[AuditRecord], Awaitable[None]], seconds: float = _TELL_SECONDS) -> None:
        """For ever: tell log, metrics and trail how many were refused; each at most once in so many seconds."""
        told = recorded = 0
        while True:
            await asyncio.sleep(seconds)
            refused = self.refused
            if refused > told:
                self._metrics.refused(refused - told)
                _log.warning("%d requests were refused: more come than this process can do", refused - told)
                told = refused
            if refused > recorded:
                with suppress(PlatformError):  # what cannot be written now is in the next record
                    await record(AuditRecord("turns.refused", {"code": Overloaded.code, "count": refused - recorded}))
                    recorded = refused

    def _begin(self) -> None:
        self._began = self._clock.monotonic()
        asyncio.get_running_loop().call_soon(self._end)

    def _end(self) -> None:
        """A round has passed since `_begin`, whatever came and went in it."""
        now = self._clock.monotonic()
        self.round_seconds = now - self._began
        room = _STEPS_WAITING - self._waiting()
        taken, self._taken = self._taken, 0
        refused, self._refused_before = self.refused > self._refused_before, self.refused
        if self._places == math.inf:
            self._look_for_standing(now, taken, stands=self.round_seconds > self._round_seconds_max or room < 0)
            self._open, self._look_at = (math.inf, now + _LOOK_SECONDS) if room >= 0 else (0, now)
            return
        self._count_places(now, refused=refused)
        self._look_at = now
        self._open = min(self._places, room)
        if refused or taken:  # every round, while there is something to decide
            self._look_at = math.inf
            self._begin()

    def _look_for_standing(self, now: float, taken: int, *, stands: bool) -> None:
        if not stands:
            self._standing_since = None
        elif self._standing_since is None:
            self._standing_since = now
        elif now - self._standing_since >= _STANDING_SECONDS:
            self._places = max(_PLACES_MIN, taken * min(1.0, self._round_seconds_max / self.round_seconds))
            self._refused_at = now

    def _count_places(self, now: float, *, refused: bool) -> None:
        if refused:
            self._refused_at = now
        if now - self._refused_at > _CALM_SECONDS:
            self._places, self._standing_since = math.inf, None
        elif self.round_seconds > self._round_seconds_max:
            self._places = max(_PLACES_MIN, self._places * _FEWER)
        elif refused:
            self._places *= _MORE


class Refusal(NamedTuple):
    """An answer made beforehand. whole: with status line and length; head: its other header lines."""

    whole: bytes
    head: bytes
    body: bytes

    @classmethod
    def after(cls, seconds: float) -> Self:
        """One that says to come back after so long."""
        error = Overloaded(
            "This process has more to do than it can; try again in a moment.", retry_after_seconds=seconds
        )
        head, body = error_lines(error), encode_error(error)
        begin = STATUS_LINES[error.status]
        return cls(b"%b%bcontent-length: %d\r\n\r\n%b" % (begin, head, len(body), body), head, body)


def is_one_turn(data: bytes) -> bool:
    """Whether this is one request of HTTP/1.1 and all of it, framed as nearly everybody frames them.

    What is special, or could be read differently by somebody in between, is none.
    """
    end = data.find(b"\r\n\r\n")
    head = data[: end + 2].lower()
    return (
        b"\r\ncontent-length: %d\r\n" % (len(data) - end - 4) in head
        and head.count(b"content-length") == 1
        and b" http/1.1\r\n" in head
        and not (b"transfer-encoding" in head or b"expect" in head or b"upgrade" in head or b"close" in head)
    )
