"""One suite for whoever counts: this process, Redis for all of them, and this process while Redis is away."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from governance import Allowance, Counters, Directory, LimitMetrics, Limits, MemoryCounters, RateLimited, SharedCounters
from kernel import Caller, Document

AT = datetime(2026, 11, 1, tzinfo=UTC)
CALLER = Caller("key_1", "k", "sales", "crm")


@pytest.fixture(params=["memory", "redis", "away"])
async def counters(request, clock) -> AsyncIterator[Counters]:
    if request.param == "memory":
        yield MemoryCounters(clock)
        return
    # Port 9 of this machine: nobody listens.
    url = request.getfixturevalue("redis_url") if request.param == "redis" else "redis://127.0.0.1:9/0"
    shared = SharedCounters(
        url,
        clock=clock,
        processes=lambda: 1,
        metrics=LimitMetrics(CollectorRegistry()),
        redis_now=lambda: int(clock.monotonic() * 1000),
    )
    await shared.start()
    assert shared.is_shared == (request.param == "redis")
    yield shared
    await shared.close()


@pytest.fixture
def limits_of(counters, clock):
    def make(*, key=None, **app):
        body = {"department": "sales", "use_cases": ["chat"], **app}
        directory = Directory.of(
            [
                Document("department", "sales", 1, {}, "t", AT),
                Document("use_case", "chat", 1, {"purpose": "x"}, "t", AT),
                Document("app", "crm", 1, body, "t", AT),
            ]
        )
        allowance = key if callable(key) else lambda _: key
        return Limits(lambda: directory, allowance, counters=counters, clock=clock)

    return make


async def test_burst_of_the_limit_passes_and_the_next_call_does_not(limits_of, clock):
    limits = limits_of(requests_per_minute=60)
    for _ in range(60):
        (await limits.take(CALLER, 0)).release()
    with pytest.raises(RateLimited, match="60 requests per minute of app 'crm'") as refused:
        await limits.take(CALLER, 0)
    assert (refused.value.status, refused.value.code, refused.value.kind) == (429, "rate_limit_exceeded", "requests")
    assert refused.value.retry_after_seconds == 1
    assert refused.value.headers["x-ratelimit-remaining-requests"] == "0"
    clock.advance(1)
    await limits.take(CALLER, 0)
    with pytest.raises(RateLimited):
        await limits.take(CALLER, 0)


async def test_refused_call_charges_no_limit_at_all(limits_of, counters, clock):
    limits = limits_of(requests_per_minute=10, concurrent=3, key=Allowance(requests_per_minute=1))
    await limits.take(CALLER, 0)
    for _ in range(50):
        with pytest.raises(RateLimited, match="key 'key_1'"):
            await limits.take(CALLER, 0)
    permit = await limits.take(Caller("key_2", "k", "sales", "crm"), 0)
    assert permit.headers()["x-ratelimit-remaining-requests"] == "0"
    await limits.take(Caller("key_3", "k", "sales", "crm"), 0)
    for _ in range(3):
        clock.advance(20)
        if isinstance(counters, SharedCounters):
            await counters._look()  # which keeps calls open, as it does every few seconds
    with pytest.raises(RateLimited, match="3 calls at a time"):
        await limits.take(CALLER, 0)


@pytest.mark.parametrize("lacking", ["requests_per_minute", "tokens_per_minute", "concurrent"])
async def test_each_limit_holds_by_itself_and_leaves_the_others_untouched(limits_of, lacking):
    limits = limits_of(**{"requests_per_minute": 5, "tokens_per_minute": 50, "concurrent": 5, lacking: 2})
    per_call = 10 if lacking != "tokens_per_minute" else 1
    await limits.take(CALLER, per_call)
    permit = await limits.take(CALLER, per_call)
    with pytest.raises(RateLimited):
        await limits.take(CALLER, per_call)
    assert permit.headers()["x-ratelimit-remaining-requests"] == ("0" if lacking == "requests_per_minute" else "3")


async def test_open_calls_are_counted_until_released_once(limits_of):
    limits = limits_of(concurrent=2)
    first, _second = await limits.take(CALLER, 0), await limits.take(CALLER, 0)
    with pytest.raises(RateLimited, match="2 calls at a time"):
        await limits.take(CALLER, 0)
    first.release()
    first.release()
    await limits.take(CALLER, 0)
    with pytest.raises(RateLimited):
        await limits.take(CALLER, 0)


async def test_tokens_not_used_are_given_back(limits_of):
    limits = limits_of(tokens_per_minute=1_000)
    permit = await limits.take(CALLER, 900)
    with pytest.raises(RateLimited) as refused:
        await limits.take(CALLER, 900)
    assert (refused.value.kind, refused.value.retryable, refused.value.retry_after_seconds) == ("tokens", True, 48)
    permit.settle_tokens(100)
    permit.release()
    assert (await limits.take(CALLER, 900)).headers() == {
        "x-ratelimit-limit-tokens": "1000",
        "x-ratelimit-remaining-tokens": "0",
        "x-ratelimit-reset-tokens": "1m0s",
    }


async def test_more_tokens_than_taken_delay_the_next_call(limits_of, clock):
    limits = limits_of(tokens_per_minute=60)
    permit = await limits.take(CALLER, 10)
    permit.settle_tokens(120)
    permit.release()
    clock.advance(60)
    with pytest.raises(RateLimited):
        await limits.take(CALLER, 1)
    clock.advance(1)
    await limits.take(CALLER, 1)


async def test_tokens_are_settled_once_however_often_it_is_said(limits_of):
    limits = limits_of(tokens_per_minute=100)
    permit = await limits.take(CALLER, 90)
    for actual in (50, 10):
        permit.settle_tokens(actual)
    for _ in range(3):
        permit.release()
        permit.settle_tokens(1)
    assert (await limits.take(CALLER, 90)).headers()["x-ratelimit-remaining-tokens"] == "0"


async def test_settlement_drains_first_so_that_idle_time_does_not_pay_for_it(limits_of, clock):
    limits = limits_of(tokens_per_minute=60)
    permit = await limits.take(CALLER, 0)
    clock.advance(300)
    permit.settle_tokens(60)
    permit.release()
    with pytest.raises(RateLimited):
        await limits.take(CALLER, 1)


async def test_request_larger_than_the_bucket_hears_that_waiting_does_not_help(limits_of):
    limits = limits_of(tokens_per_minute=100)
    with pytest.raises(RateLimited, match="can never fit") as refused:
        await limits.take(CALLER, 101)
    assert not refused.value.retryable
    await limits.take(CALLER, 100)


async def test_estimate_beyond_all_numbers_is_refused_like_any_other(limits_of):
    limits = limits_of(tokens_per_minute=1_000_000_000)
    with pytest.raises(RateLimited, match="can never fit"):
        await limits.take(CALLER, 2**63 - 1)
    permit = await limits.take(CALLER, 999_999_999)
    assert permit.headers()["x-ratelimit-remaining-tokens"] == "1"


async def test_observed_limits_refuse_nothing_and_say_what_they_would(limits_of, clock):
    limits = limits_of(requests_per_minute=1, concurrent=1, tokens_per_minute=5, observe={"limits": "2026-11-20"})
    first = await limits.take(CALLER, 0)
    assert first.observed == []
    permit = await limits.take(CALLER, 6)
    permit.settle_tokens(6)
    permit.release()
    assert len(permit.observed) == 3
    assert "never fit" in "".join(permit.observed)
    assert permit.headers()["x-ratelimit-remaining-tokens"] == "5"
    assert permit.headers()["x-ratelimit-reset-requests"] == "1m0s"
    first.release()
    clock.advance(86_400)
    await limits.take(CALLER, 0)
    with pytest.raises(RateLimited):
        await limits.take(CALLER, 0)


async def test_changed_limit_goes_on_with_what_is_used(limits_of):
    key = {"limit": Allowance(requests_per_minute=2)}
    limits = limits_of(key=lambda _: key["limit"])
    await limits.take(CALLER, 0)
    await limits.take(CALLER, 0)
    key["limit"] = Allowance(requests_per_minute=3)
    await limits.take(CALLER, 0)
    with pytest.raises(RateLimited):
        await limits.take(CALLER, 0)


async def test_app_declared_anew_is_known_by_its_new_limits(limits_of, counters, clock):
    allowances = iter([Allowance(requests_per_minute=1), None, Allowance(), Allowance(requests_per_minute=3)])
    now = {"key": next(allowances)}
    limits = limits_of(key=lambda _: now["key"])
    assert (await limits.take(CALLER, 0)).headers()["x-ratelimit-limit-requests"] == "1"
    for unlimited in (next(allowances), next(allowances)):
        now["key"] = unlimited
        assert (await limits.take(CALLER, 0)).headers() == {}
    now["key"] = next(allowances)
    assert (await limits.take(CALLER, 0)).headers()["x-ratelimit-limit-requests"] == "3"


async def test_caller_without_limits_passes_and_has_no_headers(limits_of):
    permit = await limits_of().take(Caller("operator", "op"), 10**9)
    permit.settle_tokens(5)
    permit.release()
    assert permit.headers() == {}


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.integers(1, 50), st.lists(st.floats(0, 5), max_size=60), st.integers())
async def test_never_more_than_the_bucket_and_its_refill_get_through(limits_of, clock, limit, gaps, salt):
    limits, start, passed = limits_of(key=Allowance(requests_per_minute=limit)), clock.monotonic(), 0
    for gap in gaps:
        clock.advance(gap)
        try:
            (await limits.take(Caller(f"key_{salt}_{start}", "k"), 0)).release()
        except RateLimited:
            continue
        passed += 1
        # One millisecond is the grain of the clock.
        assert passed <= limit + (clock.monotonic() - start + 0.001) * limit / 60
