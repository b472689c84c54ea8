"""Circuits: when they open, for how long, who may probe, and what says nothing about a target."""

import asyncio
import random
from contextlib import aclosing

import pytest
from prometheus_client import CollectorRegistry

from router import (
    Health,
    HealthMetrics,
    TargetsResting,
    UpstreamBroken,
    UpstreamBusy,
    UpstreamError,
    UpstreamFailed,
    UpstreamOverlong,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from tests.fakes.routing import Sent, chat, document, several, upstreams_of

KNOWN = several("m", "n")
TARGET, OTHER = KNOWN.targets["m"], KNOWN.targets["n"]
FAILED = UpstreamFailed("m", 500)


class Longest(random.Random):
    """Draws the longest rest every time, and remembers what it was asked for."""

    def __init__(self) -> None:
        super().__init__(0)
        self.bounds: list[tuple[float, float]] = []

    def uniform(self, a: float, b: float) -> float:
        self.bounds.append((a, b))
        return b


@pytest.fixture
def dice() -> Longest:
    return Longest()


@pytest.fixture
def health(dice, clock) -> Health:
    return Health(lambda: KNOWN, dice=dice, clock=clock)


def calls(health: Health, *endings: BaseException | None) -> None:
    """One call after the other, each ended so."""
    for ending in endings:
        call = health.call(TARGET)
        call.__enter__()
        call.__exit__(type(ending) if ending else None, ending, None)


def state(health: Health) -> float:
    return next(reading.state for reading in health.readings() if reading.target == "m")


def opened(health: Health, clock, times: int = 1) -> None:
    """Open the circuit, and again with each probe; it rests at the end."""
    calls(health, *[FAILED] * 5)
    for _ in range(times - 1):
        clock.advance(health.rest_seconds(TARGET))
        calls(health, FAILED)


class TestOpening:
    @pytest.mark.parametrize(
        "fault",
        [UpstreamUnreachable("x"), UpstreamTimeout("m", "answer", sent=True), FAILED, UpstreamBroken("x"),
         UpstreamBusy("m"), UpstreamBusy("m", 0.0)],
    )  # fmt: skip
    def test_five_faults_in_a_row_open_it(self, health, fault):
        calls(health, *[fault] * 4)
        assert health.offer(TARGET)
        calls(health, fault)
        assert not health.offer(TARGET)
        assert state(health) == 0
        assert health.offer(OTHER)

    @pytest.mark.parametrize("proof", [None, UpstreamRefused("no")])
    def test_an_answer_in_between_begins_the_row_anew(self, health, proof):
        calls(health, *[FAILED] * 4, proof, *[FAILED] * 4)
        assert health.offer(TARGET)

    @pytest.mark.parametrize("ending", [asyncio.CancelledError(), GeneratorExit(), RuntimeError("a bug of ours")])
    def test_a_caller_who_leaves_has_no_opinion(self, health, ending):
        calls(health, *[ending] * 9, *[FAILED] * 4, ending)
        assert health.offer(TARGET)
        calls(health, FAILED)
        assert not health.offer(TARGET)

    @pytest.mark.parametrize("error", [UpstreamBusy, lambda *given: UpstreamFailed(given[0], 503, given[1])])
    @pytest.mark.parametrize(("told", "rest_seconds"), [(7.0, 7.0), (3600.0, 60.0)])
    def test_a_provider_that_says_when_is_left_alone_until_then(self, health, clock, error, told, rest_seconds):
        calls(health, error("m", told))
        assert health.rest_seconds(TARGET) == rest_seconds
        clock.advance(rest_seconds - 0.01)
        assert not health.offer(TARGET)
        clock.advance(0.01)
        assert health.offer(TARGET)

    def test_rests_double_up_to_a_minute_with_full_jitter(self, health, dice, clock):
        opened(health, clock, times=9)
        assert dice.bounds == [(0, min(60, 2**n)) for n in range(9)]

    def test_a_rest_is_never_longer_than_its_bound(self, clock):
        health = Health(lambda: KNOWN, dice=random.Random(5), clock=clock)
        rests = []
        for bound in (1, 2, 4, 8):
            calls(health, *[FAILED] * (5 if bound == 1 else 1))
            rests.append(health.rest_seconds(TARGET) / bound)
            clock.advance(bound)
        assert all(0 < rest <= 1 for rest in rests)
        assert len(set(rests)) == 4

    def test_faults_of_calls_that_were_under_way_do_not_prolong_it(self, health, dice):
        under_way = [health.call(TARGET).__enter__() for _ in range(20)]
        for call in under_way:
            call.__exit__(UpstreamFailed, FAILED, None)
        assert dice.bounds == [(0, 1)]

    def test_a_shorter_word_of_the_provider_does_not_shorten_its_rest(self, health):
        under_way = [health.call(TARGET).__enter__() for _ in range(2)]
        for call, seconds in zip(under_way, (30.0, 5.0), strict=True):
            call.__exit__(UpstreamBusy, UpstreamBusy("m", seconds), None)
        assert health.rest_seconds(TARGET) == 30

    def test_many_who_are_told_when_at_once_are_one_opening(self, health, dice, clock):
        under_way = [health.call(TARGET).__enter__() for _ in range(20)]
        for call in under_way:
            call.__exit__(UpstreamBusy, UpstreamBusy("m", 5.0), None)
        clock.advance(5)
        calls(health, FAILED)
        assert dice.bounds == [(0, 2)]

    def test_an_answer_that_is_longer_than_we_take_is_not_the_targets_fault(self, health, clock):
        calls(health, *[UpstreamOverlong("x")] * 9, *[FAILED] * 4, UpstreamOverlong("x"))
        assert health.offer(TARGET)
        calls(health, FAILED)
        assert not health.offer(TARGET)
        clock.advance(1)
        calls(health, UpstreamOverlong("x"))
        assert state(health) == 0.5
        assert health.offer(TARGET)

    def test_an_answer_to_a_call_that_was_under_way_does_not_close_it(self, health, clock):
        early = health.call(TARGET).__enter__()
        opened(health, clock)
        early.__exit__(None, None, None)
        assert state(health) == 0


class TestProbing:
    def test_a_probe_that_is_answered_closes_it_and_rests_begin_anew(self, health, dice, clock):
        opened(health, clock, times=3)
        clock.advance(60)
        assert state(health) == 0.5
        calls(health, None)
        assert state(health) == 1
        opened(health, clock)
        assert dice.bounds[-1] == (0, 1)

    def test_only_one_turn_is_offered_the_probe(self, health, clock):
        opened(health, clock)
        clock.advance(1)
        offers = [health.offer(TARGET) for _ in range(100)]
        assert [bool(offer) for offer in offers] == [True] + [False] * 99
        assert health.rest_seconds(TARGET) == 1

    def test_an_offer_that_was_not_taken_is_given_back(self, health, clock):
        opened(health, clock)
        clock.advance(1)
        offer = health.offer(TARGET)
        health.withdraw(offer)
        assert health.offer(TARGET)

    def test_withdrawing_what_was_offered_before_it_opened_leaves_the_probe_to_whom_it_was_offered(self, health, clock):
        stale = health.offer(TARGET)
        opened(health, clock)
        clock.advance(1)
        assert health.offer(TARGET)
        health.withdraw(stale)
        assert not health.offer(TARGET)

    def test_withdrawing_does_not_end_a_probe_that_runs(self, health, clock):
        opened(health, clock)
        clock.advance(1)
        offer = health.offer(TARGET)
        with health.call(TARGET):
            health.withdraw(offer)
            assert not health.offer(TARGET)

    def test_a_probe_that_is_cancelled_gives_its_place_back(self, health, clock):
        opened(health, clock)
        clock.advance(1)
        calls(health, asyncio.CancelledError())
        assert state(health) == 0.5
        assert health.offer(TARGET)

    def test_what_was_offered_before_it_opened_is_not_sent_after(self, health, clock):
        assert health.offer(TARGET)
        opened(health, clock)
        with pytest.raises(TargetsResting) as caught, health.call(TARGET):
            pass
        assert (caught.value.status, caught.value.code) == (503, "targets_resting")
        assert (caught.value.retryable, caught.value.unbilled, caught.value.curable) == (True, True, True)

    def test_content_lets_the_others_in_and_the_next_fault_shuts_them_out(self, health, dice, clock):
        opened(health, clock)
        clock.advance(1)
        with health.call(TARGET) as probe:
            probe.answers()
            assert state(health) == 1
            calls(health, FAILED)
            assert state(health) == 0
        assert dice.bounds == [(0, 1), (0, 2)]

    async def test_hundreds_at_once_make_one_probe(self, health, clock):
        """Through Upstreams, whose sandbox says how many requests reached it."""
        opened(health, clock)
        clock.advance(1)
        upstreams, sent = upstreams_of(KNOWN, lambda _: None, clock, health=health), Sent()
        asked = [upstreams.complete(TARGET, chat('sandbox: {"fail": "500"}'), sent.call()) for _ in range(300)]
        ends = await asyncio.gather(*asked, return_exceptions=True)
        assert sent.times == 1
        assert sorted({type(end).__name__ for end in ends}) == ["TargetsResting", "UpstreamFailed"]
        assert state(health) == 0


class TestReporting:
    """What upstreams tell health of each call."""

    @pytest.mark.parametrize("stream", [False, True])
    @pytest.mark.parametrize(("told", "closed"), [("500", False), ("cut", False), ("400", True), (None, True)])
    async def test_each_call_is_counted_while_it_is_open_and_judged_when_it_ends(
        self, health, clock, told, *, closed, stream
    ):
        upstreams = upstreams_of(KNOWN, lambda _: None, clock, health=health)
        script = f'{{"tokens": 3, "fail": "{told}", "fail_after": 2}}' if told else '{"tokens": 3}'
        request = chat(f"sandbox: {script}" if told != "400" else 'sandbox: {"fail": "400"}', stream=stream)
        for _ in range(5):
            try:
                if stream:
                    async for _ in upstreams.stream(TARGET, request, Sent().call()):
                        assert health.outstanding(TARGET) == 1
                else:
                    await upstreams.complete(TARGET, request, Sent().call())
            except UpstreamError:
                assert told is not None
            assert health.outstanding(TARGET) == 0
        assert bool(health.offer(TARGET)) is closed

    async def test_a_streamed_probe_is_over_with_its_first_content(self, health, clock):
        opened(health, clock)
        clock.advance(1)
        upstreams = upstreams_of(KNOWN, lambda _: None, clock, health=health)
        async with aclosing(upstreams.stream(TARGET, chat(stream=True), Sent().call())) as chunks:
            assert not (await anext(chunks)).content
            assert state(health) == 0.5
            assert (await anext(chunks)).content
            assert state(health) == 1

    @pytest.mark.parametrize("stream", [False, True])
    async def test_a_caller_who_leaves_leaves_no_open_call(self, health, clock, *, stream):
        upstreams = upstreams_of(KNOWN, lambda _: None, clock, health=health)
        if stream:
            chunks = upstreams.stream(TARGET, chat(stream=True), Sent().call())
            await anext(chunks)
            await chunks.aclose()
        else:
            sent = Sent()
            request = chat('sandbox: {"fail": "hang"}')
            asked = asyncio.create_task(upstreams.complete(TARGET, request, sent.call()))
            while not sent.times:
                await asyncio.sleep(0)
            assert health.outstanding(TARGET) == 1
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)
        assert health.outstanding(TARGET) == 0
        assert health.offer(TARGET)


