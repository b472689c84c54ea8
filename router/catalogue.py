"""What is declared, tied together: names become plans. It knows no caller; policy filters plans elsewhere."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, TypeVar

from pydantic import ValidationError

from kernel import Document, InvalidDeclaration, Plan, Target
from router.errors import ModelNotFound
from router.wire import AliasBody, ModelBody, ProviderBody

_Body = TypeVar("_Body", ProviderBody, ModelBody, AliasBody)


@dataclass(frozen=True, slots=True)
class Provider:
    """A provider as declared; its limits are explained at ProviderBody."""

    name: str
    dialect: Literal["openai", "sandbox"]
    base_url: str | None
    credential: str | None
    headers: Mapping[str, str]
    output_limit_field: Literal["max_tokens", "max_completion_tokens"]
    connect_seconds: float
    answer_seconds: float
    event_seconds: float
    total_seconds: float


class Catalogue:
    """Everything callers can name, as of one moment; it never changes."""

    def __init__(self, providers: Mapping[str, Provider], plans: Mapping[str, Plan]) -> None:
        self._providers = MappingProxyType(dict(providers))
        self._plans = MappingProxyType(dict(plans))

    @classmethod
    def of(cls, documents: Iterable[Document]) -> "Catalogue":
        """The catalogue of the documents in force; kinds of other folders are passed over.

        Raises InvalidDeclaration for a body of the wrong shape, for a provider or target that is not declared, and
        for an alias that bears the name of a model.
        """
        bodies: dict[str, dict[str, Document]] = {"provider": {}, "model": {}, "alias": {}}
        for document in documents:
            bodies.get(document.kind, {})[document.name] = document
        providers = {name: _provider(document) for name, document in bodies["provider"].items()}
        targets = {name: _target(document, providers) for name, document in bodies["model"].items()}
        plans = {name: Plan(name, (target,)) for name, target in targets.items()}
        for name, document in bodies["alias"].items():
            if name in targets:
                raise _wrong(document, "name", "is the name of a model; choose another")
            plans[name] = Plan(name, _targets(document, targets, bodies["alias"]))
        return cls(providers, plans)

    def plan(self, name: str) -> Plan:
        """The targets behind a model or an alias, in the order to try them. Raises ModelNotFound."""
        plan = self._plans.get(name)
        if plan is None:
            raise ModelNotFound(name)
        return plan

    def provider(self, name: str) -> Provider:
        """The provider that a target of this catalogue names; KeyError for any other."""
        return self._providers[name]

    def names(self) -> tuple[str, ...]:
        """All models and aliases, sorted."""
        return tuple(sorted(self._plans))


def _provider(document: Document) -> Provider:
    body = _read(document, ProviderBody)
    return Provider(name=document.name, **{**dict(body), "headers": MappingProxyType(dict(body.headers))})


def _target(document: Document, providers: Mapping[str, Provider]) -> Target:
    body = _read(document, ModelBody)
    if body.provider not in providers:
        raise _wrong(document, "provider", f"names `{body.provider}`, which is not declared; declare that provider")
    return Target(name=document.name, **{**dict(body), "upstream_model": body.upstream_model or document.name})


def _targets(document: Document, targets: Mapping[str, Target], aliases: Mapping[str, Document]) -> tuple[Target, ...]:
    names = _read(document, AliasBody).targets
    for name in names:
        if name in aliases:
            raise _wrong(document, "targets", f"names the alias `{name}`; name its models instead")
        if name not in targets:
            raise _wrong(document, "targets", f"names `{name}`, which is not declared; declare that model")
    return tuple(targets[name] for name in names)


def _read(document: Document, shape: type[_Body]) -> _Body:
    try:
        return shape.model_validate(document.body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "body"
        raise _wrong(document, where, first["msg"]) from error


def _wrong(document: Document, field: str, cure: str) -> InvalidDeclaration:
    return InvalidDeclaration(f"{document.kind} `{document.name}`: {field} {cure}.", param=field)
