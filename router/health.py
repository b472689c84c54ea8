"""What this process has seen of each target: calls that are open, and whether it answers. It sends nothing itself.

Each process has its own opinion, since one process's broken network must not close a target for all.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from msgspec import Struct, structs

from kernel import Clock, Target
from router.catalogue import Catalogue
from router.errors import TargetsResting, UpstreamError, UpstreamRefused
from router.load import EVERY_SECONDS, Seen, never_looked

_FAULTS_MAX = 5
_REST_SECONDS_MAX = 60.0
_DOUBLINGS_MAX = 6
_PROBE_SECONDS = 1.0  # what a caller is told to wait while somebody else's probe is out


@dataclass(frozen=True, slots=True)
class Reading:
    """One target's health at this moment. state: 1 closed, 0.5 half-open, 0 open."""

    target: str
    state: float
    outstanding: int


class Circuit:
    """One target: closed until it fails five times in a row, open for a rest, then half-open for one probe at a time.

    place: who has the only one for a probe: nobody, a turn that was offered it, or the call.
    """

    __slots__ = ("faults", "openings", "outstanding", "place", "rests_until")

    def __init__(self) -> None:
        self.outstanding = 0
        self.faults = 0
        self.openings = 0
        self.rests_until: float | None = None
        self.place: Offer | Call | None = None

    def state(self, clock: Clock) -> float:
        """1 closed, 0.5 half-open, 0 open."""
        if self.rests_until is None:
            return 1.0
        return 0.5 if clock.monotonic() >= self.rests_until else 0.0

    def open(self, until: float) -> None:
        """Let the target rest; never shorter than it already does."""
        self.rests_until = max(until, self.rests_until or until)

    def close(self, *, faults: int = 0) -> None:
        """Let everybody in."""
        self.rests_until, self.place, self.faults = None, None, faults


class Offer(Struct, eq=False):
    """What one turn may try until it withdraws, and whether it began to.

    target: a copy of its own, by which the call of this turn is known from those of others.
    """

    target: Target
    circuit: Circuit
    began: bool = False


class Call:
    """One call to a target, from before it is sent until it ended, however that is. Leaving never suspends.

    Entering it raises TargetsResting where the circuit opened since the target was offered, so that no call but the
    probe ever reaches a target that rests. probes: everybody else waits for what becomes of it.
    """

    __slots__ = ("_circuit", "_health", "_offer", "_target", "probes")

    def __init__(self, health: "Health", circuit: Circuit, target: str, *, offer: Offer | None = None) -> None:
        self._health = health
        self._circuit = circuit
        self._target = target
        self._offer = offer
        self.probes = False

    def __enter__(self) -> Self:
        """Begin, as the probe if the circuit is half-open."""
        circuit = self._circuit
        state = circuit.state(self._health.clock)
        if state == 0 or (state < 1 and isinstance(circuit.place, Call)):
            raise TargetsResting(f"The target `{self._target}` failed too often and rests.", retry_after_seconds=1)
        if state < 1:
            circuit.place, self.probes = self, True
        if self._offer is not None:
            self._offer.began = True
        circuit.outstanding += 1
        return self

    def answers(self) -> None:
        """Content came. A probe lets the others in now and not after a long stream; its next fault opens again."""
        if self.probes:
            self.probes = False
            self._circuit.close(faults=_FAULTS_MAX - 1)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        """Judge the target by how the call ended; a caller who left, a bound or a bug of ours say nothing about it."""
        circuit = self._circuit
        circuit.outstanding -= 1
        if kind is None or isinstance(error, UpstreamRefused):
            if self.probes or circuit.rests_until is None:
                circuit.close()
                circuit.openings = 0
        elif isinstance(error, UpstreamError) and error.blames:
            self._health.blame(circuit, error, probed=self.probes)
        elif self.probes:
            circuit.place = None


