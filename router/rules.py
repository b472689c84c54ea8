"""What an alias stands for, and which of its rules a request matches. It knows the request's facts, never its text."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from kernel import ModelRequest, Target

_BYTES_PER_TOKEN = 4


def prompt_tokens(request: ModelRequest) -> int:
    """How long the prompt probably is, at four bytes a token; 0 where it holds more than text and nobody can say."""
    return (request.input_tokens_max or 0) // _BYTES_PER_TOKEN


def prompt_bytes(tokens: int) -> int:
    """The length of a prompt that `prompt_tokens` takes for so many tokens."""
    return tokens * _BYTES_PER_TOKEN


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of an alias; its fields are explained at wire.Conditions."""

    use: str
    prompt_tokens_over: int | None = None
    task_type: frozenset[str] | None = None
    max_latency_ms_under: int | None = None
    quality_level: frozenset[str] | None = None

    def why(self, request: ModelRequest) -> str | None:
        """In words why the request matches, or None where one condition does not hold."""
        told = list(self._told(request))
        return None if None in told else " and ".join(filter(None, told))

    def _told(self, request: ModelRequest) -> Iterator[str | None]:
        """What each condition that is given has to say; None is no."""
        hints = request.hints
        if (least := self.prompt_tokens_over) is not None:
            count = prompt_tokens(request)
            yield f"about {count} prompt tokens are over {least}" if count > least else None
        if self.task_type is not None:
            yield f"task_type is {hints.task_type}" if hints.task_type in self.task_type else None
        if (limit := self.max_latency_ms_under) is not None:
            asked = hints.max_latency_ms
            yield f"max_latency_ms {asked} is under {limit}" if asked is not None and asked < limit else None
        if self.quality_level is not None:
            yield f"quality_level is {hints.quality_level}" if hints.quality_level in self.quality_level else None


@dataclass(frozen=True, slots=True)
class Alias:
    """A name that stands for models. weights: of each target, in the same order."""

    name: str
    targets: tuple[Target, ...]
    weights: tuple[int, ...]
    choose: Literal["order", "weight", "least_outstanding", "cheapest"]
    rules: tuple[Rule, ...]

    @property
    def is_settled(self) -> bool:
        """Whether it leads every request the same way."""
        return self.choose == "order" and not self.rules

    def match(self, request: ModelRequest) -> tuple[Rule | None, str]:
        """The first rule that the request matches, or None for the alias's own targets, and why."""
        for number, rule in enumerate(self.rules, start=1):
            if because := rule.why(request):
                return rule, f"{self.name}: rule {number} of {len(self.rules)} says {rule.use}, because {because}"
        return None, f"{self.name}: none of its {len(self.rules)} rules matches" if self.rules else ""
