"""Plans and walks: in which order targets are tried, which are passed over, and what second tries are paid from."""

import random
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

import msgspec
import pytest

from kernel import Document, Target
from router import (
    Catalogue,
    Health,
    ModelNotFound,
    RetryBudget,
    Router,
    TargetsResting,
    UpstreamBusy,
    UpstreamError,
    UpstreamFailed,
    UpstreamOverlong,
)
from tests.conftest import StillClock
from tests.fakes.routing import asking, document, several

FAILED = UpstreamFailed("x", 500)
OUR_BOUND = UpstreamOverlong("x")  # a failure that opens no circuit


class Bench:
    """A router with a health of its own over one catalogue."""

    def __init__(self, known: Catalogue, clock: StillClock, cost: Callable[[str], int | None] = lambda _: None) -> None:
        self.known = known
        self.health = Health(lambda: self.known, dice=random.Random(3), clock=clock)
        self.router = Router(
            lambda: self.known, self.health, cost_of=lambda target, _: cost(target.name), dice=random.Random(4)
        )

    def planned(self, name: str) -> list[str]:
        return [target.name for target in self.router.plan(asking(name))]

    def walked(self, name: str) -> list[str]:
        return [target.name for target in self.router.walk(self.router.plan(asking(name)))]

    def called(self, name: str, error: UpstreamError = FAILED) -> list[str]:
        """A turn whose every call fails."""
        names = []
        for target in self.router.walk(self.router.plan(asking(name))):
            names.append(target.name)
            with suppress(UpstreamError), self.health.call(target):
                raise error
        return names

    def fails(self, name: str, times: int = 5, error: UpstreamError = FAILED) -> None:
        for _ in range(times):
            with suppress(UpstreamError), self.health.call(self.known.targets[name]):
                raise error


def weighted(**weights: int) -> list[dict[str, object]]:
    return [{"model": name, "weight": weight} for name, weight in weights.items()]


class TestChoosing:
    def test_a_name_that_nobody_declared_is_404(self, clock):
        with pytest.raises(ModelNotFound):
            Bench(several("a"), clock).planned("b")

    def test_in_order_unless_told_otherwise(self, clock):
        bench = Bench(several("a", "b", "c", x={"targets": ["c", "a", "b"]}), clock)
        assert bench.planned("x") == ["c", "a", "b"]
        assert bench.planned("a") == ["a"]

    def test_by_weight_each_comes_first_for_its_share_and_second_for_its_share_of_the_rest(self, clock):
        shares = {"a": 6, "b": 3, "c": 1}
        bench = Bench(several("a", "b", "c", x={"targets": weighted(**shares), "choose": "weight"}), clock)
        orders = Counter(tuple(bench.planned("x")) for _ in range(20_000))
        assert sum(orders.values()) == 20_000
        for order, count in orders.items():
            first, second, _ = (shares[name] for name in order)
            expected = 20_000 * first / 10 * second / (10 - first)
            assert abs(count - expected) < 5 * expected**0.5, order  # five standard deviations, on one fixed seed

    def test_the_fewest_open_calls_come_first_and_equals_by_lot(self, clock):
        bench = Bench(several("a", "b", x={"targets": ["a", "b"], "choose": "least_outstanding"}), clock)
        assert 400 < Counter(bench.planned("x")[0] for _ in range(1000))["a"] < 600
        with bench.health.call(bench.known.targets["a"]):
            assert {bench.planned("x")[0] for _ in range(50)} == {"b"}

    def test_open_calls_are_seen_in_proportion_to_weight(self, clock):
        body = {"targets": weighted(big=10, small=1), "choose": "least_outstanding"}
        bench = Bench(several("big", "small", x=body), clock)
        opened = [bench.health.call(bench.known.targets["big"]).__enter__() for _ in range(9)]
        with bench.health.call(bench.known.targets["small"]):
            assert bench.planned("x")[0] == "big"
            opened += [bench.health.call(bench.known.targets["big"]).__enter__() for _ in range(2)]
            assert bench.planned("x")[0] == "small"

    def test_the_cheapest_comes_first_and_what_has_no_price_last(self, clock):
        body = {"targets": ["unknown", "dear", "free", "fair", "also-fair"], "choose": "cheapest"}
        costs = {"dear": 9, "free": 0, "fair": 4, "also-fair": 4}
        assert Bench(several(*body["targets"], x=body), clock, costs.get).planned("x") == [
            "free", "fair", "also-fair", "dear", "unknown",
        ]  # fmt: skip

    @pytest.mark.parametrize(
        ("choose", "says"),
        [("order", "as declared, in order"), ("weight", "drawn by weight"), ("cheapest", "cheapest first"),
         ("least_outstanding", "fewest open calls for its weight first")],
    )  # fmt: skip
    def test_a_plan_says_how_its_order_came_about(self, clock, choose, says):
        bench = Bench(several("a", x={"targets": ["a"], "choose": choose}), clock)
        assert bench.router.plan(asking("x")).why == (f"x: {says}",)


