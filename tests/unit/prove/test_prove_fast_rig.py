"""The figures of the proofs of speed: what an interval is, and what it must not hide."""

import random

import pytest

from tests.prove.fast_rig import bootstrap_interval, percentile, sign_interval


def test_fifteen_values_leave_out_three_at_each_end() -> None:
    assert sign_interval([float(each) for each in range(15)]) == (3.0, 11.0)


def test_the_interval_of_the_sign_test_holds_the_median_in_95_of_100() -> None:
    dice = random.Random(1)
    held = 0
    for _ in range(2_000):
        low, high = sign_interval([dice.expovariate(1) for _ in range(15)])
        held += low <= 0.6931 <= high
    assert held / 2_000 >= 0.95


def test_too_few_values_tell_nothing() -> None:
    with pytest.raises(AssertionError, match="fewer than six"):
        sign_interval([1.0] * 5)


def test_a_percentile_is_a_value_that_was_seen() -> None:
    assert percentile([float(each) for each in range(1, 101)], 0.99) == 99.0
    assert percentile([5.0], 0.99) == 5.0


def test_pairs_that_differ_by_half_are_told_apart_from_equal_ones() -> None:
    dice = random.Random(1)
    equal = [(dice.gauss(10, 1), dice.gauss(10, 1)) for _ in range(12)]
    longer = [(1.5 * first, second) for first, second in equal]
    assert bootstrap_interval(equal, dice=random.Random(2))[1] < 1.3
    assert bootstrap_interval(longer, dice=random.Random(2))[0] > 1.3
