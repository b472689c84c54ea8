"""Policy against a reference that reads the documents themselves, and the words of each refusal."""

import random
from datetime import UTC, datetime, timedelta

import pytest

from governance import (
    ApprovalRequired,
    Denied,
    Directory,
    ModelNotAllowed,
    Policy,
    PolicyDenied,
    Rules,
    UseCaseRequired,
)
from kernel import Caller, DataClass, Document, Plan, Target

AT = datetime(2026, 11, 1, tzinfo=UTC)
LABELS = ("public", "internal", "confidential", "restricted")


def document(kind, name, **body):
    return Document(kind, name, 1, body, "test", AT)


def target(name, *, hidden=False):
    return Target(name, "sandbox", name, 8_000, 1_000, hidden=hidden)


def policy_of(documents, clock, **bases):
    directory, rules = Directory.of(documents), Rules.of(documents, bases)
    return Policy(lambda: rules, lambda: directory, clock=clock)


def world(*policies, **app):
    return [
        document("department", "sales"),
        document("department", "legal"),
        document("use_case", "chat", purpose="chat"),
        document("use_case", "draft", purpose="draft"),
        document("app", "crm", **({"department": "sales", "use_cases": ["chat", "draft"]} | app)),
        *policies,
    ]


def rule(name="p", **body):
    full = {"models": ["m"], "departments": ["sales"], "use_cases": ["chat"], "data_class": "internal"}
    return document("policy", name, **(full | body))


CALLER = Caller("key_1", "k", "sales", "crm", use_cases=("chat", "draft"), use_case="chat")
PLAN = Plan("fast", (target("m"), target("n")))


def reference(documents, caller, target, now, **bases):
    """Whether any policy document lets this through, read without any index."""
    policies = [each for each in documents if each.kind == "policy"]
    is_named = any(target.name in each.body["models"] and "*" not in each.body["models"] for each in policies)
    judged_as = target.name if is_named else bases.get(target.name, target.name)
    for each in policies:
        body = each.body
        opened = any(model in {"*", judged_as} for model in body["models"])
        opened = opened and any(name in {"*", caller.department} for name in body["departments"])
        opened = opened and any(name in {"*", caller.use_case} for name in body["use_cases"])
        opened = opened and LABELS.index(body["data_class"]) >= int(caller.data_class)
        if opened and body.get("approval_required"):
            opened = any(
                g.kind == "grant"
                and g.body["model"] in {target.name, judged_as}
                and (g.body["app"], g.body["use_case"]) == (caller.app, caller.use_case)
                and datetime.fromisoformat(g.body["until"]) > now
                for g in documents
            )
        if opened:
            return True
    return False


def generated(draw):
    departments, use_cases, models = ["d0", "d1", "d2"], ["u0", "u1", "u2"], ["m0", "m1", "m2", "m3"]
    some = lambda names: draw.sample([*names, "*"], draw.randint(1, 2))  # noqa: E731
    documents = [document("department", name) for name in departments]
    documents += [document("use_case", name, purpose="x") for name in use_cases]
    apps = {f"a{n}": draw.choice(departments) for n in range(3)}
    classes = {name: draw.choice(LABELS) for name in apps}
    documents += [
        document("app", name, department=home, use_cases=use_cases, data_class=classes[name])
        for name, home in apps.items()
    ]
    for n in range(draw.randint(0, 6)):
        documents.append(
            document(
                "policy",
                f"p{n}",
                models=some(models),
                departments=some(departments),
                use_cases=some(use_cases),
                data_class=draw.choice(LABELS),
                approval_required=draw.random() < 0.4,
            )
        )
    for n in range(draw.randint(0, 6)):
        documents.append(
            document(
                "grant",
                f"g{n}",
                app=draw.choice(list(apps)),
                model=draw.choice(models),
                use_case=draw.choice(use_cases),
                until=(datetime(2026, 11, 20, 12, tzinfo=UTC) + timedelta(hours=draw.choice([-1, 0, 1]))).isoformat(),
                reason="r",
            )
        )
    app = draw.choice(list(apps))
    use_case = draw.choice(use_cases)
    caller = Caller("key_1", "k", apps[app], app, data_class=DataClass.parse(classes[app]), use_case=use_case)
    chosen = draw.sample(models, draw.randint(1, 4))
    plan = Plan("asked", tuple(target(name, hidden=draw.random() < 0.3) for name in chosen))
    hint = draw.choice([None, *DataClass])
    bases = {name: draw.choice(models[:2]) for name in models[2:] if draw.random() < 0.6}
    return documents, caller if hint is None else caller.raised(hint), plan, (classes[app], hint), bases