def test_what_left_the_catalogue_is_forgotten_and_what_stayed_is_not(dice, clock):
    known = KNOWN
    health = Health(lambda: known, dice=dice, clock=clock)
    registry = CollectorRegistry()
    HealthMetrics(registry, health)
    opened(health, clock)
    under_way = health.call(OTHER).__enter__()
    assert registry.get_sample_value("penstock_target_health", {"target": "m"}) == 0
    assert registry.get_sample_value("penstock_target_outstanding", {"target": "n"}) == 1
    known = several("m", "o")
    assert [reading.target for reading in health.readings()] == ["m", "o"]
    assert (state(health), health.outstanding(OTHER)) == (0, 0)
    under_way.__exit__(None, None, None)
    assert registry.get_sample_value("penstock_target_health", {"target": "n"}) is None
    clock.advance(1)
    assert registry.get_sample_value("penstock_target_health", {"target": "m"}) == 0.5


def test_a_thousand_catalogues_leave_no_more_than_the_last(dice, clock):
    known = KNOWN
    health = Health(lambda: known, dice=dice, clock=clock)
    for number in range(1000):
        known = several(f"m{number}")
        with health.call(TARGET), health.call(known.targets[f"m{number}"]):
            pass
    assert len(health._circuits) == 1


def test_draining_is_declared_of_models_and_providers():
    known = several("m")
    assert known.draining == frozenset()
    with_draining = [document("provider", "s", dialect="sandbox", draining=True), document("model", "m", provider="s")]
    assert type(known).of(with_draining).draining == {"m"}
