"""Who exists: departments, apps, users and use cases, checked against one another; and what requests are scanned for.

It decides nothing.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from types import MappingProxyType

from governance import wire
from governance.detectors import DATA_CLASSES, Detector
from governance.store import Allowance
from kernel import DataClass, Document, InvalidDeclaration, Role


@dataclass(frozen=True, slots=True)
class Department:
    """A part of the enterprise."""

    name: str
    title: str | None


@dataclass(frozen=True, slots=True)
class UseCase:
    """A registered purpose."""

    name: str
    purpose: str
    owner: str | None
    risk_class: str


@dataclass(frozen=True, slots=True)
class App:
    """A program that calls models. The observed-until days (UTC) are the last on which a check is only observed."""

    name: str
    department: str
    data_class: DataClass
    use_cases: tuple[str, ...]
    allowance: Allowance
    policy_observed_until: date | None
    limits_observed_until: date | None
    scan_observed_until: date | None


@dataclass(frozen=True, slots=True)
class User:
    """A person."""

    name: str
    department: str
    roles: frozenset[Role]


@dataclass(frozen=True, slots=True)
class Directory:
    """Everybody in force, by name. Never changes: a change makes a new directory.

    detectors: the data class that each raises a request to; None where it is switched off.
    """

    departments: Mapping[str, Department]
    use_cases: Mapping[str, UseCase]
    apps: Mapping[str, App]
    users: Mapping[str, User]
    detectors: Mapping[Detector, DataClass | None]

    @classmethod
    def of(cls, documents: Iterable[Document]) -> "Directory":
        """The directory these documents declare. Raises InvalidDeclaration with every dangling reference."""
        mine = [document for document in documents if document.kind in wire.KINDS]
        names = {kind: frozenset(each.name for each in mine if each.kind == kind) for kind in wire.KINDS}
        faults = [fault for document in mine for fault in (*_dangling(document, names), *_unknown(document))]
        if faults:
            raise InvalidDeclaration("\n".join(faults))
        return cls(
            departments=MappingProxyType({d.name: _department(d) for d in mine if d.kind == "department"}),
            use_cases=MappingProxyType({d.name: _use_case(d) for d in mine if d.kind == "use_case"}),
            apps=MappingProxyType({d.name: _app(d) for d in mine if d.kind == "app"}),
            users=MappingProxyType({d.name: _user(d) for d in mine if d.kind == "user"}),
            detectors=MappingProxyType(
                {**DATA_CLASSES, **{Detector(d.name): _raises_to(d) for d in mine if d.kind == "detector"}}
            ),
        )


# Which fields of which kind name documents of which other kind. A policy's and a grant's models are the router's.
_REFERENCES: Mapping[str, tuple[tuple[str, str], ...]] = MappingProxyType(
    {
        "app": (("department", "department"), ("use_cases", "use_case")),
        "user": (("department", "department"),),
        "policy": (("departments", "department"), ("use_cases", "use_case")),
        "grant": (("app", "app"), ("use_case", "use_case")),
    }
)


def _dangling(document: Document, names: Mapping[str, frozenset[str]]) -> Iterator[str]:
    for field, kind in _REFERENCES.get(document.kind, ()):
        value = document.body[field]
        for name in [value] if isinstance(value, str) else value:
            if name != "*" and name not in names[kind]:
                yield (
                    f"{document.kind} '{document.name}': {field} names {kind} '{name}', which is not declared; "
                    f"declare it or correct the name"
                )


def _unknown(document: Document) -> Iterator[str]:
    if document.kind == "detector" and document.name not in set(Detector):
        yield f"detector '{document.name}' is unknown; the detectors are {', '.join(Detector)}"


def _department(document: Document) -> Department:
    return Department(document.name, wire.Department.model_validate(document.body).title)


def _use_case(document: Document) -> UseCase:
    body = wire.UseCase.model_validate(document.body)
    return UseCase(document.name, body.purpose, body.owner, body.risk_class)


def _app(document: Document) -> App:
    body = wire.App.model_validate(document.body)
    return App(
        name=document.name,
        department=body.department,
        data_class=DataClass.parse(body.data_class),
        use_cases=tuple(dict.fromkeys(body.use_cases)),
        allowance=Allowance(body.requests_per_minute, body.tokens_per_minute, body.concurrent),
        policy_observed_until=body.observe.policy,
        limits_observed_until=body.observe.limits,
        scan_observed_until=body.observe.scan,
    )


def _user(document: Document) -> User:
    body = wire.User.model_validate(document.body)
    return User(document.name, body.department, frozenset(body.roles))


def _raises_to(document: Document) -> DataClass | None:
    label = wire.Detector.model_validate(document.body).data_class
    return None if label is None else DataClass.parse(label)
