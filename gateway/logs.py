"""Logs as JSON lines on standard error, written by a thread of their own: a slow sink never holds up a turn."""

import logging
import queue
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import QueueHandler, QueueListener

import msgspec

_LINES_MAX = 10_000


class _JsonLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "at": self.formatTime(record, "%Y-%m-%dT%H:%M:%S") + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info and record.exc_info[0] is not None:
            # The type and the place, not the message: an exception's text may quote what it choked on.
            line["exception"] = record.exc_info[0].__name__
            frame = record.exc_info[2]
            while frame is not None and frame.tb_next is not None:
                frame = frame.tb_next
            if frame is not None:
                line["where"] = f"{frame.tb_frame.f_code.co_filename.rpartition('/')[2]}:{frame.tb_lineno}"
        return msgspec.json.encode(line).decode()


class _Lossy(QueueHandler):
    """Drops lines rather than wait when the sink hangs."""

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            self.queue.put_nowait(record)
        except queue.Full:
            return

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        return record


@contextmanager
def json_logs(level: int = logging.INFO) -> Iterator[None]:
    """Log as JSON while the context is open; at most 10,000 lines wait, further ones are dropped."""
    sink = logging.StreamHandler(sys.stderr)
    formatter = _JsonLine()
    formatter.converter = time.gmtime
    sink.setFormatter(formatter)
    lines: queue.Queue[logging.LogRecord] = queue.Queue(_LINES_MAX)
    listener = QueueListener(lines, sink)
    root = logging.getLogger()
    root.handlers[:] = [_Lossy(lines)]
    root.setLevel(level)
    for chatty in ("uvicorn.access", "aiosqlite", "alembic.runtime.migration"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    listener.start()
    try:
        yield
    finally:
        listener.stop()
