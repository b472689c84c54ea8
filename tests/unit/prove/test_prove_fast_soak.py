"""What fast.soak makes of what it saw: a slope with its doubt, and verdicts that can be bad."""

import random
from pathlib import Path
from typing import Any

import pytest

from tests.prove.fast_soak import OVERLOAD_SECONDS, Level, Overload, Slope, judged
from tests.prove.proofs import Bench, NotRun

PEAK = 10


def memory(per_second: float, seconds: int = 600) -> list[tuple[float, float]]:
    """Samples that drift and, slowly, wander."""
    dice, wander, found = random.Random(7), 0.0, []
    for at in range(seconds):
        wander = 0.9 * wander + dice.gauss(0, 0.05)
        found.append((float(at), 130 + per_second * at + wander))
    return found


@pytest.mark.parametrize("per_second", [0.0, 0.001, -0.002, 0.05])
def test_a_slope_is_found_within_its_doubt(per_second: float) -> None:
    slope = Slope.of(memory(per_second))
    assert abs(slope.value - per_second) <= slope.uncertainty < 0.002


def test_a_pool_may_fill_but_nothing_else_may_stay_open() -> None:
    idle = Level(13, 16, 4)
    assert Level(13, 16, 9).is_within(idle)
    assert Level(12, 16, 4).is_within(idle)
    assert not Level(14, 16, 4).is_within(idle)
    assert not Level(13, 17, 4).is_within(idle)
    assert not Level(13, 16, 40).is_within(idle)


def phase(*ended: tuple[float, float, int], late: int = 0, **faults: int) -> dict[str, Any]:
    return {"ended": list(ended), "faults": faults, "late": late, "cpu_share": 0.2}


def spell(seconds: float, rate: float, ms: float, status: int = 200) -> list[tuple[float, float, int]]:
    return [(at / rate, ms, status) for at in range(int(seconds * rate))]


def seen(**changed: Any) -> Overload:
    """An overload as it should go."""
    served, refused = spell(OVERLOAD_SECONDS, PEAK, 50), spell(OVERLOAD_SECONDS, 2 * PEAK, 5, 503)
    told = {
        "before": phase(*spell(5, 50, 4)),
        "over": phase(*served, *refused),
        "after": phase(*spell(0.4, 50, 90), *[(0.4 + at, ms, s) for at, ms, s in spell(9, 50, 4)]),
    }
    return Overload(peak=PEAK, closed=PEAK, cpu=60, **(told | changed))


def verdict(what: Overload, tmp_path: Path) -> bool:
    return judged(Bench(tmp_path, "python", tmp_path, 0), "a store", what)


def test_an_overload_that_goes_as_it_must_is_met(tmp_path: Path) -> None:
    assert seen().recovery == pytest.approx(0.4)
    assert verdict(seen(), tmp_path)


@pytest.mark.parametrize(
    "changed",
    [
        {"over": phase(*spell(OVERLOAD_SECONDS, 0.8 * PEAK, 50), *spell(60, PEAK, 5, 503))},
        {"over": phase(*spell(OVERLOAD_SECONDS, PEAK, 1500), *spell(60, PEAK, 5, 503))},
        {"over": phase(*spell(OVERLOAD_SECONDS, PEAK, 50), *spell(60, PEAK, 60, 503))},
        {"over": phase(*spell(OVERLOAD_SECONDS, PEAK, 50))},
        {"over": phase(*spell(OVERLOAD_SECONDS, PEAK, 50), *spell(60, PEAK, 5, 503), (1, 5, 500))},
        {"over": phase(*spell(OVERLOAD_SECONDS, PEAK, 50), *spell(60, PEAK, 5, 503), unanswered=1)},
        {"after": phase(*spell(2.5, 50, 90), *[(2.5 + at, ms, s) for at, ms, s in spell(7, 50, 4)])},
        {"after": phase(*spell(10, 50, 4, 503))},
    ],
    ids=["too few", "too late", "slow refusals", "no refusals", "a 500", "unanswered", "slow after", "refused after"],
)
def test_one_that_does_not_is_not(changed: dict[str, Any], tmp_path: Path) -> None:
    assert not verdict(seen(**changed), tmp_path)


def test_a_load_that_is_the_limit_proves_nothing(tmp_path: Path) -> None:
    with pytest.raises(NotRun):
        verdict(seen(over=phase(*spell(OVERLOAD_SECONDS, PEAK, 50), late=100)), tmp_path)