def company(*draining: str) -> Catalogue:
    """Models a and b on s, c on t; those named drain."""

    def declared(kind: str, name: str, **body: object) -> Document:
        return document(kind, name, **body, draining=name in draining)

    return Catalogue.of(
        [
            declared("provider", "s", dialect="sandbox"),
            declared("provider", "t", dialect="sandbox"),
            declared("model", "a", provider="s"),
            declared("model", "b", provider="s"),
            declared("model", "c", provider="t"),
            document("alias", "x", targets=["a", "b", "c"]),
        ]
    )


class TestDraining:
    @pytest.mark.parametrize(
        ("draining", "walked"),
        [((), ["a", "b", "c"]), (("a",), ["b", "c"]), (("s",), ["c"]), (("s", "a"), ["c"]), (("t", "a"), ["b"])],
    )
    def test_a_draining_model_or_provider_takes_no_new_turns(self, clock, draining, walked):
        assert Bench(company(*draining), clock).walked("x") == walked

    def test_it_stays_in_the_plan_for_policy_to_judge_but_comes_last(self, clock):
        plan = Bench(company("a"), clock).router.plan(asking("x"))
        assert [target.name for target in plan] == ["b", "c", "a"]
        assert plan.why[-1] == "what is draining comes last and is passed over"

    @pytest.mark.parametrize("name", ["a", "x"])
    def test_when_nothing_else_is_left_the_answer_says_so(self, clock, name):
        with pytest.raises(TargetsResting, match="draining") as caught:
            Bench(company("s", "t"), clock).walked(name)
        assert (caught.value.status, caught.value.retry_after_seconds) == (503, None)

    def test_what_begins_to_drain_after_the_plan_was_made_is_passed_over(self, clock):
        bench = Bench(company(), clock)
        plan = bench.router.plan(asking("x"))
        bench.known = company("a")
        assert [target.name for target in bench.router.walk(plan)] == ["b", "c"]


class TestWalking:
    def test_a_target_that_rests_is_passed_over(self, clock):
        bench = Bench(company(), clock)
        bench.fails("a")
        assert bench.walked("x") == ["b", "c"]
        assert bench.planned("x") == ["a", "b", "c"]

    def test_when_all_rest_the_answer_says_when_the_first_comes_back(self, clock):
        bench = Bench(company("c"), clock)
        bench.fails("a", 1, UpstreamBusy("a", 30.0))
        bench.fails("b", 1, UpstreamBusy("b", 20.0))
        clock.advance(5)
        with pytest.raises(TargetsResting) as caught:
            bench.walked("x")
        assert caught.value.retry_after_seconds == 15
        assert "draining" not in caught.value.message

    def test_a_plan_from_which_policy_took_targets_is_walked_as_it_is(self, clock):
        bench = Bench(company(), clock)
        plan = bench.router.plan(asking("x"))
        kept = msgspec.structs.replace(plan, targets=plan.targets[1:2])
        assert [target.name for target in bench.router.walk(kept)] == ["b"]

    @pytest.mark.parametrize("leaves", ["returns", "raises"])
    async def test_a_turn_that_never_begins_its_probe_gives_the_place_back(self, clock, leaves):
        """As when the hold is refused: the loop over the walk is left without a call."""
        bench = Bench(company(), clock)
        bench.fails("a", 1, UpstreamBusy("a", 10.0))
        clock.advance(10)

        async def turn() -> Target | None:
            for target in bench.router.walk(bench.router.plan(asking("a"))):
                with pytest.raises(TargetsResting):
                    bench.walked("a")
                if leaves == "raises":
                    raise LookupError
                return target
            return None

        with suppress(LookupError):
            await turn()
        assert bench.walked("a") == ["a"]


