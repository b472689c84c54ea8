"""Documents, requests and calls for tests of the router."""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from msgspec import Raw

from kernel import Clock, Document, Hints, ModelRequest, Target
from router import Catalogue, Health, UpstreamCall, Upstreams, UpstreamSettings
from router.carrier import Carrier

AT = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)


def document(kind: str, name: str, **body: object) -> Document:
    return Document(kind, name, 1, body, "ada", AT)


def catalogue(**provider: object) -> Catalogue:
    """One model `m` (the provider calls it `big`) on one provider `p`."""
    return Catalogue.of(
        [
            document("provider", "p", **provider),
            document("model", "m", provider="p", upstream_model="big", output_tokens_max=1000),
        ]
    )


def upstreams_of(
    known: Catalogue,
    credentials: Callable[[str], str | None],
    clock: Clock,
    settings: UpstreamSettings | None = None,
    *,
    health: Health | None = None,
    carrier: Carrier | None = None,
    **others: Any,
) -> Upstreams:
    """Upstreams with a health of their own, unless one is given to look at. others: handed on."""
    return Upstreams(
        lambda: known,
        credentials,
        health=health or Health(lambda: known, dice=random.Random(7), clock=clock),
        clock=clock,
        settings=settings or UpstreamSettings(),
        carrier=carrier,
        **others,
    )


TARGET = Target("m", "p", "big", 128_000, 1000)


def chat(
    text: str = "hello there", *, stream: bool = False, limit: int | None = None, **fields: object
) -> ModelRequest:
    body = {"model": "m", "messages": [{"role": "user", "content": text}], **fields}
    return ModelRequest(
        model="m",
        fields={name: Raw(json.dumps(value).encode()) for name, value in body.items()},
        stream=stream,
        output_tokens_max=limit,
    )


@dataclass
class Sent:
    """Counts how often the first byte left."""

    times: int = 0

    def call(self) -> UpstreamCall:
        return UpstreamCall("turn_1/2", self.mark)

    def mark(self) -> None:
        self.times += 1


def several(*models: str, **aliases: dict[str, object]) -> Catalogue:
    """Models on one sandbox provider, and aliases onto them."""
    return Catalogue.of(
        [
            document("provider", "s", dialect="sandbox"),
            *(document("model", name, provider="s") for name in models),
            *(document("alias", name, **body) for name, body in aliases.items()),
        ]
    )


def asking(
    model: str,
    tokens: int = 0,
    *,
    task_type: str | None = None,
    max_latency_ms: int | None = None,
    quality_level: str | None = None,
) -> ModelRequest:
    """A request as the router sees one: a name, a length, hints."""
    hints = Hints(task_type=task_type, max_latency_ms=max_latency_ms, quality_level=quality_level)
    return ModelRequest(model, {}, input_tokens_max=tokens * 4, hints=hints)
