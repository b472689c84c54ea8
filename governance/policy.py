"""Who may use which target, for what and how sensitive: deny by default, every denial explained.

Budgets and rates are decided elsewhere, and whether an unknown model is a 404 is the edge's to say.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, time, timedelta
from enum import StrEnum
from functools import cached_property
from types import MappingProxyType

from governance import wire
from governance.directory import Directory
from governance.errors import ApprovalRequired, Denied, ModelNotAllowed, PolicyDenied, UseCaseRequired
from kernel import Caller, Clock, DataClass, Document, Plan, Target

_ALL = "*"
_VERDICTS_MAX = 10_000
_LONG_AGO = datetime(1, 1, 1, tzinfo=UTC)
_NO_BASES: Mapping[str, str] = MappingProxyType({})


class Condition(StrEnum):
    """What a policy asks of a caller before it opens a target."""

    DEPARTMENT = "department"
    USE_CASE = "use_case"
    DATA_CLASS = "data_class"
    APPROVAL = "approval"


@dataclass(frozen=True, slots=True)
class Rule:
    """A policy, read once."""

    name: str
    use_cases: frozenset[str]
    data_class: DataClass
    approval_required: bool

    def permits_use_case(self, use_case: str | None) -> bool:
        """Whether this policy holds for the use case."""
        return _ALL in self.use_cases or use_case in self.use_cases


@dataclass(frozen=True, slots=True)
class Rules:
    """All policies and grants in force, found by model and department without walking the others.

    judged_as: model to its base, for models that no policy names. Such a model is judged as its base: by the policies
    and grants that name the base, beside grants of its own. One that any policy names, for whichever department, is
    governed by what names it alone, so that a fine-tune can be kept from those who may use its base. Policies for all
    models hold for either.
    """

    by_model_and_department: Mapping[tuple[str, str], tuple[Rule, ...]]
    granted_until: Mapping[tuple[str, str, str], datetime]
    judged_as: Mapping[str, str]

    @classmethod
    def of(cls, documents: Iterable[Document], bases: Mapping[str, str] = _NO_BASES) -> "Rules":
        """The rules these documents declare. References are the directory's to check.

        bases: model to the one it was made from, which has none itself.
        """
        rules: dict[tuple[str, str], list[Rule]] = defaultdict(list)
        granted: dict[tuple[str, str, str], datetime] = {}
        for document in sorted(documents, key=lambda each: each.name):
            if document.kind == "policy":
                body = wire.Policy.model_validate(document.body)
                rule = Rule(
                    name=document.name,
                    use_cases=frozenset(body.use_cases),
                    data_class=DataClass.parse(body.data_class),
                    approval_required=body.approval_required,
                )
                for place in _places(body):
                    rules[place].append(rule)
            elif document.kind == "grant":
                grant = wire.Grant.model_validate(document.body)
                key = (grant.app, grant.model, grant.use_case)
                granted[key] = max(grant.until, granted.get(key, grant.until))
        indexed = {place: tuple(found) for place, found in rules.items()}
        named = {model for model, _ in indexed}
        judged_as = {model: base for model, base in bases.items() if model not in named}
        return cls(MappingProxyType(indexed), MappingProxyType(granted), MappingProxyType(judged_as))

    def opening(self, model: str, department: str | None) -> tuple[Rule, ...]:
        """The policies that open the model to the department, whatever else they ask; the most specific first."""
        if department is None:
            return ()
        model = self.judged_as.get(model, model)
        find = self.by_model_and_department.get
        return (
            find((model, department), ())
            + find((model, _ALL), ())
            + find((_ALL, department), ())
            + find((_ALL, _ALL), ())
        )

    def granted(self, caller: Caller, model: str) -> datetime | None:
        """Until when the caller's app may use the model for its use case; None where nobody approved it."""
        if caller.app is None or caller.use_case is None:
            return None
        until = self.granted_until.get((caller.app, model, caller.use_case))
        base = self.judged_as.get(model)
        of_base = None if base is None else self.granted_until.get((caller.app, base, caller.use_case))
        return max(until, of_base) if until and of_base else until or of_base

    def next_end(self, now: datetime) -> datetime:
        """When the passing of time alone can next change a verdict: a grant ends, or a day that something lasts to."""
        midnight = datetime.combine(now.date() + timedelta(days=1), time(), tzinfo=UTC)
        return min([midnight, *(until for until in self.granted_until.values() if until > now)])


