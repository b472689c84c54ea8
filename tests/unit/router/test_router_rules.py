"""Rules: which requests match, which rule comes first, and that the mission's five sentences are kept."""

import random
from itertools import product

import pytest
from pydantic import ValidationError

from kernel import InvalidDeclaration, ModelRequest
from router import KINDS, Catalogue, Health, Router
from router.rules import Rule
from tests.fakes.routing import asking, several

MISSION = (
    {"when": {"prompt_tokens_over": 100_000}, "use": "long_context"},
    {"when": {"task_type": ["code"]}, "use": "code"},
    {"when": {"max_latency_ms_under": 1000}, "use": "fast"},
    {"when": {"quality_level": ["critical"]}, "use": "quality"},
)
COST = {"cheap": 1, "dear": 9}


def routing(known: Catalogue, clock) -> Router:
    health = Health(lambda: known, dice=random.Random(1), clock=clock)
    return Router(lambda: known, health, cost_of=lambda target, _: COST.get(target.name), dice=random.Random(1))


def mission(clock) -> Router:
    classes = {name: {"targets": [f"{name}-1", f"{name}-2"]} for name in ("long_context", "code", "fast", "quality")}
    models = [model for body in classes.values() for model in body["targets"]]
    auto = {"targets": ["dear", "cheap"], "choose": "cheapest", "rules": list(MISSION)}
    return routing(several("dear", "cheap", *models, **classes, auto=auto), clock)


class TestConditions:
    @pytest.mark.parametrize(("tokens", "matches"), [(99, False), (100, False), (101, True)])
    def test_over_means_over(self, tokens, matches):
        assert (Rule("x", prompt_tokens_over=100).why(asking("m", tokens)) is not None) is matches

    @pytest.mark.parametrize(("asked", "matches"), [(None, False), (0, True), (999, True), (1000, False)])
    def test_under_means_under_and_needs_the_hint(self, asked, matches):
        rule = Rule("x", max_latency_ms_under=1000)
        assert (rule.why(asking("m", max_latency_ms=asked)) is not None) is matches

    @pytest.mark.parametrize(("said", "matches"), [(None, False), ("code", True), ("sql", True), ("Code", False)])
    def test_words_are_taken_as_they_are(self, said, matches):
        words = frozenset({"code", "sql"})
        assert (Rule("x", task_type=words).why(asking("m", task_type=said)) is not None) is matches
        assert (Rule("x", quality_level=words).why(asking("m", quality_level=said)) is not None) is matches

    def test_every_condition_that_is_given_must_hold(self):
        rule = Rule("x", 10, frozenset({"code"}), 1000, frozenset({"high"}))
        for tokens, task, latency, quality in product((5, 50), ("code", "chat"), (10, 9999), ("high", "low")):
            request = asking("m", tokens, task_type=task, max_latency_ms=latency, quality_level=quality)
            expected = (tokens, task, latency, quality) == (50, "code", 10, "high")
            assert (rule.why(request) is not None) is expected

    def test_a_prompt_that_holds_more_than_text_has_no_length(self):
        media = ModelRequest("m", {}, input_tokens_max=None)
        assert Rule("x", prompt_tokens_over=0).why(media) is None

    @pytest.mark.parametrize(
        "when",
        [
            {}, {"task_type": None}, {"task_type": []}, {"task_type": [""]}, {"task_type": "code"},
            {"prompt_tokens_over": -1}, {"max_latency_ms_under": 0}, {"weather": "fine"},
        ],
    )  # fmt: skip
    def test_a_rule_that_says_nothing_or_nonsense_is_refused(self, when):
        with pytest.raises(ValidationError):
            KINDS["alias"].model_validate({"targets": ["a"], "rules": [{"when": when, "use": "a"}]})


