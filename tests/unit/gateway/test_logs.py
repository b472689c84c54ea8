"""Log lines beside a sink that is slow, hangs or is gone: what it costs is lines, never memory, order or the loop."""

import asyncio
import fcntl
import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from threading import Thread

import pytest

from gateway.logs import Lines
from kernel import SystemClock
from tests.conftest import StillClock

LINES_MAX = 10_000


class Sink:
    """A pipe: nobody reads it until somebody does."""

    def __init__(self) -> None:
        self.out, self.descriptor = os.pipe()
        fcntl.fcntl(self.descriptor, fcntl.F_SETPIPE_SZ, 4096)
        self._taken = bytearray()
        self._reader = Thread(target=self._read, daemon=True)

    @property
    def is_read(self) -> bool:
        """Whether anybody ever read."""
        return self._reader.ident is not None

    def read_on(self) -> None:
        """Begin to read."""
        self._reader.start()

    def wait(self) -> None:
        """Until nothing more can come."""
        self._reader.join(5)

    def end(self) -> list[dict[str, object]]:
        """What came, once nothing more can."""
        os.close(self.descriptor)
        self.descriptor = -1
        self.wait()
        return [json.loads(line) for line in self._taken.splitlines()]

    def _read(self) -> None:
        while data := os.read(self.out, 65536):
            self._taken += data


@pytest.fixture
def sink() -> Iterator[Sink]:
    made = Sink()
    yield made
    for descriptor in (made.descriptor, made.out):
        with suppress(OSError):  # closed by the test
            os.close(descriptor)
        if made.is_read:
            made.wait()


@pytest.fixture
def lines(sink: Sink, clock: StillClock) -> Iterator[Lines]:
    made = Lines(sink.descriptor, clock)
    made.start()
    yield made
    if made._writer.is_alive() and not sink.is_read:
        sink.read_on()  # so that its thread can end
    made.stop()


def test_lines_are_written_in_the_order_in_which_they_were_logged(sink: Sink, lines: Lines) -> None:
    sink.read_on()
    for number in range(1_000):
        lines.line("penstock.turn", "turn", {"number": number})
    lines.stop()
    assert [line["number"] for line in sink.end()] == list(range(1_000))


def test_records_of_others_keep_their_place_between_lines(sink: Sink, lines: Lines) -> None:
    sink.read_on()
    logger = logging.Logger("else")  # noqa: LOG001 - of this test alone
    logger.addHandler(lines)
    lines.line("penstock.turn", "first", {})
    logger.warning("second of %d", 3)
    lines.line("penstock.turn", "third", {})
    lines.stop()
    assert [(line["level"], line["message"]) for line in sink.end()] == [
        ("info", "first"),
        ("warning", "second of 3"),
        ("info", "third"),
    ]


def test_an_exception_is_logged_by_type_and_place_and_never_by_its_text(sink: Sink, lines: Lines) -> None:
    sink.read_on()
    logger = logging.Logger("else")  # noqa: LOG001 - of this test alone
    logger.addHandler(lines)
    try:
        raise ValueError("the prompt was: my secret")  # noqa: TRY301
    except ValueError:
        logger.exception("it broke")
    lines.stop()
    (line,) = sink.end()
    assert line["exception"] == "ValueError"
    assert str(line["where"]).startswith("test_logs.py:")
    assert "secret" not in json.dumps(line)


def test_the_end_writes_what_waits(sink: Sink, lines: Lines) -> None:
    sink.read_on()
    lines.line("penstock", "the last words", {})
    lines.stop()  # at once, before anything was gathered
    assert [line["message"] for line in sink.end()] == ["the last words"]


def test_a_hung_sink_does_not_hold_up_the_end_for_longer_than_two_seconds(sink: Sink, lines: Lines) -> None:
    for number in range(1_000):
        lines.line("penstock", "unread", {"number": number})
    began = time.monotonic()
    lines.stop()
    assert time.monotonic() - began < 4


def test_a_hung_sink_costs_lines_and_never_memory(sink: Sink, lines: Lines) -> None:
    for number in range(5 * LINES_MAX):
        lines.line("penstock.turn", "turn", {"number": number})
    assert len(lines._waiting) <= LINES_MAX
    assert sum(map(len, lines._waiting)) < LINES_MAX * 200


def test_what_a_hung_sink_cost_is_said_once_it_is_read_again(sink: Sink, lines: Lines) -> None:
    for number in range(3 * LINES_MAX):
        lines.line("penstock.turn", "turn", {"number": number})
    sink.read_on()
    lines.stop()
    told = sink.end()
    written = [line["number"] for line in told if "number" in line]
    dropped = sum(int(str(line["lines"])) for line in told if "lines" in line)
    assert written == sorted(written)
    assert len(written) + dropped == 3 * LINES_MAX
    assert dropped > 0
    assert written[0] == 0, "what came first is kept"


async def test_a_hung_sink_does_not_hold_up_the_loop(sink: Sink, lines: Lines) -> None:
    for number in range(LINES_MAX):  # the pipe is full by now, and its writer waits
        lines.line("penstock.turn", "turn", {"number": number})
    await asyncio.sleep(0.1)
    worst = 0.0
    for _ in range(1_000):
        began = time.thread_time()
        lines.line("penstock.turn", "turn", {})
        worst = max(worst, time.thread_time() - began)
        await asyncio.sleep(0)
    assert worst < 0.01, "time of this thread alone, so that a busy machine does not count"


def test_a_sink_that_is_gone_is_passed_over(sink: Sink, lines: Lines) -> None:
    os.close(sink.out)
    lines.line("penstock", "to nobody", {})
    lines.stop()
    assert not lines._writer.is_alive()


@pytest.mark.skipif(sys.platform != "linux", reason="counts its threads in /proc")
def test_a_hung_sink_has_one_thread_however_much_is_logged(sink: Sink, lines: Lines) -> None:
    tasks = Path("/proc/self/task")
    before = len(list(tasks.iterdir()))
    for number in range(LINES_MAX):
        lines.line("penstock.turn", "turn", {"number": number})
    assert len(list(tasks.iterdir())) == before


@pytest.mark.parametrize(("said", "of", "told"), [("a %s", "\ud800", "a ?"), ("%d rows", "no", "%d rows")])
def test_whoever_logs_does_not_fail_by_what_it_logs(said: str, of: str, told: str) -> None:
    read, write = os.pipe()
    lines = Lines(write, SystemClock())
    lines.start()
    lines.emit(logging.LogRecord("a", logging.INFO, "", 1, said, (of,), None))
    lines.stop()
    assert json.loads(os.read(read, 4096).splitlines()[0])["message"] == told
