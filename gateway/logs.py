"""Logs as JSON lines on standard error. A line is made where it is logged and written by a thread: a slow sink never
holds up a turn, and a hung one costs lines, never memory.
"""

import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

import msgspec

from kernel import Clock, SystemClock

_LINES_MAX = 10_000
_GATHERED_SECONDS = 0.05
_LAST_WORDS_SECONDS = 2.0

_encode = msgspec.json.Encoder().encode


class Lines(logging.Handler):
    """The lines that wait for the sink. At most 10,000 wait; further ones are dropped, and how many is said later."""

    def __init__(self, descriptor: int, clock: Clock) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._clock = clock
        self._waiting: deque[bytes] = deque()
        self._dropped = 0
        self._second = (-1, "")
        self._something = threading.Event()
        self._ending = False
        self._writer = threading.Thread(target=self._write_on, name="log", daemon=True)

    def start(self) -> None:
        """Begin to write."""
        self._writer.start()

    def stop(self) -> None:
        """Write what waits, as far as the sink takes it within two seconds."""
        self._ending = True
        self._something.set()
        self._writer.join(_LAST_WORDS_SECONDS)

    def line(self, logger: str, message: str, facts: Mapping[str, object], level: str = "info") -> None:
        """One line, at about a microsecond; for what is logged with every turn."""
        at = self._at(self._clock.now().timestamp())
        self._add(_encode({"at": at, "level": level, "logger": logger, "message": message, **facts}))

    def emit(self, record: logging.LogRecord) -> None:
        """Everybody else's records, by way of the standard library."""
        line = {
            "at": self._at(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(record),
        }
        if record.exc_info and record.exc_info[0] is not None:
            # The type and the place, not the message: an exception's text may quote what it choked on.
            line["exception"] = record.exc_info[0].__name__
            frame = record.exc_info[2]
            while frame is not None and frame.tb_next is not None:
                frame = frame.tb_next
            if frame is not None:
                line["where"] = f"{frame.tb_frame.f_code.co_filename.rpartition('/')[2]}:{frame.tb_lineno}"
        self._add(_encode(line))

    def _add(self, line: bytes) -> None:
        if len(self._waiting) >= _LINES_MAX:
            self._dropped += 1
            return
        self._waiting.append(line)
        if not self._something.is_set():
            self._something.set()

    def _at(self, seconds: float) -> str:
        whole = int(seconds)
        of, stamp = self._second
        if whole != of:
            stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole))
            self._second = (whole, stamp)
        return f"{stamp}.{int((seconds - whole) * 1000):03d}Z"

    def _write_on(self) -> None:
        while not (self._ending and not self._waiting):
            self._something.wait()
            if not self._ending:
                time.sleep(_GATHERED_SECONDS)  # a thread that woke for every line would take turns with the event loop
            self._something.clear()
            lines = [self._waiting.popleft() for _ in range(len(self._waiting))]
            if self._dropped:
                dropped, self._dropped = self._dropped, 0
                self.line("penstock.logs", "lines were dropped: the sink was slow", {"lines": dropped}, "warning")
            if lines:
                with suppress(OSError):  # nobody reads any more
                    _write_all(self._descriptor, b"\n".join(lines) + b"\n")


def _message(record: logging.LogRecord) -> str:
    # Whoever logs must not fail by it: neither by arguments that do not fit, nor by text that is none in UTF-8.
    try:
        message = record.getMessage()
    except (TypeError, ValueError):
        message = str(record.msg)
    return message.encode(errors="replace").decode()


@contextmanager
def json_logs(level: int = logging.INFO) -> Iterator[Lines]:
    """Log as JSON while the context is open."""
    lines = Lines(sys.stderr.fileno(), SystemClock())
    root = logging.getLogger()
    root.handlers[:] = [lines]
    root.setLevel(level)
    for chatty in ("uvicorn.access", "aiosqlite", "alembic.runtime.migration"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    lines.start()
    try:
        yield lines
    finally:
        lines.stop()


def _write_all(descriptor: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]