class TestChoice:
    def test_the_first_rule_that_matches_wins(self, clock):
        rules = [{"when": {"task_type": ["code"]}, "use": "a"}, {"when": {"prompt_tokens_over": 0}, "use": "b"}]
        router = routing(several("a", "b", "c", x={"targets": ["c"], "rules": rules}), clock)
        chosen = [
            router.plan(asking("x", tokens, task_type=task)) for tokens, task in ((9, "code"), (9, None), (0, None))
        ]
        assert [[target.name for target in plan] for plan in chosen] == [["a"], ["b"], ["c"]]
        assert {plan.requested for plan in chosen} == {"x"}

    def test_a_rule_may_lead_to_an_alias_with_rules_of_its_own(self, clock):
        router = routing(
            several(
                "a", "b", "c",
                x={"targets": ["a"], "rules": [{"when": {"task_type": ["code"]}, "use": "y"}]},
                y={"targets": ["b"], "rules": [{"when": {"prompt_tokens_over": 5}, "use": "c"}]},
            ),
            clock,
        )  # fmt: skip
        plan = router.plan(asking("x", 9, task_type="code"))
        assert [target.name for target in plan] == ["c"]
        assert plan.why == (
            "x: rule 1 of 1 says y, because task_type is code",
            "y: rule 1 of 1 says c, because about 9 prompt tokens are over 5",
            "c: a model",
        )
        assert router.plan(asking("x", 9)).why == ("x: none of its 1 rules matches", "x: as declared, in order")

    def test_five_hundred_requests_go_where_the_mission_says(self, clock):
        router, dice, seen = mission(clock), random.Random(2026), set()
        for _ in range(500):
            tokens = dice.choice([0, 10, 99_999, 100_000, 100_001, dice.randrange(300_000)])
            task = dice.choice([None, "code", "chat", "summary"])
            latency = dice.choice([None, 0, 999, 1000, 1001, dice.randrange(5000)])
            quality = dice.choice([None, "critical", "normal"])
            plan = router.plan(asking("auto", tokens, task_type=task, max_latency_ms=latency, quality_level=quality))
            expected = _as_the_mission_says(tokens, task, latency, quality)
            wanted = [f"{expected}-1", f"{expected}-2"] if expected != "cheapest" else ["cheap", "dear"]
            assert [target.name for target in plan] == wanted, plan.why
            assert (expected in plan.why[0]) is (expected != "cheapest")
            seen.add(expected)
        assert seen == {"long_context", "code", "fast", "quality", "cheapest"}


def _as_the_mission_says(tokens: int, task: str | None, latency: int | None, quality: str | None) -> str:
    """The mission's sentences again, on their own."""
    if tokens > 100_000:
        return "long_context"
    if task == "code":
        return "code"
    if latency is not None and latency < 1000:
        return "fast"
    return "quality" if quality == "critical" else "cheapest"


def leading(**ways: str) -> Catalogue:
    """Aliases whose only rule leads to the one given."""
    bodies = {
        name: {"targets": ["m"], "rules": [{"when": {"prompt_tokens_over": 1}, "use": use}]}
        for name, use in ways.items()
    }
    return several("m", **bodies)


class TestWays:
    @pytest.mark.parametrize(
        ("ways", "says"),
        [
            ({"a": "a"}, "alias `a`: rules lead in a circle, a -> a;"),
            ({"a": "b", "b": "a"}, "alias `a`: rules lead in a circle, a -> b -> a;"),
            ({"a": "b", "b": "c", "c": "a"}, "alias `a`: rules lead in a circle, a -> b -> c -> a;"),
            (
                {"a": "b", "b": "c", "c": "d", "d": "m"},
                "alias `a`: rules lead through more than 3 aliases, a -> b -> c -> d;",
            ),
            ({"a": "nobody"}, "alias `a`: rules.0.use names `nobody`, which is not declared"),
        ],
    )
    def test_a_circle_or_a_long_way_is_refused_by_its_name(self, ways, says):
        with pytest.raises(InvalidDeclaration) as caught:
            leading(**ways)
        assert caught.value.message.startswith(says)

    def test_three_aliases_in_a_row_are_fine(self):
        assert leading(a="b", b="c", c="m").names() == ("a", "b", "c", "m")

    def test_what_a_name_can_reach_includes_its_rules(self):
        rules = [{"when": {"prompt_tokens_over": 1}, "use": use} for use in ("y", "a", "y")]
        known = several("a", "b", "c", x={"targets": ["b"], "rules": rules}, y={"targets": ["c", "b"]})
        assert [target.name for target in known.reachable("x")] == ["b", "c", "a"]
        assert [target.name for target in known.reachable("a")] == ["a"]
