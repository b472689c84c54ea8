"""The declared kinds that governance owns, as they are written in a file. References are checked by the directory."""

import re
from collections.abc import Mapping
from datetime import date
from types import MappingProxyType
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints

from kernel import Role

NAME_RULE = "a letter or digit, then up to 127 letters, digits or . _ : / @ -"
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._:/@-]{0,127}$"

Name = Annotated[str, StringConstraints(pattern=_NAME)]
NameOrAll = Annotated[str, StringConstraints(pattern=rf"^\*$|{_NAME}")]
Line = Annotated[str, StringConstraints(min_length=1, max_length=500)]
Limit = Annotated[int, Field(ge=1, le=1_000_000_000)]
DataClassLabel = Literal["public", "internal", "confidential", "restricted"]


def is_name(text: str) -> bool:
    """Whether `text` may name a declared thing."""
    return re.fullmatch(_NAME.removesuffix("$"), text) is not None


class _Declared(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Department(_Declared):
    """A part of the enterprise that pays for its own calls and sees only its own content."""

    title: Line | None = None


class UseCase(_Declared):
    """A registered purpose."""

    purpose: Line
    owner: Line | None = None
    risk_class: Literal["minimal", "limited", "high"] = "minimal"


class Observe(_Declared):
    """Until and including these days (UTC) a check is observed instead of enforced."""

    policy: date | None = None
    limits: date | None = None
    scan: date | None = None


class App(_Declared):
    """A program that calls models. Its data class is the least sensitive that its requests can be."""

    department: Name
    data_class: DataClassLabel = "internal"
    use_cases: Annotated[list[Name], Field(min_length=1)]
    requests_per_minute: Limit | None = None
    tokens_per_minute: Limit | None = None
    concurrent: Limit | None = None
    observe: Observe = Observe()


class User(_Declared):
    """A person."""

    department: Name
    roles: list[Role] = []
    email: Line | None = None


class Policy(_Declared):
    """Opens models to departments for use cases, up to a data class; `*` means all."""

    models: Annotated[list[NameOrAll], Field(min_length=1)]
    departments: Annotated[list[NameOrAll], Field(min_length=1)]
    use_cases: Annotated[list[NameOrAll], Field(min_length=1)]
    data_class: DataClassLabel
    approval_required: bool = False


class Grant(_Declared):
    """Somebody's approval: this app may use this model for this use case until then, where policy asks for it."""

    app: Name
    model: Name
    use_case: Name
    until: AwareDatetime
    reason: Line


class Detector(_Declared):
    """What the content scan raises a request to where it finds something of this name; null: it is not looked for."""

    data_class: DataClassLabel | None


KINDS: Mapping[str, type[BaseModel]] = MappingProxyType(
    {
        "department": Department,
        "use_case": UseCase,
        "app": App,
        "user": User,
        "policy": Policy,
        "grant": Grant,
        "detector": Detector,
    }
)
