"""Admission control: when places are counted, how many there are, and what a refusal tells whom."""

import asyncio
import logging
from collections.abc import Callable

import msgspec
import pytest
from prometheus_client import CollectorRegistry

from gateway.metrics import Metrics
from gateway.overload import Admission, is_one_turn
from kernel import AuditRecord, StoreUnavailable
from tests.conftest import StillClock

MARK = 0.01


class Loop:
    """An admission whose rounds last as long as they are told to, and the queue of its ledger."""

    def __init__(self, clock: StillClock) -> None:
        self.clock = clock
        self.waiting = 0
        self.registry = CollectorRegistry()
        self.admission = Admission(
            clock=clock, waiting=lambda: self.waiting, round_seconds_max=MARK, metrics=Metrics(self.registry)
        )

    async def round(self, seconds: float, arrivals: int = 1) -> int:
        """Let so many ask in a round of this length; how many were taken."""
        taken = sum(self.admission.take() for _ in range(arrivals))
        await asyncio.sleep(0)
        self.clock.advance(seconds)
        await asyncio.sleep(0)
        return taken

    async def overload(self, seconds: float = 2 * MARK, arrivals: int = 50) -> None:
        """Long rounds until places are counted."""
        for _ in range(100):
            if await self.round(seconds, arrivals) < arrivals:
                return
        raise AssertionError("never full")


@pytest.fixture
def loop(clock: StillClock) -> Loop:
    return Loop(clock)


async def test_who_is_not_asked_too_much_takes_everybody(loop: Loop) -> None:
    assert [await loop.round(MARK / 2, arrivals=500) for _ in range(200)] == [500] * 200


async def test_one_long_round_is_no_overload_and_neither_is_a_burst(loop: Loop) -> None:
    assert await loop.round(5.0, arrivals=500) == 500
    assert await loop.round(MARK / 2, arrivals=500) == 500
    for _ in range(5):  # a tenth of a second of them
        assert await loop.round(2 * MARK, arrivals=500) == 500
    assert await loop.round(MARK / 2, arrivals=500) == 500


async def test_long_rounds_that_last_are(loop: Loop) -> None:
    began = loop.clock.seconds
    await loop.overload()
    assert 0.25 <= loop.clock.seconds - began < 0.5
    assert loop.admission.refused > 0


async def test_long_rounds_take_fewer_and_short_ones_with_refusals_more(loop: Loop) -> None:
    await loop.overload()
    fewer = [await loop.round(2 * MARK, 500) for _ in range(5)]
    assert fewer == sorted(fewer, reverse=True)
    assert fewer[-1] < fewer[0]
    more = [await loop.round(MARK / 2, 500) for _ in range(20)]
    assert more == sorted(more)
    assert more[-1] > more[0]


async def test_some_are_always_taken(loop: Loop) -> None:
    await loop.overload()
    assert [await loop.round(1.0, 500) for _ in range(100)][-1] == 8


async def test_it_is_over_two_seconds_after_the_last_refusal(loop: Loop) -> None:
    await loop.overload()
    for _ in range(600):
        assert await loop.round(MARK / 2, arrivals=1) == 1
    assert await loop.round(MARK / 2, arrivals=10_000) == 10_000


async def test_what_comes_after_a_pause_is_not_judged_by_what_was_before_it(loop: Loop) -> None:
    await loop.overload()
    loop.clock.advance(60)
    await loop.round(MARK / 2)
    await loop.round(MARK / 2)
    assert await loop.round(MARK / 2, arrivals=10_000) == 10_000


async def test_who_would_wait_for_more_than_one_transaction_is_refused_at_once(loop: Loop) -> None:
    loop.waiting = 257
    await loop.round(MARK / 10)
    assert await loop.round(MARK / 10, arrivals=10) == 0
    loop.waiting = 10
    await loop.round(MARK / 10)  # refused by what was seen before
    assert await loop.round(MARK / 10, arrivals=10) == 10


async def test_the_room_at_the_books_bounds_a_round_of_an_overload(loop: Loop) -> None:
    await loop.overload(arrivals=200)
    loop.waiting = 250
    await loop.round(MARK / 2, 200)
    assert await loop.round(MARK / 2, 200) == 6


