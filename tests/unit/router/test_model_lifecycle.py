"""Preview, active, deprecated, retired: which day it is decides, at the request, under the same catalogue."""

import random
from datetime import UTC, date, datetime

import pytest
from pydantic import ValidationError

from kernel import InvalidDeclaration, Plan
from router import KINDS, Catalogue, Health, ModelNotFound, ModelRetired, Router
from tests.fakes.routing import asking, document

SANDBOX = document("provider", "s", dialect="sandbox")


def catalogue(*others, **models: dict[str, object]) -> Catalogue:
    declared = [document("model", name, **({"provider": "s"} | body)) for name, body in models.items()]
    return Catalogue.of([SANDBOX, *declared, *others])


def router_of(known: Catalogue, clock) -> Router:
    health = Health(lambda: known, dice=random.Random(1), clock=clock)
    return Router(lambda: known, health, cost_of=lambda *_: None, dice=random.Random(1))


def names(plan: Plan) -> list[str]:
    return [target.name for target in plan]


class TestRetirement:
    @pytest.mark.parametrize("lifecycle", ["preview", "active", "deprecated"])
    def test_comes_with_the_first_instant_of_its_day_in_utc_and_not_before(self, clock, lifecycle):
        known = catalogue(old={"lifecycle": lifecycle, "retires_on": "2026-12-01"})
        router = router_of(known, clock)
        clock.at = datetime(2026, 11, 30, 23, 59, 59, 999_999, tzinfo=UTC)
        assert names(router.current(router.plan(asking("old")))) == ["old"]
        clock.at = datetime(2026, 12, 1, tzinfo=UTC)
        with pytest.raises(ModelRetired):
            router.current(router.plan(asking("old")))
        clock.at = datetime(2026, 11, 30, tzinfo=UTC)  # a clock that is put right again is believed
        assert names(router.current(router.plan(asking("old")))) == ["old"]

    @pytest.mark.parametrize("retires_on", [None, "2020-01-01", "9999-01-01"])
    def test_needs_no_date_where_it_is_declared(self, clock, retires_on):
        router = router_of(catalogue(old={"lifecycle": "retired", "retires_on": retires_on}), clock)
        with pytest.raises(ModelRetired):
            router.current(router.plan(asking("old")))

    @pytest.mark.parametrize(
        ("body", "says"),
        [
            ({"lifecycle": "retired"}, "The model `old` is retired."),
            ({"retires_on": "2026-11-20"}, "The model `old` was retired on 2026-11-20."),
            (
                {"retires_on": "2026-11-01", "successor": "new"},
                "The model `old` was retired on 2026-11-01; use `new` instead.",
            ),
            (
                {"lifecycle": "retired", "retires_on": "2027-01-01", "successor": "fast"},
                "The model `old` is retired; use `fast` instead.",
            ),
        ],
    )
    def test_is_404_and_says_since_when_and_what_to_use(self, clock, body, says):
        known = catalogue(document("alias", "fast", targets=["new"]), old=body, new={})
        router = router_of(known, clock)
        with pytest.raises(ModelNotFound) as caught:
            router.current(router.plan(asking("old")))
        error = caught.value
        assert (error.status, error.code, error.kind, error.param) == (
            404, "model_not_found", "invalid_request_error", "model",
        )  # fmt: skip
        assert error.message == str(error) == says

    def test_passes_over_what_is_retired_behind_an_alias(self, clock):
        known = catalogue(document("alias", "fast", targets=["old", "new"]), old={"retires_on": "2026-11-20"}, new={})
        router = router_of(known, clock)
        plan = router.current(router.plan(asking("fast")))
        assert names(plan) == ["new"]
        assert plan.why == ("fast: as declared, in order", "what is retired is passed over")
        clock.at = datetime(2026, 11, 19, tzinfo=UTC)
        assert names(router.current(router.plan(asking("fast")))) == ["old", "new"]

    def test_leaves_an_alias_without_any_model_404(self, clock):
        known = catalogue(
            document("alias", "fast", targets=["old", "older"]),
            old={"lifecycle": "retired", "successor": "new"}, older={"lifecycle": "retired"}, new={},
        )  # fmt: skip
        router = router_of(known, clock)
        with pytest.raises(ModelRetired) as caught:
            router.current(router.plan(asking("fast")))
        assert caught.value.message == "The model `old`, to which `fast` leads, is retired; use `new` instead."

    def test_leaves_listings_to_the_day(self):
        known = catalogue(document("alias", "fast", targets=["old", "new"]), old={"retires_on": "2026-12-01"}, new={})
        before, on = date(2026, 11, 30), date(2026, 12, 1)
        assert names(known.reachable("old", before)) == ["old"]
        assert names(known.reachable("old", on)) == []
        assert names(known.reachable("fast", on)) == ["new"]
        assert names(known.reachable("fast")) == ["old", "new"]


