"""How far a model is in its life, and whose price and policies hold for one that was made from another.

It says what was declared; which day it is and what follows from that is for plans.py.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Literal

from router.wire import ModelBody

# OpenAI's name of a fine-tuned model, `ft:<base>:<organisation>:<suffix>:<id>`, tells what it was made from.
_FINE_TUNED = re.compile(r"ft:([^:]+):.")


@dataclass(frozen=True, slots=True)
class Lifecycle:
    """A model's stage as declared; its fields are explained at wire.ModelBody."""

    stage: Literal["preview", "active", "deprecated", "retired"]
    retires_on: date | None
    successor: str | None

    @classmethod
    def of(cls, body: ModelBody) -> "Lifecycle | None":
        """What is declared beyond `active`; None where nothing is."""
        declared = cls(body.lifecycle, body.retires_on, body.successor)
        return None if declared == _PLAIN else declared

    @property
    def is_deprecated(self) -> bool:
        """Whether callers are told to leave it, for as long as it is not retired."""
        return self.stage == "deprecated"

    def is_retired(self, today: date) -> bool:
        """Whether nobody may use it any more on this day (UTC)."""
        return self.stage == "retired" or self._has_ended(today)

    def stage_on(self, today: date) -> str:
        """The stage on this day (UTC): the declared one until the day on which it retires."""
        return "retired" if self.is_retired(today) else self.stage

    def end(self, today: date) -> str:
        """That it is retired, or when it will be, and what to use instead, in words for its callers."""
        if self.is_retired(today):
            told = f"was retired on {self.retires_on}" if self._has_ended(today) else "is retired"
        else:
            told = "is deprecated" + (f" and retires on {self.retires_on}" if self.retires_on else "")
        return told + (f"; use `{self.successor}` instead" if self.successor else "")

    def _has_ended(self, today: date) -> bool:
        return self.retires_on is not None and self.retires_on <= today


_PLAIN = Lifecycle("active", None, None)


def find_base(name: str, models: Mapping[str, ModelBody]) -> str | None:
    """The model that this one names as its base, or that its fine-tuned name does: one on the same provider then."""
    body = models[name]
    if body.base is not None:
        return body.base
    for called in (body.upstream_model or "", name):
        if (told := _FINE_TUNED.match(called)) and (made_from := models.get(told[1])):
            return told[1] if made_from.provider == body.provider else None
    return None


def base_fault(name: str, models: Mapping[str, ModelBody], bases: Mapping[str, str]) -> str | None:
    """What is wrong with the base of this model, with the cure; None where nothing is.

    A price is a provider's, and so is the data class that a policy trusts it with: both must have the same provider.
    """
    base, body = bases[name], models[name]
    if base == name:
        return "names the model itself; leave it out"
    if base not in models:
        return f"names `{base[:200]}`, which is no declared model; declare that model"
    if models[base].provider != body.provider:
        return f"names `{base}`, which is not on the provider `{body.provider}`; name a model that is"
    if base in bases:
        return f"is `{base}`, which has the base `{bases[base]}` itself; declare one that has none"
    return None