def test_allowed_lets_through_exactly_what_the_reference_lets_through(clock):
    draw, outcomes = random.Random(20261120), set()
    for _ in range(1_500):
        documents, caller, plan, (of_app, hint), bases = generated(draw)
        assert int(caller.data_class) == max(LABELS.index(of_app), int(hint or 0))
        expected = tuple(each for each in plan if reference(documents, caller, each, clock.now(), **bases))
        policy = policy_of(documents, clock, **bases)
        try:
            kept, verdict = policy.allowed(caller, plan)
        except Denied as denial:
            assert expected == ()
            outcomes.add(denial.code)
        else:
            assert kept.targets == expected
            assert {r.target for r in verdict.rulings if r.allowed} == {each.name for each in expected}
            outcomes.add("allowed")
    assert outcomes == {"allowed", "policy_denied", "model_not_allowed", "approval_required"}


def test_nothing_is_open_without_a_policy(clock):
    with pytest.raises(ModelNotAllowed) as denied:
        policy_of(world(), clock).allowed(CALLER, PLAN)
    assert "'fast'" in denied.value.message
    assert (denied.value.status, denied.value.code) == (403, "model_not_allowed")


def test_nearest_miss_names_its_policy_the_condition_and_the_cure(clock):
    policy = policy_of(world(rule("far", use_cases=["draft"], data_class="public"), rule("near")), clock)
    with pytest.raises(PolicyDenied) as denied:
        policy.allowed(CALLER.raised(DataClass.CONFIDENTIAL), PLAN)
    message = denied.value.message
    assert "'near' permits up to internal" in message
    assert "confidential" in message
    assert "X-Data-Class" in message
    assert "far" not in message
    assert denied.value.verdict["targets"][0] == {
        "target": "m",
        "allowed": False,
        "policy": "near",
        "failed": ["data_class"],
    }


def test_refused_use_case_hears_which_of_its_own_are_covered(clock):
    with pytest.raises(PolicyDenied, match="of yours it covers: draft"):
        policy_of(world(rule(use_cases=["draft"])), clock).allowed(CALLER, PLAN)


def test_denial_never_names_another_department(clock):
    with pytest.raises(ModelNotAllowed) as denied:
        policy_of(world(rule("legal-only", departments=["legal"])), clock).allowed(CALLER, PLAN)
    assert "legal" not in denied.value.message
    assert "legal" not in str(denied.value.verdict)


def test_grant_opens_until_its_hour_and_not_after(clock):
    until = clock.now() + timedelta(hours=1)
    grant = document("grant", "g", app="crm", model="m", use_case="chat", until=until.isoformat(), reason="r")
    policy = policy_of(world(rule(approval_required=True), grant), clock)
    assert [each.name for each in policy.allowed(CALLER, PLAN)[0]] == ["m"]
    clock.advance(3_600)
    with pytest.raises(ApprovalRequired, match="grant declared for app 'crm', model 'm', use case 'chat'"):
        policy.allowed(CALLER, PLAN)