class TestDeprecation:
    @pytest.mark.parametrize(
        ("body", "why"),
        [
            ({}, "old is deprecated"),
            ({"retires_on": "2027-01-01"}, "old is deprecated and retires on 2027-01-01"),
            ({"successor": "new"}, "old is deprecated; use `new` instead"),
            (
                {"retires_on": "2027-01-01", "successor": "new"},
                "old is deprecated and retires on 2027-01-01; use `new` instead",
            ),
        ],
    )
    def test_is_told_in_why_and_changes_nothing_else(self, clock, body, why):
        router = router_of(catalogue(old={"lifecycle": "deprecated", **body}, new={}), clock)
        plan = router.plan(asking("old"))
        told = router.current(plan)
        assert told.targets == plan.targets
        assert told.why == ("old: a model", why)

    def test_is_of_the_stage_and_not_of_the_date(self, clock):
        router = router_of(catalogue(a={"retires_on": "2027-01-01"}, b={"lifecycle": "preview"}), clock)
        for name in ("a", "b"):
            plan = router.plan(asking(name))
            assert router.current(plan) is plan

    def test_what_has_no_life_but_to_be_active_costs_nothing(self, clock):
        router = router_of(catalogue(a={}, old={"lifecycle": "deprecated"}), clock)
        plan = router.plan(asking("a"))
        assert router.current(plan) is plan
        assert router.plan(asking("a")) is plan


class TestSuccessors:
    @pytest.mark.parametrize(
        ("models", "says"),
        [
            ({"a": {"successor": "x"}}, "model `a`: successor names `x`, which is not declared; declare that model"),
            ({"a": {"successor": "a"}}, "model `a`: successor names the model itself;"),
            (
                {"a": {"successor": "b"}, "b": {"hidden": True}},
                "model `a`: successor names `b`, which is hidden; name one that all may know of.",
            ),
        ],
    )
    def test_one_that_cannot_be_told_is_refused_with_the_cure(self, models, says):
        with pytest.raises(InvalidDeclaration) as caught:
            catalogue(**models)
        assert caught.value.message.startswith(says)
        assert caught.value.param == "successor"

    def test_an_alias_counts_as_hidden_where_all_behind_it_is(self):
        alias = document("alias", "fast", targets=["b"])
        with pytest.raises(InvalidDeclaration, match="hidden"):
            catalogue(alias, a={"successor": "fast"}, b={"hidden": True})
        both = document("alias", "fast", targets=["b", "c"])
        assert catalogue(both, a={"successor": "fast"}, b={"hidden": True}, c={}).lifecycles["a"].successor == "fast"

    def test_a_hidden_model_may_have_one(self):
        assert catalogue(a={"successor": "b", "hidden": True}, b={}).lifecycles["a"].successor == "b"


@pytest.mark.parametrize(
    "body",
    [
        {"lifecycle": "dead"}, {"lifecycle": None}, {"retires_on": "tomorrow"}, {"retires_on": "2026-13-01"},
        {"retires_on": "2026-12-01T10:00:00"}, {"successor": ""}, {"base": ""}, {"base": 1},
    ],
)  # fmt: skip
def test_a_life_of_the_wrong_shape_is_refused(body):
    with pytest.raises(ValidationError):
        KINDS["model"].model_validate({"provider": "s", **body})


def test_what_was_declared_before_there_were_lifecycles_is_active_and_has_no_base():
    known = catalogue(a={})
    assert (dict(known.lifecycles), dict(known.bases)) == ({}, {})