class TestRetryBudget:
    def test_starts_with_ten_earns_a_tenth_a_turn_and_saves_no_more_than_ten(self):
        budget = RetryBudget()
        for _ in range(1000):
            budget.earn()
        assert [budget.spend() for _ in range(11)] == [True] * 10 + [False]
        for _ in range(9):
            budget.earn()
        assert not budget.spend()
        budget.earn()
        assert [budget.spend(), budget.spend()] == [True, False]
        budget.refund()
        assert [budget.spend(), budget.spend()] == [True, False]

    def test_without_it_the_walk_ends_after_the_first(self, clock):
        bench = Bench(company(), clock)
        lengths = [len(bench.called("x", OUR_BOUND)) for _ in range(30)]
        assert lengths[:5] == [3] * 5
        assert lengths[5:] == [1] * 5 + [2] + [1] * 9 + [2] + [1] * 9
        assert [bench.called("a", OUR_BOUND) for _ in range(3)] == [["a"]] * 3

    @pytest.mark.parametrize("refused", [0, 9, 99])
    def test_turns_that_send_nothing_earn_no_retries(self, clock, refused):
        """As when holds are refused: so many for each turn whose calls all fail."""
        bench, sent = Bench(company(), clock), 0
        for _ in range(500):
            for _ in range(refused):
                next(bench.router.walk(bench.router.plan(asking("x"))))  # offered, and dropped
            sent += len(bench.called("x", OUR_BOUND))
        assert 500 < sent <= 1.1 * 500 + 10

    def test_a_second_attempt_that_is_never_made_costs_nothing(self, clock):
        bench = Bench(company(), clock)
        for _ in range(50):
            walk = bench.router.walk(bench.router.plan(asking("x")))
            with suppress(UpstreamError), bench.health.call(next(walk)):
                raise OUR_BOUND
            assert next(walk).name == "b"  # whose hold is refused
            walk.close()

    def test_the_next_after_one_that_was_never_asked_is_a_first(self, clock):
        bench = Bench(company(), clock)
        while len(bench.called("x", OUR_BOUND)) > 1:
            pass
        assert bench.walked("x") == ["a", "b", "c"]

    def test_what_others_call_is_not_taken_for_this_turns_own(self, clock):
        bench = Bench(company(), clock)
        while len(bench.called("x", OUR_BOUND)) > 1:
            pass
        walk = bench.router.walk(bench.router.plan(asking("x")))
        next(walk)
        bench.called("a", OUR_BOUND)
        assert next(walk).name == "b"

    @pytest.mark.parametrize("retry_after_seconds", [None, 1.0])
    def test_a_minute_of_nothing_but_429_is_not_multiplied(self, clock, retry_after_seconds):
        """1,000 turns a second; what is counted is what leaves for providers."""
        bench = Bench(company(), clock)
        turns = Counter[str]()
        for _ in range(60_000):
            turns["turns"] += 1
            with suppress(TargetsResting):
                for target in bench.router.walk(bench.router.plan(asking("x"))):
                    turns[target.name] += 1
                    with suppress(UpstreamError), bench.health.call(target):
                        raise UpstreamBusy(target.name, retry_after_seconds)
            clock.advance(0.001)
        sent = turns["a"] + turns["b"] + turns["c"]
        assert sent <= 1.1 * turns["turns"]
        assert sent <= 3 * (60 + 20)  # about a probe a second and target, once they are known to be down

    def test_a_storm_that_opens_no_circuit_is_multiplied_by_no_more_than_a_tenth(self, clock):
        """Every fourth attempt is answered, so that nothing rests and only the budget stands against retries."""
        bench, turns, sent = Bench(company(), clock), 0, 0
        for _ in range(10_000):
            turns += 1
            for target in bench.router.walk(bench.router.plan(asking("x"))):
                sent += 1
                with suppress(UpstreamError), bench.health.call(target):
                    if sent % 4 == 0:
                        break
                    raise FAILED
        assert turns < sent <= 1.1 * turns + 10
