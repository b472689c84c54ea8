"""Every wire as its client sees it: how a text is asked for, and how its own words tell what was used.

It is written without the simulator's code, so that both can be compared. An image and a recording go with every text
that the wire lets them go with.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.sim.invoice import Tokens

PIXEL = "iVBORw0KGgo="


def of_openai(usage: dict[str, Any]) -> Tokens:
    """OpenAI's totals include what its details name."""
    went_in, came_out = usage["prompt_tokens_details"], usage["completion_tokens_details"]
    told = {
        "cached_input": went_in["cached_tokens"],
        "cache_write": went_in["cache_write_tokens"],
        "audio_input": went_in["audio_tokens"],
        "image_input": went_in["image_tokens"],
    }
    said = {"reasoning": came_out["reasoning_tokens"], "audio_output": came_out["audio_tokens"]}
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    rest = {
        "input": usage["prompt_tokens"] - sum(told.values()),
        "output": usage["completion_tokens"] - sum(said.values()),
    }
    return Tokens(**told, **said, **rest)


def of_anthropic(usage: dict[str, Any]) -> Tokens:
    """Anthropic's input is only what was neither read from a cache nor written to one."""
    written, thought = usage["cache_creation"], usage["output_tokens_details"]["thinking_tokens"]
    assert usage["cache_creation_input_tokens"] == sum(written.values())
    return Tokens(
        input=usage["input_tokens"],
        cached_input=usage["cache_read_input_tokens"],
        cache_write=written["ephemeral_5m_input_tokens"],
        cache_write_1h=written["ephemeral_1h_input_tokens"],
        output=usage["output_tokens"] - thought,
        reasoning=thought,
    )


def of_gemini(usage: dict[str, Any]) -> Tokens:
    """Gemini's thoughts stand beside its candidates; what was cached is among the prompt's text."""
    went_in = {each["modality"]: each["tokenCount"] for each in usage.get("promptTokensDetails", ())}
    came_out = {each["modality"]: each["tokenCount"] for each in usage.get("candidatesTokensDetails", ())}
    cached, thought = usage.get("cachedContentTokenCount", 0), usage.get("thoughtsTokenCount", 0)
    prompt, said = usage.get("promptTokenCount", 0), usage.get("candidatesTokenCount", 0)
    assert sum(went_in.values()) == prompt
    assert sum(came_out.values()) == said
    assert usage.get("totalTokenCount", 0) == prompt + said + thought
    return Tokens(
        input=went_in.get("TEXT", 0) - cached,
        cached_input=cached,
        image_input=went_in.get("IMAGE", 0),
        audio_input=went_in.get("AUDIO", 0),
        output=came_out.get("TEXT", 0),
        reasoning=thought,
        audio_output=came_out.get("AUDIO", 0),
    )


def openai_body(text: str, ceiling: int, **more: Any) -> dict[str, Any]:
    """A chat completion."""
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}}
    recording = {"type": "input_audio", "input_audio": {"data": PIXEL, "format": "wav"}}
    content = [{"type": "text", "text": text}, image, recording]
    usage = {"stream_options": {"include_usage": True}} if more.get("stream") else {}
    asked = {"model": "sim-small", "max_tokens": ceiling, "messages": [{"role": "user", "content": content}]}
    return asked | usage | more


def completion_body(text: str, ceiling: int, **more: Any) -> dict[str, Any]:
    """A text completion."""
    usage = {"stream_options": {"include_usage": True}} if more.get("stream") else {}
    return {"model": "sim-small", "max_tokens": ceiling, "prompt": text} | usage | more


def anthropic_body(text: str, ceiling: int, **more: Any) -> dict[str, Any]:
    """A message."""
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}}
    content = [{"type": "text", "text": text}, image]
    thinking = {"type": "enabled", "budget_tokens": 1024}
    asked = {"model": "sim-small", "max_tokens": ceiling, "messages": [{"role": "user", "content": content}]}
    return asked | {"thinking": thinking} | more


def gemini_body(text: str, ceiling: int, **_more: Any) -> dict[str, Any]:
    """Content; the stream is another path, so nothing more is said."""
    parts = [
        {"text": text},
        {"inlineData": {"mimeType": "image/png", "data": PIXEL}},
        {"inline_data": {"mime_type": "audio/wav", "data": PIXEL}},
    ]
    config = {"maxOutputTokens": ceiling, "thinkingConfig": {"includeThoughts": True}}
    return {"contents": [{"role": "user", "parts": parts}], "generationConfig": config}


def last_usage(events: list[dict[str, Any]]) -> dict[str, Any]:
    """That of the last event that tells it."""
    return next(event["usage"] for event in reversed(events) if event.get("usage"))


def anthropic_usage(events: list[dict[str, Any]]) -> dict[str, Any]:
    """Each later count replaces the one before."""
    first: dict[str, Any] = events[0]["message"]["usage"]
    last: dict[str, Any] = next(event["usage"] for event in reversed(events) if event["type"] == "message_delta")
    return first | last


@dataclass(frozen=True)
class Subject:
    """One wire's way of asking for a text, and our own way of reading what it says of its tokens."""

    path: str
    stream_path: str
    headers: dict[str, str]
    body: Callable[..., dict[str, Any]]
    usage: Callable[[dict[str, Any]], dict[str, Any]]
    stream_usage: Callable[[list[dict[str, Any]]], dict[str, Any]]
    tokens: Callable[[dict[str, Any]], Tokens]

    def request(self, text: str, *, ceiling: int = 10_000, stream: bool = False) -> tuple[str, bytes]:
        """Path and body."""
        body = self.body(text, ceiling, **({"stream": True} if stream else {}))
        return self.stream_path if stream else self.path, json.dumps(body).encode()


AZURE = "/openai/deployments/sim-small/chat/completions?api-version=2024-10-21"
GEMINI = "/v1beta/models/sim-small"
BEARER = {"authorization": "Bearer sim-key"}
SUBJECTS = {
    "chat": Subject(
        "/v1/chat/completions",
        "/v1/chat/completions",
        BEARER,
        openai_body,
        lambda told: told["usage"],
        last_usage,
        of_openai,
    ),
    "completions": Subject(
        "/v1/completions",
        "/v1/completions",
        BEARER,
        completion_body,
        lambda told: told["usage"],
        last_usage,
        of_openai,
    ),
    "azure": Subject(
        AZURE, AZURE, {"api-key": "sim-key"}, openai_body, lambda told: told["usage"], last_usage, of_openai
    ),
    "anthropic": Subject(
        "/v1/messages",
        "/v1/messages",
        {"x-api-key": "sim-key", "anthropic-version": "2023-06-01"},
        anthropic_body,
        lambda told: told["usage"],
        anthropic_usage,
        of_anthropic,
    ),
    "gemini": Subject(
        f"{GEMINI}:generateContent",
        f"{GEMINI}:streamGenerateContent?alt=sse",
        {"x-goog-api-key": "sim-key"},
        gemini_body,
        lambda told: told["usageMetadata"],
        lambda events: events[-1]["usageMetadata"],
        of_gemini,
    ),
}