def test_hidden_target_shows_only_to_departments_a_policy_lets_in(clock):
    policy = policy_of(world(rule(departments=["legal"])), clock)
    secret = target("m", hidden=True)
    assert not policy.visible(CALLER, secret)
    assert policy.visible(Caller("k", "k", "legal"), secret)
    with pytest.raises(ModelNotAllowed) as denied:
        policy.allowed(CALLER, Plan("m", (secret,)))
    assert denied.value.verdict["targets"] == []


def test_observed_policy_filters_nothing_but_the_invisible_and_says_what_it_would_deny(clock):
    documents = world(rule(), observe={"policy": "2026-11-20"})
    plan = Plan("fast", (*PLAN.targets, target("secret", hidden=True)))
    kept, verdict = policy_of(documents, clock).allowed(CALLER, plan)
    assert [each.name for each in kept] == ["m", "n"]
    assert verdict.observed
    assert [(r.target, r.allowed) for r in verdict.rulings] == [("m", True), ("n", False)]


def test_observing_ends_with_its_day(clock):
    documents = world(rule(), observe={"policy": "2026-11-19"})
    kept, verdict = policy_of(documents, clock).allowed(CALLER, PLAN)
    assert ([each.name for each in kept], verdict.observed) == (["m"], False)


def test_operators_key_opens_nothing(clock):
    operator = Caller("k", "k")
    policy = policy_of(world(rule(models=["*"], departments=["*"], use_cases=["*"])), clock)
    with pytest.raises(ModelNotAllowed):
        policy.allowed(operator, PLAN)
    with pytest.raises(PolicyDenied):
        policy.use_case(operator, None)


def test_use_case_is_the_hint_or_the_only_one(clock):
    policy = policy_of(world(), clock)
    assert policy.use_case(CALLER, "draft") == "draft"
    assert policy.use_case(Caller("k", "k", "sales", "crm", use_cases=("chat",)), None) == "chat"
    with pytest.raises(UseCaseRequired, match="chat, draft") as missing:
        policy.use_case(CALLER, None)
    assert missing.value.param == "use_case"
    with pytest.raises(PolicyDenied, match="'other'"):
        policy.use_case(CALLER, "other")


def test_cost_does_not_grow_with_policies_for_others(clock):
    others = [rule(f"p{n}", models=[f"x{n}"], departments=["legal"]) for n in range(2_000)]
    rules = Rules.of(world(rule(), *others))
    assert [each.name for each in rules.opening("m", "sales")] == ["p"]


def test_approval_is_never_satisfied_without_a_use_case(clock):
    policy = policy_of(world(rule(use_cases=["*"], approval_required=True)), clock)
    with pytest.raises(ApprovalRequired):
        policy.allowed(Caller("k", "k", "sales", "crm"), PLAN)


TUNED = Plan("tuned", (target("tuned"),))


def grant(model, until, name="g"):
    return document("grant", name, app="crm", model=model, use_case="chat", until=until.isoformat(), reason="r")


