"""A request becomes a plan, and a plan a walk over the targets that may be tried now. Nothing is sent from here."""

import random
from collections.abc import Callable, Iterator

from msgspec import structs

from kernel import ModelRequest, Operation, Plan, Target
from router.catalogue import Catalogue
from router.errors import ModelRetired, OperationNotOffered, TargetsResting
from router.health import Health, RetryBudget
from router.operations import offered, without
from router.rules import Alias


class Router:
    """Chooses by what is declared, by the request's facts and by health; who may use what is decided elsewhere.

    cost_of: what the request would probably cost on the target, in any one unit; None where no price is known.
    """

    def __init__(
        self,
        catalogue: Callable[[], Catalogue],
        health: Health,
        *,
        cost_of: Callable[[Target, ModelRequest], int | None],
        dice: random.Random,
    ) -> None:
        self._catalogue = catalogue
        self._health = health
        self._cost_of = cost_of
        self._dice = dice
        self._budget = RetryBudget()
        self._known: Catalogue | None = None
        self._settled: dict[str, Plan] = {}
        self._without = without(())

    def plan(self, request: ModelRequest) -> Plan:
        """The targets behind the name that the request bears, first choice first, and why. Raises ModelNotFound.

        Draining targets come last, for policy to judge and for nobody to try.
        """
        catalogue = self._catalogue()
        if catalogue is not self._known:
            self._known, self._settled, self._without = catalogue, {}, without(catalogue.providers.values())
        plan = self._settled.get(request.model)
        if plan is None:
            found = catalogue.find(request.model)
            plan = self._plan(catalogue, found, request)
            if isinstance(found, Target) or found.is_settled:
                self._settled[request.model] = plan
        return plan

    def current(self, plan: Plan) -> Plan:
        """What of a plan just made is not retired today (UTC). Raises ModelRetired where nothing is left.

        To be asked with what its caller may know of, because `why` then names what is deprecated.
        """
        lives = self._catalogue().lifecycles
        marked = [target.name for target in plan if target.name in lives] if lives else ()
        if not marked:
            return plan
        today = self._health.clock.now().date()
        retired = {name for name in marked if lives[name].is_retired(today)}
        left = tuple(target for target in plan if target.name not in retired)
        if not left:
            raise ModelRetired(plan.requested, marked[0], lives[marked[0]].end(today))
        leaving = (name for name in marked if name not in retired and lives[name].is_deprecated)
        told = [f"{name} {lives[name].end(today)}" for name in leaving]
        told += ["what is retired is passed over"] if retired else []  # unnamed, as for what is draining
        return structs.replace(plan, targets=left, why=(*plan.why, *told)) if told else plan

    def offering(self, plan: Plan, operation: Operation) -> Plan:
        """What of a plan just made offers the operation. Raises OperationNotOffered where nothing does."""
        without = self._without[operation]
        if not without:
            return plan
        able = tuple(target for target in plan if target.provider not in without)
        if not able:
            assert self._known is not None
            others = {each for target in plan for each in offered(self._known.provider(target.provider))}
            raise OperationNotOffered(
                f"`{plan.requested}` does not offer {operation}; it offers {', '.join(sorted(others))}.", param="model"
            )
        return plan if len(able) == len(plan.targets) else structs.replace(plan, targets=able)

    def _plan(self, catalogue: Catalogue, found: Target | Alias, request: ModelRequest) -> Plan:
        why = list[str]()
        while isinstance(found, Alias):
            rule, told = found.match(request)
            why += [told] if told else []
            if rule is None:
                break
            found = catalogue.find(rule.use)
        if isinstance(found, Alias):
            targets, told = self._ordered(found, request)
            why.append(f"{found.name}: {told}")
        else:
            targets = (found,)
            why.append(f"{found.name}: a model")
        if any(target.name in catalogue.draining for target in targets):
            # Unnamed, since callers read this and may not know of every target.
            why.append("what is draining comes last and is passed over")
            targets = tuple(sorted(targets, key=lambda target: target.name in catalogue.draining))
        return Plan(request.model, targets, tuple(why))

    def walk(self, plan: Plan) -> Iterator[Target]:
        """The targets to try, one after the other; those that rest or drain are passed over.

        What is asked after a first call began is paid from the retry budget; when that is empty the walk ends, and
        the failure before it stands. A turn that begins no call, as when its hold is refused, earns and spends
        nothing. Raises TargetsResting where there is nothing to try at all. An offered target is given back when the
        walk goes on or is dropped.
        """
        offered = began = False
        for target in plan:
            offer = None if target.name in self._catalogue().draining else self._health.offer(target)
            if offer is None:
                continue
            if began and not self._budget.spend():
                self._health.withdraw(offer)
                return
            offered = True
            try:
                yield offer.target
            finally:
                self._health.withdraw(offer)
                if began and not offer.began:
                    self._budget.refund()
                elif offer.began and not began:
                    self._budget.earn()
            began = began or offer.began
        if not offered:
            raise self._resting(plan)

    def _ordered(self, alias: Alias, request: ModelRequest) -> tuple[tuple[Target, ...], str]:
        """The alias's own targets as it chooses, and how it does. Draws of the same rank fall by lot."""
        weights = dict(zip(alias.targets, alias.weights, strict=True))
        match alias.choose:
            case "weight":
                # The first of racing exponentials is each with a chance of its share, and so is the next of the rest.
                race = {target: self._dice.expovariate(weight) for target, weight in weights.items()}
                return tuple(sorted(race, key=race.__getitem__)), "drawn by weight"
            case "least_outstanding":
                load = {
                    target: (self._health.outstanding(target) / weight, self._dice.random())
                    for target, weight in weights.items()
                }
                return tuple(sorted(load, key=load.__getitem__)), "fewest open calls for its weight first"
            case "cheapest":
                cost = {target: self._cost_of(target, request) for target in alias.targets}
                return tuple(sorted(cost, key=lambda each: _dearness(cost[each]))), "cheapest first"
            case "order":
                return alias.targets, "as declared, in order"

    def _resting(self, plan: Plan) -> TargetsResting:
        draining = self._catalogue().draining
        rests = [self._health.rest_seconds(target) for target in plan if target.name not in draining]
        if not rests:
            return TargetsResting(f"Every target of `{plan.requested}` is draining; use another model.")
        return TargetsResting(
            f"No target of `{plan.requested}` can be tried: they failed too often and rest; try again later.",
            retry_after_seconds=min(rests),
        )


def _dearness(cost: int | None) -> tuple[bool, int]:
    """Sorts what has no price behind everything that has one."""
    return cost is None, cost or 0