def _places(body: wire.Policy) -> Iterator[tuple[str, str]]:
    # A list that holds `*` stands in one place only, so that no lookup finds the same policy twice.
    models = {_ALL} if _ALL in body.models else set(body.models)
    departments = {_ALL} if _ALL in body.departments else set(body.departments)
    return ((model, department) for model in models for department in departments)


@dataclass(frozen=True, slots=True)
class Ruling:
    """What policy says about one target: allowed by `policy`, or which conditions the nearest one failed.

    judged_as: its base, where that is opened to the caller and no policy names the target itself.
    """

    target: str
    allowed: bool
    policy: str | None = None
    failed: tuple[Condition, ...] = ()
    judged_as: str | None = None

    def as_json(self) -> Mapping[str, object]:
        """JSON values for the trail."""
        return {
            "target": self.target,
            "allowed": self.allowed,
            "policy": self.policy,
            "failed": [condition.value for condition in self.failed],
            **({} if self.judged_as is None else {"judged_as": self.judged_as}),
        }


@dataclass(frozen=True)  # no slots: a verdict serves many turns, and keeps what follows from its rulings
class Verdict:
    """The rulings on every target this caller may know of. observed: nothing was filtered, whatever they say."""

    rulings: tuple[Ruling, ...]
    observed: bool = False

    @cached_property
    def allows_all(self) -> bool:
        """Whether no ruling denies."""
        return all(ruling.allowed for ruling in self.rulings)

    def as_json(self) -> Mapping[str, object]:
        """JSON values for the trail and for headers."""
        return self._as_json

    @cached_property
    def _as_json(self) -> Mapping[str, object]:
        return {
            "observed": self.observed,
            "targets": [ruling.as_json() for ruling in self.rulings],
        }


@dataclass(slots=True)
class _Memory:
    """Verdicts given under the same rules, by question; within [since, until) time changes none of them."""

    rules: Rules | None = None
    directory: Directory | None = None
    since: datetime = _LONG_AGO
    until: datetime = _LONG_AGO
    verdicts: dict[tuple[object, ...], Verdict] = field(default_factory=dict)


def _question(caller: Caller, plan: Plan) -> tuple[object, ...]:
    """Everything about a caller and a plan that a verdict depends on."""
    return (caller.department, caller.app, caller.use_case, caller.data_class, plan.targets)