class TestBases:
    """A model that was made from another, `tuned` from `m`."""

    def test_a_model_that_no_policy_names_is_judged_as_its_base(self, clock):
        policy = policy_of(world(rule()), clock, tuned="m")
        plan, verdict = policy.allowed(CALLER, TUNED)
        assert plan is TUNED
        assert verdict.as_json()["targets"] == [
            {"target": "tuned", "allowed": True, "policy": "p", "failed": [], "judged_as": "m"}
        ]

    def test_what_the_base_denies_it_is_denied_with_the_bases_policy_as_nearest_miss(self, clock):
        with pytest.raises(PolicyDenied, match="Policy 'p' permits up to internal") as denied:
            policy_of(world(rule()), clock, tuned="m").allowed(CALLER.raised(DataClass.RESTRICTED), TUNED)
        assert denied.value.verdict["targets"][0]["judged_as"] == "m"

    def test_nothing_is_open_where_nothing_opens_the_base(self, clock):
        with pytest.raises(ModelNotAllowed) as denied:
            policy_of(world(rule(models=["n"])), clock, tuned="m").allowed(CALLER, TUNED)
        assert "judged_as" not in denied.value.verdict["targets"][0], "whoever may not use a base is not told of it"

    def test_the_base_is_not_opened_by_what_opens_the_model(self, clock):
        policy = policy_of(world(rule(models=["tuned"])), clock, tuned="m")
        assert policy.judge(CALLER, TUNED).allows_all
        assert not policy.judge(CALLER, Plan("m", (target("m"),))).allows_all

    def test_a_model_that_a_policy_names_is_governed_by_that_alone_whichever_department_it_is_for(self, clock):
        policy = policy_of(world(rule(), rule("own", models=["tuned"], departments=["legal"])), clock, tuned="m")
        with pytest.raises(ModelNotAllowed):
            policy.allowed(CALLER, TUNED)
        lawyer = Caller("key_2", "k", "legal", "other", use_cases=("chat",), use_case="chat")
        verdict = policy.allowed(lawyer, TUNED)[1]
        assert [(each.policy, each.judged_as) for each in verdict.rulings] == [("own", None)]

    def test_policies_for_all_models_hold_for_it_in_either_case(self, clock):
        for own in ([], [rule("own", models=["tuned"], departments=["legal"])]):
            policy = policy_of(world(rule("all", models=["*"]), *own), clock, tuned="m")
            assert policy.judge(CALLER, TUNED).rulings[0].policy == "all"

    @pytest.mark.parametrize("of", ["m", "tuned"])
    def test_an_approval_of_the_base_or_of_the_model_itself_opens_it_until_its_hour(self, clock, of):
        until = clock.now() + timedelta(hours=1)
        policy = policy_of(world(rule(approval_required=True), grant(of, until)), clock, tuned="m")
        assert policy.judge(CALLER, TUNED).allows_all
        clock.advance(3_600)
        with pytest.raises(ApprovalRequired, match="model 'tuned'"):
            policy.allowed(CALLER, TUNED)

    @pytest.mark.parametrize("hours", [(1, 2), (2, 1)])
    def test_the_later_of_two_approvals_counts(self, clock, hours):
        until = [clock.now() + timedelta(hours=each) for each in hours]
        documents = world(rule(approval_required=True), grant("m", until[0]), grant("tuned", until[1], "h"))
        policy = policy_of(documents, clock, tuned="m")
        clock.advance(3_600)
        assert policy.judge(CALLER, TUNED).allows_all
        clock.advance(3_600)
        assert not policy.judge(CALLER, TUNED).allows_all

    def test_an_approval_of_the_base_is_none_for_a_model_with_a_policy_of_its_own(self, clock):
        own = rule("own", models=["tuned"], approval_required=True)
        documents = world(rule(), own, grant("m", clock.now() + timedelta(hours=1)))
        with pytest.raises(ApprovalRequired):
            policy_of(documents, clock, tuned="m").allowed(CALLER, TUNED)

    def test_an_approval_of_the_model_is_none_for_its_base(self, clock):
        documents = world(rule(approval_required=True), grant("tuned", clock.now() + timedelta(hours=1)))
        assert not policy_of(documents, clock, tuned="m").judge(CALLER, Plan("m", (target("m"),))).allows_all

    def test_a_hidden_one_shows_to_those_whom_its_base_is_open_to(self, clock):
        policy = policy_of(world(rule(departments=["legal"])), clock, tuned="m")
        secret = target("tuned", hidden=True)
        assert not policy.visible(CALLER, secret)
        assert policy.visible(Caller("k", "k", "legal"), secret)

    def test_cost_does_not_grow_with_models_made_from_others(self, clock):
        rules = Rules.of(world(rule()), {f"tuned-{n}": "m" for n in range(2_000)})
        assert len(rules.by_model_and_department) == 1
        assert [each.name for each in rules.opening("tuned-1999", "sales")] == ["p"]
