"""Time, as an argument. Wall time is aware UTC; durations come from the monotonic clock."""

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """What everyone who needs the time receives, so that tests can hold it still."""

    def now(self) -> datetime:
        """The present instant, aware, in UTC."""
        ...

    def monotonic(self) -> float:
        """Seconds that never run backwards, for durations only."""
        ...


class SystemClock:
    """The machine's own clocks."""

    def now(self) -> datetime:
        """The present instant, aware, in UTC."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Seconds that never run backwards, for durations only."""
        return time.monotonic()
