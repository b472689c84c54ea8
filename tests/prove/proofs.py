"""What a proof is: a named claim with its figure. Running, timing and reporting are elsewhere."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType


class NotRun(Exception):
    """A proof cannot be run here; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Whether the claim holds, and the figure that shows it; left empty, the figures given to the bench stand."""

    met: bool
    figure: str = ""


@dataclass(frozen=True, slots=True)
class Bench:
    """What a proof works with. workdir is its own and fresh; `long` asks for the full numbers."""

    workdir: Path
    python: str
    root: Path
    seed: int
    long: bool = False
    notes: list[str] = field(default_factory=list)
    figures: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Say something on the way."""
        self.notes.append(text)
        print(f"    {text}", flush=True)

    def figure(self, name: str, value: object) -> None:
        """Keep a figure for the table, beside the others of this proof."""
        self.figures.append(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}")


Demonstration = Callable[[Bench], Outcome | Awaitable[Outcome]]


@dataclass(frozen=True, slots=True)
class Proof:
    """One row of the table. id is `<issue>.<name>`; best_of: how often it may be tried until it is met.

    seconds_max: its own time limit, where it takes longer than others.
    """

    id: str
    what: str
    must: str
    best_of: int
    seconds_max: float | None
    run: Demonstration

    def asked_for(self, only: tuple[str, ...]) -> bool:
        """Whether one of the given ids is this one's or a prefix of it; none given means all."""
        return not only or any(self.id == wanted or self.id.startswith(f"{wanted}.") for wanted in only)


def proof(
    name: str, *, what: str, must: str, best_of: int = 1, seconds_max: float | None = None
) -> Callable[[Demonstration], Proof]:
    """Make a proof of the function below: it receives a Bench and returns an Outcome, or raises NotRun."""
    return lambda run: Proof(name, what, must, best_of, seconds_max, run)


def proofs_of(module: ModuleType) -> list[Proof]:
    """The proofs of a module, in the order in which they are written."""
    return [value for value in vars(module).values() if isinstance(value, Proof)]
