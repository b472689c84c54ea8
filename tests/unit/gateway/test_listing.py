"""What callers are told of a model's life: in the list's rows and in the headers of its answers."""

from datetime import date

import pytest

from gateway.listing import leaving_headers, model_facts
from router import Catalogue
from tests.fakes.routing import document

TODAY = date(2026, 11, 20)


def catalogue(**models: dict[str, object]) -> Catalogue:
    declared = [document("model", name, provider="s", **body) for name, body in models.items()]
    alias = document("alias", "fast", targets=["new"])
    return Catalogue.of(
        [document("provider", "s", dialect="sandbox"), document("model", "new", provider="s"), alias, *declared]
    )


@pytest.mark.parametrize(
    ("body", "facts"),
    [
        ({}, {}),
        ({"lifecycle": "preview"}, {"lifecycle": "preview"}),
        ({"lifecycle": "deprecated"}, {"lifecycle": "deprecated"}),
        ({"retires_on": "2027-01-01"}, {"lifecycle": "active", "retires_on": "2027-01-01"}),
        ({"retires_on": "2026-11-20"}, {"lifecycle": "retired", "retires_on": "2026-11-20"}),
        ({"successor": "fast"}, {"lifecycle": "active", "successor": "fast"}),
        ({"base": "new"}, {"base": "new"}),
    ],
)
def test_a_row_says_what_is_declared_and_nothing_else(body, facts) -> None:
    told = model_facts(catalogue(m=body), "m", today=TODAY, knows=lambda _: True)
    assert told == ({"penstock": facts} if facts else {})


def test_an_alias_has_no_life_of_its_own() -> None:
    assert model_facts(catalogue(), "fast", today=TODAY, knows=lambda _: True) == {}


def test_a_base_that_the_caller_may_not_know_of_is_not_named() -> None:
    known = catalogue(m={"base": "new", "lifecycle": "preview"})
    asked = []
    told = model_facts(known, "m", today=TODAY, knows=lambda target: asked.append(target.name))
    assert (told, asked) == ({"penstock": {"lifecycle": "preview"}}, ["new"])


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        ({}, []),
        ({"lifecycle": "preview", "retires_on": "2027-01-01", "successor": "new"}, []),
        ({"lifecycle": "deprecated"}, [("x-penstock-deprecated", "true")]),
        ({"lifecycle": "deprecated", "retires_on": "2027-01-01"}, [("x-penstock-deprecated", "2027-01-01")]),
        (
            {"lifecycle": "deprecated", "successor": "new"},
            [("x-penstock-deprecated", "true"), ("x-penstock-successor", "new")],
        ),
    ],
)
def test_answers_of_deprecated_models_alone_bear_headers(body, headers) -> None:
    assert list(leaving_headers(catalogue(m=body), "m")) == headers
