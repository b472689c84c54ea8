"""What an operator may declare about providers, models and aliases. Shape only: names are tied in catalogue.py."""

import re
from collections.abc import Mapping
from datetime import date
from types import MappingProxyType
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from router.tls import require_certificates

_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")
_RESERVED_HEADERS = frozenset(
    {"authorization", "connection", "content-length", "content-type", "cookie", "host", "transfer-encoding"}
)


def _endpoint(url: str) -> str:
    parts = urlsplit(url)  # raises ValueError for a malformed address
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("must be an http or https URL with a host")
    if parts.username is not None or parts.password is not None:
        raise ValueError("must not carry a user or password; seal a credential and name it")
    if "?" in url or "#" in url:
        raise ValueError("must not have a query or a fragment")
    if parts.port == 0 or not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError("must be printable ASCII without spaces and have a port from 1 to 65535")
    try:
        parts.hostname.encode("idna")
    except UnicodeError as error:
        raise ValueError("must have a host whose labels are 1 to 63 characters long") from error
    return url.rstrip("/")


def _proxy(url: str) -> str:
    url = _endpoint(url)
    parts = urlsplit(url)
    if parts.scheme != "http" or parts.path or parts.port is None:
        raise ValueError("must be http://host:port")
    return url


def _headers(headers: dict[str, str]) -> dict[str, str]:
    for name, value in headers.items():
        if not _HEADER_NAME.fullmatch(name):
            raise ValueError(f"`{name[:40]}` is not a header name")
        if name.lower() in _RESERVED_HEADERS:
            raise ValueError(f"`{name}` is not for declaring; secrets are sealed credentials")
        if not value.isascii() or not value.isprintable():
            raise ValueError(f"the value of `{name}` must be printable ASCII")
    return headers


_Name = Annotated[str, Field(min_length=1, max_length=200)]
_Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
_Tokens = Annotated[int, Field(gt=0, le=100_000_000)]
_Words = Annotated[list[Annotated[str, Field(min_length=1, max_length=128)]], Field(min_length=1, max_length=32)]