async def test_a_refusal_says_what_to_do_and_not_everybody_the_same_instant(loop: Loop) -> None:
    answers = [loop.admission.answer() for _ in range(8)]
    for whole, head, body in answers:
        assert whole.startswith(b"HTTP/1.1 503 Service Unavailable\r\n" + head)
        assert whole.endswith(b"content-length: %d\r\n\r\n%b" % (len(body), body))
        assert b"x-should-retry: true\r\n" in head
        assert b"retry-after: " in head
        error = msgspec.json.decode(body)["error"]
        assert error["code"] == "overloaded"
        assert set(error) == {"message", "type", "param", "code"}
    assert len(set(answers)) == len(answers)


async def _told(admission: Admission, record: Callable[[AuditRecord], object], seconds: float) -> None:
    """Let it tell for so long."""

    async def write(told: AuditRecord) -> None:
        record(told)

    telling = asyncio.create_task(admission.tell(write, seconds=0.001))
    await asyncio.sleep(seconds)
    telling.cancel()


async def test_refusals_are_counted_in_the_log_the_metrics_and_the_trail(
    loop: Loop, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    loop.admission.refused = 5000
    records: list[AuditRecord] = []
    await _told(loop.admission, records.append, 0.02)
    assert [(each.event, each.body) for each in records] == [("turns.refused", {"code": "overloaded", "count": 5000})]
    assert loop.registry.get_sample_value("penstock_overload_refusals_total") == 5000
    assert len(caplog.records) == 1


async def test_what_the_trail_could_not_take_is_in_its_next_record(loop: Loop) -> None:
    records: list[AuditRecord] = []
    tries = 0

    def away_at_first(told: AuditRecord) -> None:
        nonlocal tries
        tries += 1
        if tries == 1:
            loop.admission.refused += 2
            raise StoreUnavailable("away")
        records.append(told)

    loop.admission.refused = 3
    await _told(loop.admission, away_at_first, 0.05)
    assert [each.body["count"] for each in records] == [5]


PLAIN = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("half a head", PLAIN[:40]),
        ("half a body", PLAIN[:-1]),
        ("more than the body", PLAIN + b"GET"),
        ("two of them", PLAIN + PLAIN),
        ("no length", PLAIN.replace(b"Content-Length: 2\r\n", b"")),
        ("two lengths", PLAIN.replace(b"Host", b"Content-Length: 2\r\nHost")),
        ("a length that is none", PLAIN.replace(b": 2", b": +2")),
        ("chunks", PLAIN.replace(b"Host", b"Transfer-Encoding: chunked\r\nHost")),
        ("chunks, written oddly", PLAIN.replace(b"Host", b"Transfer-Encoding : chunked\r\nHost")),
        ("a connection that ends", PLAIN.replace(b"Host", b"Connection: close\r\nHost")),
        ("who waits for 100", PLAIN.replace(b"Host", b"Expect: 100-continue\r\nHost")),
        ("an upgrade", PLAIN.replace(b"Host", b"Upgrade: h2c\r\nHost")),
        ("HTTP/1.0", PLAIN.replace(b"1.1", b"1.0")),
        ("nothing", b""),
    ],
)
def test_what_is_special_is_left_to_the_parser(name: str, data: bytes) -> None:
    assert not is_one_turn(data), name


def test_a_plain_request_in_one_piece_is_known(loop: Loop) -> None:
    assert is_one_turn(PLAIN)
    assert is_one_turn(PLAIN.replace(b"Content-Length", b"content-length"))


async def test_deciding_costs_well_below_a_microsecond(loop: Loop) -> None:
    del loop  # a clock that stands still would flatter it
    from time import perf_counter  # noqa: PLC0415

    from kernel import SystemClock  # noqa: PLC0415

    admission = Admission(
        clock=SystemClock(), waiting=lambda: 0, round_seconds_max=MARK, metrics=Metrics(CollectorRegistry())
    )
    best = 1.0
    for _ in range(20):
        began = perf_counter()
        for _ in range(2000):
            admission.take()
        best = min(best, (perf_counter() - began) / 2000)
        await asyncio.sleep(0.003)
    assert best < 1e-6
