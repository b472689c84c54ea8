"""What callers are told of a model beside its answers: its life, in the list of models and in an answer's headers.

Whether they may know of the model at all is asked elsewhere, and first.
"""

from collections.abc import Callable
from datetime import date

from kernel import Target
from router import Catalogue


def model_facts(
    catalogue: Catalogue, name: str, *, today: date, knows: Callable[[Target], bool]
) -> dict[str, dict[str, str]]:
    """What a row of the list says under `penstock`; nothing for an alias, and for a model of which nothing is declared.

    knows: whether the caller may know of a target, because a base may be hidden where what was made from it is not.
    """
    told = dict[str, str]()
    if (life := catalogue.lifecycles.get(name)) is not None:
        told["lifecycle"] = life.stage_on(today)
        if life.retires_on is not None:
            told["retires_on"] = life.retires_on.isoformat()
        if life.successor is not None:
            told["successor"] = life.successor
    if (base := catalogue.bases.get(name)) is not None and knows(catalogue.targets[base]):
        told["base"] = base
    return {"penstock": told} if told else {}


def leaving_headers(catalogue: Catalogue, name: str) -> tuple[tuple[str, str], ...]:
    """What an answer of a deprecated model says of its end: the day, or `true` where none is set, and what to use."""
    life = catalogue.lifecycles.get(name)
    if life is None or not life.is_deprecated:
        return ()
    deprecated = ("x-penstock-deprecated", "true" if life.retires_on is None else life.retires_on.isoformat())
    return (deprecated,) if life.successor is None else (deprecated, ("x-penstock-successor", life.successor))
