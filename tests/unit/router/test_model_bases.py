"""What a model was made from: named by itself or by its fine-tuned name, and refused where it cannot be."""

import pytest

from kernel import InvalidDeclaration
from router import Catalogue
from tests.fakes.routing import document

PROVIDERS = (document("provider", "s", dialect="sandbox"), document("provider", "t", dialect="sandbox"))


def bases_of(**models: dict[str, object]) -> dict[str, str]:
    """The bases of models on provider `s`; a name with `__` for what Python cannot write has colons."""
    documents = [
        document("model", name.replace("__", ":"), **({"provider": "s"} | body)) for name, body in models.items()
    ]
    return dict(Catalogue.of([*PROVIDERS, *documents]).bases)


def test_a_model_has_no_base_unless_it_says_so():
    assert bases_of(a={}, b={"upstream_model": "a"}) == {}


def test_a_base_is_the_declared_model_that_is_named():
    assert bases_of(a={}, lora={"base": "a"}, other={"base": "a"}) == {"lora": "a", "other": "a"}


@pytest.mark.parametrize("tail", ["corp::8f3a", "corp:tickets:8f3a", "corp:tickets:8f3a:ckpt-step-90", "x"])
def test_a_fine_tuned_name_names_its_base_by_itself(tail):
    name = f"ft__gpt-4o__{tail.replace(':', '__')}"
    assert bases_of(**{"gpt-4o": {}, name: {}}) == {f"ft:gpt-4o:{tail}": "gpt-4o"}


def test_so_does_the_providers_name_for_it():
    assert bases_of(**{"gpt-4o": {}, "tickets": {"upstream_model": "ft:gpt-4o:corp::1"}}) == {"tickets": "gpt-4o"}


@pytest.mark.parametrize("name", ["ft__gpt-4o", "ft__gpt-4o__", "ftgpt-4o__x", "a__ft__gpt-4o__x", "ft____gpt-4o__x"])
def test_what_only_looks_like_a_fine_tuned_name_names_nothing(name):
    assert bases_of(**{"gpt-4o": {}, name: {}}) == {}


def test_a_fine_tuned_name_whose_base_is_not_declared_has_none():
    assert bases_of(**{"gpt-4o-mini": {}, "ft__gpt-4o__corp____1": {}}) == {}


def test_nor_has_one_whose_base_lives_with_another_provider():
    assert bases_of(**{"gpt-4o": {"provider": "t"}, "ft__gpt-4o__corp____1": {}}) == {}


def test_what_a_model_says_itself_goes_before_its_name():
    told = bases_of(**{"gpt-4o": {}, "b": {}, "ft__gpt-4o__corp____1": {"base": "b"}})
    assert told == {"ft:gpt-4o:corp::1": "b"}


@pytest.mark.parametrize(
    ("models", "says"),
    [
        ({"x": {"base": "a"}}, "model `x`: base names `a`, which is no declared model; declare that model."),
        ({"x": {"base": "x"}}, "model `x`: base names the model itself; leave it out."),
        ({"a": {"base": "b"}, "b": {"base": "a"}}, "model `a`: base is `b`, which has the base `a` itself;"),
        ({"a": {}, "b": {"base": "a"}, "c": {"base": "b"}}, "model `c`: base is `b`, which has the base `a` itself;"),
        (
            {"a": {}, "b": {"base": "a"}, "ft__b__corp____1": {}},
            "model `ft:b:corp::1`: base is `b`, which has the base `a` itself;",
        ),
        (
            {"a": {"provider": "t"}, "x": {"base": "a"}},
            "model `x`: base names `a`, which is not on the provider `s`; name a model that is.",
        ),
    ],
)
def test_a_base_that_cannot_be_one_is_refused_with_the_cure(models, says):
    with pytest.raises(InvalidDeclaration) as caught:
        bases_of(**models)
    assert caught.value.message.startswith(says)
    assert caught.value.param == "base"


def test_an_alias_is_nobodys_base():
    alias = document("alias", "fast", targets=["a"])
    models = [document("model", "a", provider="s"), document("model", "x", provider="s", base="fast")]
    with pytest.raises(InvalidDeclaration, match="no declared model"):
        Catalogue.of([*PROVIDERS, alias, *models])


def test_a_base_changes_nothing_of_the_target_but_what_is_asked_elsewhere():
    models = [
        document("model", "a", provider="s", context_tokens=9_000, output_tokens_max=9, hidden=True, unpriced=True),
        document("model", "x", provider="s", base="a"),
    ]
    target = Catalogue.of([*PROVIDERS, *models]).targets["x"]
    assert (target.context_tokens, target.output_tokens_max) == (128_000, 4096)
    assert not target.hidden
    assert not target.unpriced
