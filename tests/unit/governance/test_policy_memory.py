"""Verdicts that are kept: no older than what is declared, and no longer true than time lets them be."""

import random
from datetime import UTC, datetime, timedelta, timezone

import msgspec
import pytest

from governance import ApprovalRequired, Directory, ModelNotAllowed, Policy, PolicyDenied, Rules
from governance import policy as rooms
from kernel import Caller, DataClass, Document, Plan, Target

AT = datetime(2026, 11, 1, tzinfo=UTC)
CALLER = Caller("key_1", "k", "sales", "crm", use_cases=("chat", "draft"), use_case="chat")
RULE = {"models": ["m"], "departments": ["sales"], "use_cases": ["chat"], "data_class": "internal"}


def document(kind, name, **body):
    return Document(kind, name, 1, body, "test", AT)


def rule(name="p", **body):
    return document("policy", name, **(RULE | body))


def grant(until, name="g"):
    return document("grant", name, app="crm", model="m", use_case="chat", until=until.isoformat(), reason="r")


def target(name="m", *, hidden=False):
    return Target(name, "sandbox", name, 8_000, 1_000, hidden=hidden)


PLAN = Plan("m", (target(),))


class Office:
    """A policy that stays while what is declared changes under it."""

    def __init__(self, clock, *documents, **app):
        self.declare(*documents, **app)
        self.policy = Policy(lambda: self.rules, lambda: self.directory, clock=clock)
        self.clock = clock

    def declare(self, *documents, **app):
        self.declare_apps(**app)
        self.declare_rules(*documents)

    def declare_rules(self, *documents):
        self.rules = Rules.of(documents)

    def declare_apps(self, **app):
        world = [
            document("department", "sales"),
            document("use_case", "chat", purpose="x"),
            document("use_case", "draft", purpose="x"),
            document("app", "crm", **({"department": "sales", "use_cases": ["chat", "draft"]} | app)),
        ]
        self.directory = Directory.of(world)

    def allows(self, caller=CALLER, plan=PLAN):
        verdict = self.policy.judge(caller, plan)
        fresh = Policy(lambda: self.rules, lambda: self.directory, clock=self.clock).judge(caller, plan)
        assert verdict == fresh, "what is kept is what would be said now"
        return verdict.allows_all


def test_the_same_question_is_answered_from_memory(clock):
    office = Office(clock, rule())
    assert office.policy.judge(CALLER, PLAN) is office.policy.judge(CALLER, PLAN)


@pytest.mark.parametrize("seconds", [0, 1, 3_599, 12 * 3_600 - 1, 12 * 3_600, 30 * 3_600])
def test_an_approval_ends_at_its_instant_also_for_those_who_asked_before(clock, seconds):
    office = Office(clock, rule(approval_required=True), grant(clock.now() + timedelta(seconds=seconds)))
    while seconds > 0:
        assert office.allows()
        step = min(seconds, 3_600)
        clock.advance(step - 0.001)
        assert office.allows()
        clock.advance(0.001)
        seconds -= step
    assert not office.allows()


def test_the_earliest_of_many_approvals_ends_what_is_kept(clock):
    plan = Plan("x", (target(), target("n")))
    late = document(
        "grant", "h", app="crm", model="n", use_case="chat", until=(clock.now() + timedelta(hours=2)).isoformat(),
        reason="r",
    )  # fmt: skip
    office = Office(
        clock,
        rule(models=["m", "n"], approval_required=True),
        grant(clock.now() - timedelta(hours=1), "ended"),
        grant(clock.now() + timedelta(hours=1)),
        late,
    )
    told = []
    for _ in range(3):
        told.append([ruling.allowed for ruling in office.policy.judge(CALLER, plan).rulings])
        office.allows(plan=plan)
        clock.advance(3_600)
    assert told == [[True, True], [False, True], [False, False]]


