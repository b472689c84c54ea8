"""What is declared, tied together. It knows no caller and no request; plans.py chooses, policy filters elsewhere."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from types import MappingProxyType
from typing import Literal, TypeVar

from pydantic import ValidationError

from kernel import Document, InvalidDeclaration, Plan, Target
from router.errors import ModelNotFound
from router.lifecycle import Lifecycle, base_fault, find_base
from router.rules import Alias, Rule
from router.wire import AliasBody, Dialect, ModelBody, ProviderBody, RuleBody

_Body = TypeVar("_Body", ProviderBody, ModelBody, AliasBody)
_ALIASES_IN_A_ROW_MAX = 3


@dataclass(frozen=True, slots=True)
class Provider:
    """A provider as declared; its limits are explained at ProviderBody."""

    name: str
    dialect: Dialect
    translate_as: str | None
    api_version: str | None
    betas: frozenset[str]
    base_url: str | None
    credential: str | None
    headers: Mapping[str, str]
    output_limit_field: Literal["max_tokens", "max_completion_tokens"]
    connect_seconds: float
    answer_seconds: float
    event_seconds: float
    total_seconds: float
    ca_certificates: str | None
    client_certificate: str | None
    proxy: str | None
    draining: bool


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Everything callers can name, as of one moment; it never changes. draining: targets that take no new turns.

    bases: model to the one it was made from. lifecycles: of the models that have more of one than being active; which
    of them are retired is a question of the day, not of this.
    """

    providers: Mapping[str, Provider]
    targets: Mapping[str, Target]
    aliases: Mapping[str, Alias]
    draining: frozenset[str]
    bases: Mapping[str, str]
    lifecycles: Mapping[str, Lifecycle]

    @classmethod
    def of(cls, documents: Iterable[Document]) -> "Catalogue":
        """The catalogue of the documents in force; kinds of other folders are passed over.

        Raises InvalidDeclaration for a body of the wrong shape, for a name that is not declared, for an alias that
        bears the name of a model, for rules that lead in a circle or through too many aliases, and for a base or a
        successor that cannot be one.
        """
        kinds: dict[str, dict[str, Document]] = {"provider": {}, "model": {}, "alias": {}}
        for document in documents:
            kinds.get(document.kind, {})[document.name] = document
        providers = {name: _provider(document) for name, document in kinds["provider"].items()}
        models = {name: _read(document, ModelBody) for name, document in kinds["model"].items()}
        targets = {name: _target(kinds["model"][name], body, providers) for name, body in models.items()}
        aliases = {name: _alias(document, targets, kinds["alias"]) for name, document in kinds["alias"].items()}
        for name, alias in aliases.items():
            _require_short_ways(kinds["alias"][name], alias, aliases)
        draining = {name for name, body in models.items() if body.draining or providers[body.provider].draining}
        made = cls(
            MappingProxyType(providers),
            MappingProxyType(targets),
            MappingProxyType(aliases),
            frozenset(draining),
            MappingProxyType({name: base for name in models if (base := find_base(name, models))}),
            MappingProxyType({name: life for name, body in models.items() if (life := Lifecycle.of(body))}),
        )
        for name, document in kinds["model"].items():
            _require_relatives(document, made, models, name=name)
        return made

    def find(self, name: str) -> Target | Alias:
        """The model or alias of this name. Raises ModelNotFound."""
        found = self.targets.get(name) or self.aliases.get(name)
        if found is None:
            raise ModelNotFound(name)
        return found

    def reachable(self, name: str, today: date | None = None) -> Plan:
        """Every target that the name can lead to, through rules too, each once. Raises ModelNotFound.

        today: the day (UTC) whose retired models are left out; None: all of them are in.
        """
        targets = dict.fromkeys(self._reached(self.find(name)))
        return Plan(name, tuple(target for target in targets if today is None or not self._is_retired(target, today)))

    def provider(self, name: str) -> Provider:
        """The provider that a target of this catalogue names; KeyError for any other."""
        return self.providers[name]

    def knows(self, name: str) -> bool:
        """Whether a model or an alias has this name."""
        return name in self.targets or name in self.aliases

    def names(self) -> tuple[str, ...]:
        """All models and aliases, sorted."""
        return tuple(sorted((*self.targets, *self.aliases)))

    def _is_retired(self, target: Target, today: date) -> bool:
        life = self.lifecycles.get(target.name)
        return life is not None and life.is_retired(today)

    def _reached(self, found: Target | Alias) -> Iterator[Target]:
        if isinstance(found, Target):
            yield found
            return
        yield from found.targets
        for name in dict.fromkeys(rule.use for rule in found.rules):
            yield from self._reached(self.find(name))


