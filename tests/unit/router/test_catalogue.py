"""Declarations become plans, or are refused with the field and the cure."""

import pytest
from pydantic import ValidationError

from kernel import InvalidDeclaration
from router import KINDS, Catalogue, ModelNotFound
from tests.fakes.routing import document

SANDBOX = document("provider", "sandbox", dialect="sandbox")
MODELS = (document("model", "a", provider="sandbox"), document("model", "b", provider="sandbox", upstream_model="bee"))


def test_a_model_is_a_plan_of_itself():
    plan = Catalogue.of([SANDBOX, *MODELS]).reachable("b")
    (target,) = plan
    assert (plan.requested, target.name, target.upstream_model, target.provider) == ("b", "b", "bee", "sandbox")
    assert (target.context_tokens, target.output_tokens_max, target.unpriced, target.hidden) == (
        128_000,
        4096,
        False,
        False,
    )


def test_an_alias_is_its_targets_in_their_order():
    known = Catalogue.of([document("alias", "fast", targets=["b", "a"]), *MODELS, SANDBOX])
    assert [target.name for target in known.reachable("fast")] == ["b", "a"]
    assert known.reachable("fast").requested == "fast"
    assert known.names() == ("a", "b", "fast")


def test_an_unknown_name_is_404_in_openais_words():
    with pytest.raises(ModelNotFound) as caught:
        Catalogue.of([]).find("gpt-9")
    error = caught.value
    assert (error.status, error.code, error.kind, error.param) == (
        404,
        "model_not_found",
        "invalid_request_error",
        "model",
    )
    assert error.message == "The model `gpt-9` does not exist or you do not have access to it."


def test_an_unknown_name_is_repeated_only_in_part():
    with pytest.raises(ModelNotFound) as caught:
        Catalogue.of([]).find("x" * 100_000)
    assert len(caught.value.message) < 300


def test_providers_bear_their_limits():
    provider = Catalogue.of([document("provider", "p", dialect="openai", base_url="https://x.test/v1/")]).provider("p")
    assert provider.base_url == "https://x.test/v1"
    assert (provider.connect_seconds, provider.answer_seconds) == (5, 120)
    assert (provider.event_seconds, provider.total_seconds) == (60, 600)


def test_kinds_of_other_folders_are_passed_over():
    assert Catalogue.of([document("price", "a", anything=1)]).names() == ()


@pytest.mark.parametrize(
    ("documents", "says"),
    [
        ([document("model", "a", provider="p")], "model `a`: provider names `p`, which is not declared"),
        ([document("alias", "x", targets=["a"])], "alias `x`: targets names `a`, which is not declared"),
        ([SANDBOX, *MODELS, document("alias", "a", targets=["b"])], "alias `a`: name is the name of a model"),
        (
            [SANDBOX, *MODELS, document("alias", "x", targets=["a"]), document("alias", "y", targets=["x"])],
            "alias `y`: targets names the alias `x`; name its models instead",
        ),
        ([document("alias", "x", targets=["x"])], "alias `x`: targets names the alias `x`"),
        ([document("provider", "p", dialect="smoke")], "provider `p`: dialect"),
        ([document("provider", "p", dialect="sandbox", unknown=1)], "provider `p`: unknown"),
    ],
)
def test_what_does_not_fit_together_is_refused(documents, says):
    with pytest.raises(InvalidDeclaration) as caught:
        Catalogue.of(documents)
    assert caught.value.message.startswith(says)
    assert caught.value.param


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("provider", {}),
        ("provider", {"dialect": "openai"}),
        *(
            ("provider", {"dialect": "openai", "base_url": url})
            for url in (
                "ftp://x.test", "x.test", "", "https://", "https://me@x.test", "https://me:pw@x.test", "https://@x.test",
                "https://x.test?a=b", "https://x.test?", "https://x.test#a", "https://x.test:0", "https://x.test:99999",
                "https://x .test", "https://x.test/\r\nA: b", "https://[::1", "https://x.té/v1", "https://a..b/v1",
                f"https://{'a' * 64}.test/v1", "https://.test",
            )
        ),
        *(
            ("provider", {"dialect": "sandbox", "headers": headers})
            for headers in (
                {"Authorization": "x"}, {"host": "x"}, {"a b": "x"}, {"": "x"}, {"a": "x\r\nb: c"}, {"a": "é"},
                {"a": 1},
            )
        ),
        *(("provider", {"dialect": "sandbox", "answer_seconds": each}) for each in (0, -1, "inf", "nan", 1e9)),
        ("provider", {"dialect": "sandbox", "output_limit_field": "n_predict"}),
        ("provider", {"dialect": "sandbox", "credential": ""}),
        ("model", {}),
        ("model", {"provider": "p", "context_tokens": 0}),
        ("model", {"provider": "p", "context_tokens": 100, "output_tokens_max": 101}),
        ("model", {"provider": "p", "price": 1}),
        ("alias", {"targets": []}),
        ("alias", {"targets": ["a", "a"]}),
        ("alias", {"targets": [""]}),
        ("alias", {"targets": "a"}),
    ],
)  # fmt: skip
def test_a_body_of_the_wrong_shape_is_refused(kind, body):
    with pytest.raises(ValidationError):
        KINDS[kind].model_validate(body)


def test_nothing_declared_can_be_changed():
    with pytest.raises(TypeError):
        KINDS["model"] = KINDS["alias"]
    with pytest.raises(ValidationError):
        KINDS["alias"].model_validate({"targets": ["a"]}).description = "x"
