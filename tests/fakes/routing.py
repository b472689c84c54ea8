"""Documents, requests and calls for tests of the router."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime

from msgspec import Raw

from kernel import ChatRequest, Document, Target
from router import Catalogue, UpstreamCall

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


TARGET = Target("m", "p", "big", 128_000, 1000)


def chat(text: str = "hello there", *, stream: bool = False, limit: int | None = None, **fields: object) -> ChatRequest:
    body = {"model": "m", "messages": [{"role": "user", "content": text}], **fields}
    return ChatRequest(
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
