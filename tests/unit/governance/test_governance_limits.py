"""Rates and open calls with a clock that stands still."""

from datetime import UTC, datetime

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from governance import Allowance, Directory, Limits, RateLimited
from governance.limits import duration
from kernel import Caller, Document

AT = datetime(2026, 11, 1, tzinfo=UTC)
CALLER = Caller("key_1", "k", "sales", "crm")


def limits_of(clock, *, key=None, **app):
    body = {"department": "sales", "use_cases": ["chat"], **app}
    directory = Directory.of(
        [
            Document("department", "sales", 1, {}, "t", AT),
            Document("use_case", "chat", 1, {"purpose": "x"}, "t", AT),
            Document("app", "crm", 1, body, "t", AT),
        ]
    )
    return Limits(lambda: directory, lambda key_id: key, clock=clock)


def test_burst_of_the_limit_passes_and_the_next_call_does_not(clock):
    limits = limits_of(clock, requests_per_minute=60)
    for _ in range(60):
        limits.take(CALLER).release()
    with pytest.raises(RateLimited, match="60 requests per minute of app 'crm'") as refused:
        limits.take(CALLER)
    assert (refused.value.status, refused.value.code, refused.value.kind) == (429, "rate_limit_exceeded", "requests")
    assert refused.value.retry_after_seconds == 1
    clock.advance(1)
    limits.take(CALLER)
    with pytest.raises(RateLimited):
        limits.take(CALLER)


def test_refused_call_charges_no_limit_at_all(clock):
    limits = limits_of(clock, requests_per_minute=10, key=Allowance(requests_per_minute=1))
    limits.take(CALLER)
    for _ in range(50):
        with pytest.raises(RateLimited, match="key 'key_1'"):
            limits.take(CALLER)
    other = Caller("key_2", "k", "sales", "crm")
    assert limits.take(other).headers()["x-ratelimit-remaining-requests"] == "0"
    clock.advance(60)
    assert limits.take(CALLER).headers()["x-ratelimit-limit-requests"] == "1"


def test_open_calls_are_counted_until_released_once(clock):
    limits = limits_of(clock, concurrent=2)
    first, _second = limits.take(CALLER), limits.take(CALLER)
    with pytest.raises(RateLimited, match="2 calls at a time"):
        limits.take(CALLER)
    first.release()
    first.release()
    limits.take(CALLER)
    with pytest.raises(RateLimited):
        limits.take(CALLER)


def test_tokens_not_used_are_given_back(clock):
    limits = limits_of(clock, tokens_per_minute=1_000)
    permit = limits.take(CALLER)
    permit.take_tokens(900)
    with pytest.raises(RateLimited) as refused:
        limits.take(CALLER).take_tokens(900)
    assert (refused.value.kind, refused.value.retryable, refused.value.retry_after_seconds) == ("tokens", True, 48)
    permit.settle_tokens(100)
    limits.take(CALLER).take_tokens(900)
    assert permit.headers() == {
        "x-ratelimit-limit-tokens": "1000",
        "x-ratelimit-remaining-tokens": "0",
        "x-ratelimit-reset-tokens": "1m0s",
    }


def test_more_tokens_than_taken_delay_the_next_call(clock):
    limits = limits_of(clock, tokens_per_minute=60)
    permit = limits.take(CALLER)
    permit.take_tokens(10)
    permit.settle_tokens(120)
    assert permit.headers()["x-ratelimit-remaining-tokens"] == "0"
    clock.advance(60)
    with pytest.raises(RateLimited):
        limits.take(CALLER).take_tokens(1)
    clock.advance(1)
    limits.take(CALLER).take_tokens(1)


def test_request_larger_than_the_bucket_hears_that_waiting_does_not_help(clock):
    limits = limits_of(clock, tokens_per_minute=100)
    permit = limits.take(CALLER)
    with pytest.raises(RateLimited, match="can never fit") as refused:
        permit.take_tokens(101)
    assert not refused.value.retryable
    permit.take_tokens(100)


def test_observed_limits_refuse_nothing_and_say_what_they_would(clock):
    limits = limits_of(
        clock, requests_per_minute=1, concurrent=1, tokens_per_minute=5, observe={"limits": "2026-11-20"}
    )
    assert limits.take(CALLER).observed == []
    permit = limits.take(CALLER)
    assert len(permit.observed) == 2
    permit.take_tokens(6)
    permit.settle_tokens(6)
    assert "never fit" in permit.observed[2]
    assert permit.headers()["x-ratelimit-remaining-tokens"] == "5"
    assert permit.headers()["x-ratelimit-reset-requests"] == "1m0s"
    clock.advance(86_400)
    with pytest.raises(RateLimited):
        limits.take(CALLER)


def test_changed_limit_goes_on_with_what_is_used(clock):
    key = {"limit": Allowance(requests_per_minute=2)}
    limits = Limits(limits_of(clock)._directory, lambda _: key["limit"], clock=clock)
    limits.take(CALLER)
    limits.take(CALLER)
    key["limit"] = Allowance(requests_per_minute=3)
    limits.take(CALLER)
    with pytest.raises(RateLimited):
        limits.take(CALLER)


def test_caller_without_limits_passes_and_has_no_headers(clock):
    permit = limits_of(clock).take(Caller("operator", "op"))
    permit.take_tokens(10**9)
    permit.settle_tokens(5)
    permit.release()
    assert permit.headers() == {}


def test_idle_counters_are_dropped_and_open_ones_kept(clock):
    limits = limits_of(clock, key=Allowance(requests_per_minute=60, concurrent=1))
    stays = limits.take(Caller("open", "k"))
    for n in range(1_000):
        limits.take(Caller(f"key_{n}", "k")).release()
    assert len(limits._scopes) == 1_001
    for _ in range(600):
        clock.advance(61)
        limits.take(Caller("other", "k")).release()
    assert set(limits._scopes) == {("key", "open"), ("key", "other")}
    with pytest.raises(RateLimited):
        limits.take(Caller("open", "k"))
    stays.release()


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.integers(1, 50), st.lists(st.floats(0, 5), max_size=200))
def test_never_more_than_the_bucket_and_its_refill_get_through(clock, limit, gaps):
    limits, start, passed = limits_of(clock, requests_per_minute=limit), clock.monotonic(), 0
    for gap in gaps:
        clock.advance(gap)
        try:
            limits.take(CALLER).release()
        except RateLimited:
            continue
        passed += 1
        assert passed <= limit + (clock.monotonic() - start) * limit / 60 + 1e-6


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (0.0195, "20ms"), (1, "1s"), (59.5, "1m0s"), (360, "6m0s"), (3.2, "4s")]
)
def test_durations_are_written_as_openai_writes_them(seconds, text):
    assert duration(int(seconds * 1e9)) == text