class Policy:
    """Decides on the caller as it stands: raise its data class and set its use case first."""

    def __init__(self, rules: Callable[[], Rules], directory: Callable[[], Directory], *, clock: Clock) -> None:
        self._rules = rules
        self._directory = directory
        self._clock = clock
        self._memory = _Memory()

    def visible(self, caller: Caller, target: Target) -> bool:
        """Whether the caller may know that the target exists."""
        return not target.hidden or bool(self._rules().opening(target.name, caller.department))

    def judge(self, caller: Caller, plan: Plan) -> Verdict:
        """What policy says about every visible target of the plan. Never raises.

        The same question has the same answer until something is declared or a day or an approval ends, so it is kept.
        """
        rules, directory, now = self._rules(), self._directory(), self._clock.now()
        memory, question = self._memory, _question(caller, plan)
        # A clock that is put back after it was wrong must not leave what it said in force until that time comes.
        if memory.rules is not rules or memory.directory is not directory or not memory.since <= now < memory.until:
            memory = self._memory = _Memory(rules, directory, now, rules.next_end(now))
        known = memory.verdicts.get(question)
        if known is None:
            if len(memory.verdicts) >= _VERDICTS_MAX:
                memory.verdicts.clear()
            known = memory.verdicts[question] = self._judge(caller, plan, rules, now)
        return known

    def _judge(self, caller: Caller, plan: Plan, rules: Rules, now: datetime) -> Verdict:
        rulings = tuple(_ruling(rules, caller, target, now=now) for target in plan if self.visible(caller, target))
        return Verdict(rulings, observed=self._observed(caller, now))

    def allowed(self, caller: Caller, plan: Plan) -> tuple[Plan, Verdict]:
        """The plan without the targets that policy denies or hides, in the same order.

        Raises ModelNotAllowed, PolicyDenied or ApprovalRequired, with the nearest miss, when nothing is left.
        While the app's policy is observed, only invisible targets are left out.
        """
        verdict = self.judge(caller, plan)
        if verdict.allows_all and len(verdict.rulings) == len(plan.targets):
            return plan, verdict
        kept = {ruling.target for ruling in verdict.rulings if ruling.allowed or verdict.observed}
        if not kept:
            raise self._denial(caller, plan.requested, verdict)
        return Plan(plan.requested, tuple(target for target in plan if target.name in kept)), verdict

    def use_case(self, caller: Caller, hint: str | None) -> str:
        """What this turn is for: the hint if the app registered it, or the only use case the app has.

        Raises UseCaseRequired where the app has several and the hint is missing, PolicyDenied where the hint is
        not one of them or the key belongs to no app.
        """
        if not caller.use_cases:
            raise PolicyDenied("This key belongs to no app with a use case; call models with an app's key.")
        own = ", ".join(caller.use_cases)
        if hint is not None:
            if hint not in caller.use_cases:
                raise PolicyDenied(
                    f"Use case '{hint[:128]}' is not registered for app '{caller.app}'; name one of: {own}, "
                    f"or have it registered.",
                    param="use_case",
                )
            return hint
        if len(caller.use_cases) > 1:
            raise UseCaseRequired(
                f"App '{caller.app}' has several use cases; name one of them in the header X-Use-Case: {own}.",
                param="use_case",
            )
        return caller.use_cases[0]

    def _observed(self, caller: Caller, now: datetime) -> bool:
        app = self._directory().apps.get(caller.app or "")
        until = app.policy_observed_until if app else None
        return until is not None and now.date() <= until

    def _denial(self, caller: Caller, requested: str, verdict: Verdict) -> Denied:
        misses = [ruling for ruling in verdict.rulings if ruling.policy is not None]
        facts = verdict.as_json()
        if not misses:
            return ModelNotAllowed(
                f"No policy opens model '{requested[:128]}' to your department; ask a platform administrator for one.",
                param="model",
                verdict=facts,
            )
        miss = min(misses, key=lambda ruling: len(ruling.failed))
        rule = next(r for r in self._rules().opening(miss.target, caller.department) if r.name == miss.policy)
        why = " ".join(_cure(condition, rule, caller, model=miss.target) for condition in miss.failed)
        kind = ApprovalRequired if miss.failed == (Condition.APPROVAL,) else PolicyDenied
        return kind(f"Model '{requested[:128]}' is not open to this request. {why}", param="model", verdict=facts)


def _ruling(rules: Rules, caller: Caller, target: Target, *, now: datetime) -> Ruling:
    base = rules.judged_as.get(target.name)
    nearest = Ruling(target.name, allowed=False, failed=(Condition.DEPARTMENT,))
    for rule in rules.opening(target.name, caller.department):
        failed = tuple(_failed(rule, rules, caller, model=target.name, now=now))
        if not failed:
            return Ruling(target.name, allowed=True, policy=rule.name, judged_as=base)
        if nearest.policy is None or len(failed) < len(nearest.failed):
            nearest = Ruling(target.name, allowed=False, policy=rule.name, failed=failed, judged_as=base)
    return nearest


def _failed(rule: Rule, rules: Rules, caller: Caller, *, model: str, now: datetime) -> Iterator[Condition]:
    if not rule.permits_use_case(caller.use_case):
        yield Condition.USE_CASE
    if caller.data_class > rule.data_class:
        yield Condition.DATA_CLASS
    if rule.approval_required:
        until = rules.granted(caller, model)
        if until is None or until <= now:
            yield Condition.APPROVAL


def _cure(condition: Condition, rule: Rule, caller: Caller, *, model: str) -> str:
    if condition is Condition.DATA_CLASS:
        return (
            f"Policy '{rule.name}' permits up to {rule.data_class.label}; your request is {caller.data_class.label} "
            f"(by the class of your app, header X-Data-Class, or what it holds, such as a card number): use a model "
            f"for {caller.data_class.label} data, or ask for a policy that permits it."
        )
    if condition is Condition.USE_CASE:
        own = [use_case for use_case in caller.use_cases if rule.permits_use_case(use_case)]
        instead = f"of yours it covers: {', '.join(own)}" if own else "ask for a policy that covers it"
        return f"Policy '{rule.name}' does not cover use case '{caller.use_case}' (header X-Use-Case): {instead}."
    return (
        f"Policy '{rule.name}' asks for an approval that is in force: have a grant declared for app '{caller.app}', "
        f"model '{model}', use case '{caller.use_case}'."
    )
