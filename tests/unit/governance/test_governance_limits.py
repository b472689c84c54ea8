"""What one process keeps of its counters; who counts how is for tests/contract/test_limits.py."""

import pytest

from governance import Allowance, MemoryCounters
from governance.counters import UNIT, Claim, Scope, Standing, Taken
from governance.limits import duration


def claim(key, permit="p", *, tokens=0, **limits):
    return Claim(permit, (Scope("key", key, key, Allowance(**limits)),), tokens)


def test_idle_counters_are_dropped_and_open_ones_kept(clock):
    counters = MemoryCounters(clock)
    stays = claim("open", requests_per_minute=60, concurrent=1)
    assert counters.admit(stays).admitted
    for n in range(1_000):
        counters.admit(claim(f"key_{n}", requests_per_minute=60, concurrent=1))
        counters.release(claim(f"key_{n}"))
    assert len(counters._counters) == 1_001
    for _ in range(600):
        clock.advance(61)
        counters.admit(claim("other", requests_per_minute=60))
    assert set(counters._counters) == {("key", "open"), ("key", "other")}
    assert not counters.admit(stays).admitted


def test_share_is_rounded_down_and_never_nothing():
    scope = Scope("app", "crm", "crm", Allowance(100, None, 2))
    assert scope.share(3).allowance == Allowance(33, None, 1)
    assert scope.share(1).allowance == scope.allowance


def decided(once, *, admitted=True, requests=0, tokens=0):
    return Taken(admitted, tuple(Standing(scope, requests * UNIT, tokens * UNIT, 0) for scope in once.scopes))


def test_counted_beyond_the_limit_leaves_the_next_to_wait(clock):
    counters = MemoryCounters(clock)
    for n in range(3):
        once = claim("k", f"p{n}", requests_per_minute=6)
        counters.note(once, decided(once), 1)
    assert not counters.admit(claim("k", requests_per_minute=2)).admitted
    clock.advance(60)
    assert counters.admit(claim("k", requests_per_minute=2)).admitted


@pytest.mark.parametrize("admitted", [True, False])
def test_no_bucket_stands_lower_than_this_process_s_part_of_what_all_have_used(clock, admitted):
    counters, limits = MemoryCounters(clock), {"requests_per_minute": 30, "tokens_per_minute": 300}
    once = claim("k", tokens=5, **limits)
    counters.note(once, decided(once, admitted=admitted, requests=21, tokens=90), 3)
    (standing,) = counters.admit(claim("k", "next", tokens=300, **limits).share(3)).standings
    assert (standing.requests, standing.tokens) == (7 * UNIT, 30 * UNIT)
    clock.advance(60)
    (standing,) = counters.admit(claim("k", "next", tokens=300, **limits).share(3)).standings
    assert (standing.requests, standing.tokens) == (0, 0)


def test_what_was_not_let_through_after_all_counts_nowhere(clock):
    counters, limits = MemoryCounters(clock), {"requests_per_minute": 2, "tokens_per_minute": 10, "concurrent": 2}
    counters.admit(claim("k", "stays", tokens=4, **limits))
    before = counters.admit(claim("k", "too large", tokens=10, **limits))
    counters.admit(undone := claim("k", "undone", tokens=6, **limits))
    counters.undo(undone)
    assert counters.admit(claim("k", "too large", tokens=10, **limits)) == before


def test_clock_that_runs_backwards_drains_nothing_and_is_followed(clock):
    counters, once = MemoryCounters(clock), claim("k", requests_per_minute=1)
    clock.advance(3_600)
    assert counters.admit(once).admitted
    clock.advance(-3_000)
    assert not counters.admit(once).admitted
    clock.advance(60)
    assert counters.admit(once).admitted


@pytest.mark.parametrize(
    ("milliseconds", "text"), [(0, "0s"), (20, "20ms"), (1000, "1s"), (59_500, "1m0s"), (360_000, "6m0s"), (3200, "4s")]
)
def test_durations_are_written_as_openai_writes_them(milliseconds, text):
    assert duration(milliseconds) == text