class Health:
    """Circuits of the targets in the catalogue; those that left it are forgotten.

    seen: what is known of a target's server, which may be away whatever the circuit says.
    """

    def __init__(
        self,
        catalogue: Callable[[], Catalogue],
        *,
        dice: random.Random,
        clock: Clock,
        seen: Callable[[Target], Seen] = never_looked,
    ) -> None:
        self._catalogue = catalogue
        self._seen = seen
        self._dice = dice
        self.clock = clock
        self._known: Catalogue | None = None
        self._circuits: Mapping[str, Circuit] = {}
        self._offers: dict[int, Offer] = {}  # by the identity of their targets, which they keep alive

    def call(self, target: Target) -> Call:
        """A call to be entered when it begins and left when it ends."""
        offer = self._offers.get(id(target))
        circuit = self._circuit(target.name) if offer is None else offer.circuit
        return Call(self, circuit, target.name, offer=offer)

    def offer(self, target: Target) -> Offer | None:
        """What a turn may try now, if it may. A half-open target is offered to one turn until that withdraws."""
        circuit = self._circuit(target.name)
        state = circuit.state(self.clock)
        if state == 0 or (state < 1 and circuit.place is not None) or self._seen(target).is_away:
            return None
        offer = Offer(structs.replace(target), circuit)
        self._offers[id(offer.target)] = offer
        if state < 1:
            circuit.place = offer
        return offer

    def withdraw(self, offer: Offer) -> None:
        """The turn is done with what it was offered. A probe that never began gives its place back."""
        del self._offers[id(offer.target)]
        if offer.circuit.place is offer:
            offer.circuit.place = None

    def outstanding(self, target: Target) -> int:
        """Calls at work where the target is: those that are open in this process, and others as last reported."""
        seen = self._seen(target)
        return self.open_calls(seen.targets or (target,)) + seen.others

    def open_calls(self, targets: Iterable[Target]) -> int:
        """Calls to these targets that are open in this process."""
        return sum(self._circuit(target.name).outstanding for target in targets)

    def rest_seconds(self, target: Target) -> float:
        """How long until the target may be tried again; a second where a probe is out, a look where its server is."""
        until = self._circuit(target.name).rests_until
        rest = max(0.0, until - self.clock.monotonic()) or _PROBE_SECONDS if until is not None else 0.0
        return max(rest, EVERY_SECONDS) if self._seen(target).is_away else rest

    def readings(self) -> Iterator[Reading]:
        """Every target of the catalogue; one whose server is away is as good as open."""
        circuits, targets = self._current(), self._catalogue().targets
        for name, circuit in circuits.items():
            state = 0.0 if self._seen(targets[name]).is_away else circuit.state(self.clock)
            yield Reading(name, state, circuit.outstanding)

    def blame(self, circuit: Circuit, error: UpstreamError, *, probed: bool) -> None:
        """Count a fault. Calls that were under way when the circuit opened neither prolong nor shorten its rest,
        unless the provider itself says how long to wait.
        """
        circuit.faults += 1
        if probed:
            circuit.place = None
        is_first = probed or circuit.rests_until is None
        if error.retry_after_seconds:
            rest_seconds = min(error.retry_after_seconds, _REST_SECONDS_MAX)
        elif probed or (is_first and circuit.faults >= _FAULTS_MAX):
            longest = min(_REST_SECONDS_MAX, 2.0 ** min(circuit.openings, _DOUBLINGS_MAX))
            rest_seconds = self._dice.uniform(0, longest)  # full jitter: processes must not come in step
        else:
            return
        circuit.openings += 1 if is_first else 0
        circuit.open(self.clock.monotonic() + rest_seconds)

    def _circuit(self, name: str) -> Circuit:
        # A target that was withdrawn while a turn had it gets a circuit that nobody else will see.
        return self._current().get(name) or Circuit()

    def _current(self) -> Mapping[str, Circuit]:
        catalogue = self._catalogue()
        if catalogue is not self._known:
            self._known, old = catalogue, self._circuits
            self._circuits = {name: old.get(name) or Circuit() for name in catalogue.targets}
        return self._circuits


class RetryBudget:
    """What second and later attempts are paid from, so that failing over cannot multiply a storm: 10 % of the turns
    that asked a target at all.

    A process starts with ten, and never saves more.
    """

    def __init__(self) -> None:
        self._tenths = 100  # a tenth of a retry each; an integer adds up exactly

    def earn(self) -> None:
        """A turn asked its first target."""
        self._tenths = min(100, self._tenths + 1)

    def spend(self) -> bool:
        """Whether one more attempt can be paid for; if so, it is."""
        if self._tenths < 10:  # noqa: PLR2004 - one retry
            return False
        self._tenths -= 10
        return True

    def refund(self) -> None:
        """An attempt that was paid for was never made."""
        self._tenths = min(100, self._tenths + 10)