def test_observing_ends_at_midnight_for_those_who_asked_the_day_before(clock):
    office = Office(clock, rule(models=["other"]), observe={"policy": "2026-11-20"})
    clock.at = datetime(2026, 11, 20, 23, 59, 59, 999_999, tzinfo=UTC)
    assert office.policy.allowed(CALLER, PLAN)[1].observed
    clock.at = datetime(2026, 11, 21, tzinfo=UTC)
    with pytest.raises(ModelNotAllowed):
        office.policy.allowed(CALLER, PLAN)


def test_an_approval_until_an_instant_elsewhere_ends_at_that_instant(clock):
    east = clock.now().astimezone(timezone(timedelta(hours=14))) + timedelta(hours=1)
    office = Office(clock, rule(approval_required=True), grant(east))
    assert office.allows()
    clock.advance(3_600)
    assert not office.allows()


@pytest.mark.parametrize("back", [timedelta(seconds=1), timedelta(days=400)])
def test_a_clock_that_is_put_right_again_is_believed(clock, back):
    office = Office(clock, rule(approval_required=True), grant(clock.now()))
    with pytest.raises(ApprovalRequired):
        office.policy.allowed(CALLER, PLAN)
    clock.at -= back
    assert office.policy.allowed(CALLER, PLAN)[0] is PLAN
    assert office.allows()


def test_a_clock_that_went_back_keeps_nothing_of_its_future(clock):
    """Between two days, forth and back: each instant has its own verdict."""
    office = Office(clock, rule(approval_required=True), grant(clock.now() + timedelta(hours=30)))
    draw, noon, told = random.Random(7), clock.now(), []
    for _ in range(300):
        clock.at = noon + timedelta(hours=draw.randint(-20, 60))
        told.append(office.allows())
    assert set(told) == {True, False}


def test_a_declaration_is_in_force_with_the_next_question(clock):
    office = Office(clock, rule())
    assert office.allows()
    office.declare_rules(rule(data_class="public"))
    with pytest.raises(PolicyDenied):
        office.policy.allowed(CALLER.raised(DataClass.INTERNAL), PLAN)
    office.declare_rules()
    assert not office.allows()
    office.declare_rules(rule())
    assert office.allows()


def test_a_directory_that_alone_is_new_counts_as_well(clock):
    office = Office(clock, rule(models=["other"]), observe={"policy": "2026-11-30"})
    assert office.policy.judge(CALLER, PLAN).observed
    office.declare_apps()
    assert not office.policy.judge(CALLER, PLAN).observed


def test_nobody_is_answered_with_what_somebody_else_was_told(clock):
    office = Office(
        clock,
        rule("a", approval_required=True),
        rule("b", use_cases=["draft"], data_class="public"),
        rule("c", departments=["legal"]),
        grant(clock.now() + timedelta(hours=1)),
        observe={"policy": "2026-11-30"},
    )
    changes = (
        {},
        {"department": "legal"},
        {"department": None},
        {"app": "other"},
        {"app": None},
        {"use_case": "draft"},
        {"use_case": None},
        {"data_class": DataClass.PUBLIC},
        {"data_class": DataClass.CONFIDENTIAL},
    )
    plans = (
        PLAN,
        Plan("m", (target("n"),)),
        Plan("m", (target(hidden=True),)),
        Plan("m", (target(), target("n"))),
        Plan("m", (target("n"), target())),
        Plan("m", (target("n", hidden=True), target())),
        Plan("m", (target("n"), target(hidden=True))),
    )
    questions = [(msgspec.structs.replace(CALLER, **change), plan) for change in changes for plan in plans]
    for caller, plan in questions * 2:
        office.allows(caller, plan)
    assert len({office.policy.judge(*question) for question in questions}) > 20


def test_what_is_kept_is_bounded(clock):
    office = Office(clock, rule(models=["*"]))
    for n in range(rooms._VERDICTS_MAX + 10):
        assert office.policy.judge(CALLER, Plan("x", (target(f"m{n}"),))).allows_all
    assert len(office.policy._memory.verdicts) <= rooms._VERDICTS_MAX