def _provider(document: Document) -> Provider:
    body = _read(document, ProviderBody)
    return Provider(name=document.name, **{**dict(body), "headers": MappingProxyType(dict(body.headers))})


def _target(document: Document, body: ModelBody, providers: Mapping[str, Provider]) -> Target:
    if body.provider not in providers:
        raise _wrong(document, "provider", f"names `{body.provider}`, which is not declared; declare that provider")
    declared = body.model_dump(exclude={"draining", "base", "lifecycle", "retires_on", "successor"})
    return Target(name=document.name, **{**declared, "upstream_model": body.upstream_model or document.name})


def _alias(document: Document, targets: Mapping[str, Target], aliases: Mapping[str, Document]) -> Alias:
    body = _read(document, AliasBody)
    if document.name in targets:
        raise _wrong(document, "name", "is the name of a model; choose another")
    weights = {each if isinstance(each, str) else each.model: 1 if isinstance(each, str) else each.weight
               for each in body.targets}  # fmt: skip
    for name in weights:
        if name in aliases:
            raise _wrong(document, "targets", f"names the alias `{name}`; name its models instead")
        if name not in targets:
            raise _wrong(document, "targets", f"names `{name}`, which is not declared; declare that model")
    for at, rule in enumerate(body.rules):
        if rule.use not in targets and rule.use not in aliases:
            cure = f"names `{rule.use}`, which is not declared; declare that model or alias"
            raise _wrong(document, f"rules.{at}.use", cure)
    return Alias(
        name=document.name,
        targets=tuple(targets[name] for name in weights),
        weights=tuple(weights.values()),
        choose=body.choose,
        rules=tuple(_rule(rule) for rule in body.rules),
    )


def _require_relatives(document: Document, known: Catalogue, models: Mapping[str, ModelBody], *, name: str) -> None:
    """Check what the model says of others. Raises InvalidDeclaration."""
    if name in known.bases and (fault := base_fault(name, models, known.bases)):
        raise _wrong(document, "base", fault)
    successor = models[name].successor
    if successor is None:
        return
    if successor == name:
        raise _wrong(document, "successor", "names the model itself; name the one to use instead")
    if not known.knows(successor):
        cure = f"names `{successor}`, which is not declared; declare that model or alias"
        raise _wrong(document, "successor", cure)
    if all(target.hidden for target in known.reachable(successor)):
        # Whoever may know of the model is told the name of its successor.
        raise _wrong(document, "successor", f"names `{successor}`, which is hidden; name one that all may know of")


def _rule(body: RuleBody) -> Rule:
    when = body.when
    return Rule(
        use=body.use,
        prompt_tokens_over=when.prompt_tokens_over,
        task_type=None if when.task_type is None else frozenset(when.task_type),
        max_latency_ms_under=when.max_latency_ms_under,
        quality_level=None if when.quality_level is None else frozenset(when.quality_level),
    )


def _require_short_ways(
    document: Document, alias: Alias, aliases: Mapping[str, Alias], *, way: tuple[str, ...] = ()
) -> None:
    """Follow every rule. Raises InvalidDeclaration with the way that is a circle or too long."""
    way = (*way, alias.name)
    for name in {rule.use for rule in alias.rules} & aliases.keys():
        told = " -> ".join((*way, name))
        if name in way:
            raise _wrong(document, "rules", f"lead in a circle, {told}; let one of them use a model")
        if len(way) == _ALIASES_IN_A_ROW_MAX:
            cure = f"lead through more than {_ALIASES_IN_A_ROW_MAX} aliases, {told}; shorten the way"
            raise _wrong(document, "rules", cure)
        _require_short_ways(document, aliases[name], aliases, way=way)


def _read(document: Document, shape: type[_Body]) -> _Body:
    try:
        return shape.model_validate(document.body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "body"
        raise _wrong(document, where, first["msg"]) from error


def _wrong(document: Document, field: str, cure: str) -> InvalidDeclaration:
    return InvalidDeclaration(f"{document.kind} `{document.name}`: {field} {cure}.", param=field)