class _Declared(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


Dialect = Literal["openai", "anthropic", "vllm", "translated", "sandbox"]


class ProviderBody(_Declared):
    """Where models live and how to talk to them.

    dialect: what it speaks; `translated` is whatever the translator calls by the name `translate_as`. api_version: for
    providers that ask for one. betas: flags of Anthropic's that callers may switch on.

    answer_seconds bounds the first event or the whole reply; event_seconds the time between two events, which
    comments and keep-alives do not reset; total_seconds everything. draining: takes no new turns. ca_certificates:
    PEM of those that sign the provider's, instead of the system's. client_certificate: the sealed credential with our
    certificate and its key in PEM. proxy: connections go through it.
    """

    dialect: Dialect
    translate_as: Annotated[str, Field(pattern=r"^[a-z0-9_]{1,64}$")] | None = None
    api_version: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")] | None = None
    betas: frozenset[Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,128}$")]] = frozenset()
    base_url: Annotated[str, Field(max_length=2000), AfterValidator(_endpoint)] | None = None
    credential: _Name | None = None
    headers: Annotated[dict[str, str], Field(max_length=32), AfterValidator(_headers)] = Field(default_factory=dict)
    output_limit_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    connect_seconds: _Seconds = 5
    answer_seconds: _Seconds = 120
    event_seconds: _Seconds = 60
    total_seconds: _Seconds = 600
    ca_certificates: Annotated[str, Field(max_length=65_536), AfterValidator(require_certificates)] | None = None
    client_certificate: _Name | None = None
    proxy: Annotated[str, Field(max_length=2000), AfterValidator(_proxy)] | None = None
    draining: bool = False

    @model_validator(mode="after")
    def _has_an_address(self) -> Self:
        if self.dialect in {"openai", "anthropic", "vllm"} and self.base_url is None:
            raise ValueError(f"base_url is required for the dialect {self.dialect}")
        return self

    @model_validator(mode="after")
    def _is_translated_alike(self) -> Self:
        if (self.dialect == "translated") is not (self.translate_as is not None):
            raise ValueError("translate_as names the provider for the dialect translated, and for no other")
        if self.dialect == "translated" and (self.proxy or self.ca_certificates or self.client_certificate):
            raise ValueError("proxy, ca_certificates and client_certificate are not for the dialect translated")
        if self.api_version is not None and self.dialect != "translated":
            raise ValueError("api_version is for the dialect translated")
        if self.betas and self.dialect != "anthropic":
            raise ValueError("betas are for the dialect anthropic")
        return self

    @model_validator(mode="after")
    def _has_what_tls_is_for(self) -> Self:
        declared = self.ca_certificates is not None or self.client_certificate is not None
        if declared and not (self.base_url or "").startswith("https:"):
            raise ValueError("ca_certificates and client_certificate need a base_url that begins with https")
        return self


class ModelBody(_Declared):
    """A model on a provider; upstream_model is the provider's name for it where that differs.

    prompt_overhead_tokens: what the provider's own template adds to every prompt (a default system text, a date), so
    that holds cover it; a few tokens per message are always counted. draining: takes no new turns.

    base: the model of the same provider that it was made from (a fine-tune, a LoRA adapter). Without a price of its
    own in force it costs what its base costs; without a policy that names it, it is governed as its base is. A name of
    the form `ft:<base>:...`, its own or the provider's, names a declared base by itself.
    lifecycle, retires_on: from that day (UTC) on it is retired, and 404, whatever its lifecycle is. successor: the
    model or alias that callers are told to use instead; never a hidden one.
    """

    provider: _Name
    upstream_model: _Name | None = None
    base: _Name | None = None
    context_tokens: _Tokens = 128_000
    output_tokens_max: _Tokens = 4096
    unpriced: bool = False
    hidden: bool = False
    prompt_overhead_tokens: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    draining: bool = False
    lifecycle: Literal["preview", "active", "deprecated", "retired"] = "active"
    retires_on: date | None = None
    successor: _Name | None = None

    @model_validator(mode="after")
    def _answer_fits(self) -> Self:
        if self.output_tokens_max > self.context_tokens:
            raise ValueError("output_tokens_max must not exceed context_tokens")
        return self


class WeightedTarget(_Declared):
    """A model with its share where the alias chooses by weight or by outstanding calls."""

    model: _Name
    weight: Annotated[int, Field(ge=1, le=1000)] = 1


def _distinct(targets: list[str | WeightedTarget]) -> list[str | WeightedTarget]:
    names = {each if isinstance(each, str) else each.model for each in targets}
    if len(names) != len(targets):
        raise ValueError("names a target twice")
    return targets


class Conditions(_Declared):
    """What a request must be for a rule to match: everything that is given holds. A hint that is missing never does.

    prompt_tokens_over: against an estimate of four bytes a token. max_latency_ms_under, task_type, quality_level:
    against the hints of those names, word for word.
    """

    prompt_tokens_over: Annotated[int, Field(ge=0, le=100_000_000)] | None = None
    task_type: _Words | None = None
    max_latency_ms_under: Annotated[int, Field(gt=0, le=86_400_000)] | None = None
    quality_level: _Words | None = None

    @model_validator(mode="after")
    def _asks_something(self) -> Self:
        if all(value is None for _, value in self):
            raise ValueError(f"must give at least one of {', '.join(type(self).model_fields)}")
        return self


class RuleBody(_Declared):
    """Requests that are so go to this model or alias."""

    when: Conditions
    use: _Name


class AliasBody(_Declared):
    """A name callers use that stands for models: those of the first rule that matches, its own targets otherwise."""

    targets: Annotated[list[_Name | WeightedTarget], Field(min_length=1, max_length=32), AfterValidator(_distinct)]
    choose: Literal["order", "weight", "least_outstanding", "cheapest"] = "order"
    rules: Annotated[list[RuleBody], Field(max_length=32)] = Field(default_factory=list)
    description: Annotated[str, Field(max_length=2000)] | None = None


KINDS: Mapping[str, type[BaseModel]] = MappingProxyType(
    {"provider": ProviderBody, "model": ModelBody, "alias": AliasBody}
)
