"""What a provider says on its own wire, read beside litellm as it goes by: usage, ids, errors, whether it ended.

The translator's other half, and like it runnable without anything of ours; it knows neither litellm nor HTTP libraries.
"""

import json
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

Counts: TypeAlias = dict[str, int]

BODY_BYTES_MAX = 32 * 1024 * 1024
_INPUTS = ("input", "cached_input", "cache_write", "cache_write_1h", "audio_input", "image_input")
_OUTPUTS = ("output", "reasoning", "audio_output")
_EVENTS = "text/event-stream"
_REQUEST_IDS = ("request-id", "x-request-id", "apim-request-id", "x-amzn-requestid")


class Overlong(Exception):
    """The provider sent more than is taken."""


def read_components(told: Mapping[str, Any]) -> Counts | None:
    """Disjoint components, none of them zero, of usage on OpenAI's, Anthropic's or Gemini's wire; None for any other.

    They sum to the provider's totals. Parts that do not fit into their whole are dropped: all of it is then plain.
    """
    if "promptTokenCount" in told or "totalTokenCount" in told:
        return _of_gemini(told)
    if "prompt_tokens" in told:
        return _of_openai(told, "prompt", "completion")
    if "input_tokens" in told:
        return _of_openai(told, "input", "output") if "total_tokens" in told else _of_anthropic(told)
    return None


def _of_openai(told: Mapping[str, Any], into: str, out: str) -> Counts:
    prompt, ins = _count(told, f"{into}_tokens"), _inside(told, f"{into}_tokens_details")
    outs = _inside(told, f"{out}_tokens_details")
    names = {"cached_input": "cached", "cache_write": "cache_write", "audio_input": "audio", "image_input": "image"}
    parts = {part: _count(ins, f"{name}_tokens") for part, name in names.items()}
    made = {"reasoning": _count(outs, "reasoning_tokens"), "audio_output": _count(outs, "audio_tokens")}
    # What only the total knows was made: xAI reports its reasoning nowhere else.
    completion = max(_count(told, f"{out}_tokens"), _count(told, "total_tokens") - prompt)
    return _split(prompt, "input", parts) | _split(completion, "output", made)


def _of_anthropic(told: Mapping[str, Any]) -> Counts:
    written, lifetimes = _count(told, "cache_creation_input_tokens"), _inside(told, "cache_creation")
    thought = _count(_inside(told, "output_tokens_details"), "thinking_tokens")
    return (
        _some({"input": _count(told, "input_tokens"), "cached_input": _count(told, "cache_read_input_tokens")})
        | _split(written, "cache_write", {"cache_write_1h": _count(lifetimes, "ephemeral_1h_input_tokens")})
        | _split(_count(told, "output_tokens"), "output", {"reasoning": thought})
    )


def _of_gemini(told: Mapping[str, Any]) -> Counts:
    prompt, total = _count(told, "promptTokenCount"), _count(told, "totalTokenCount")
    into, cached = prompt + _count(told, "toolUsePromptTokenCount"), _count(told, "cachedContentTokenCount")
    thought, said = _count(told, "thoughtsTokenCount"), _count(told, "candidatesTokenCount")
    # Some models count their thoughts among what they said; only the total tells.
    out = said if thought and total == into + said else max(said + thought, total - into)
    cached = min(prompt, cached)
    kinds = {
        f"{kind}_input": max(0, _modal(told, "promptTokensDetails", kind) - _modal(told, "cacheTokensDetails", kind))
        for kind in ("audio", "image")
    }
    made = {"reasoning": thought, "audio_output": _modal(told, "candidatesTokensDetails", "audio")}
    return _some({"cached_input": cached}) | _split(into - cached, "input", kinds) | _split(out, "output", made)


def _split(whole: int, rest: str, parts: Mapping[str, int]) -> Counts:
    known = sum(parts.values())
    return _some({rest: whole - known, **parts} if known <= whole else {rest: whole})


def _some(counts: Mapping[str, int]) -> Counts:
    return {part: count for part, count in counts.items() if count}


def _count(told: Mapping[str, Any], name: str) -> int:
    value = told.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def _inside(told: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = told.get(name)
    return value if isinstance(value, dict) else {}


def _rows(told: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    value = told.get(name)
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


def _modal(told: Mapping[str, Any], name: str, kind: str) -> int:
    return sum(_count(row, "tokenCount") for row in _rows(told, name) if row.get("modality") == kind.upper())


def write_usage(parts: Mapping[str, int], *, messages: bool) -> dict[str, Any]:
    """Usage as Anthropic's messages have it, or OpenAI, with our components in it."""
    got = {name: parts.get(name, 0) for name in (*_INPUTS, *_OUTPUTS)}
    out = sum(got[name] for name in _OUTPUTS)
    written = got["cache_write"] + got["cache_write_1h"]
    if messages:
        lifetimes = {"5m": got["cache_write"], "1h": got["cache_write_1h"]}
        return {
            "input_tokens": got["input"] + got["audio_input"] + got["image_input"],
            "cache_read_input_tokens": got["cached_input"],
            "cache_creation_input_tokens": written,
            "cache_creation": {f"ephemeral_{name}_input_tokens": count for name, count in lifetimes.items()},
            "output_tokens": out,
            "output_tokens_details": {"thinking_tokens": got["reasoning"]},
            "components": dict(parts),
        }
    into = sum(got[name] for name in _INPUTS)
    ins = {"cached": got["cached_input"], "cache_write": written, "audio": got["audio_input"]}
    outs = {"reasoning": got["reasoning"], "audio": got["audio_output"]}
    return {
        "prompt_tokens": into,
        "completion_tokens": out,
        "total_tokens": into + out,
        "prompt_tokens_details": {f"{name}_tokens": n for name, n in (ins | {"image": got["image_input"]}).items()},
        "completion_tokens_details": {f"{name}_tokens": count for name, count in outs.items()},
        "components": dict(parts),
    }


@dataclass(slots=True)
class Reading:
    """What one provider answered, kept as its bytes go by on their way to litellm.

    sent: a request left. unreached: it did not, for want of a connection. close: hangs up. is_legible: it spoke JSON.
    """

    sent: bool = False
    unreached: bool = False
    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    close: Callable[[], Awaitable[None]] | None = None
    is_legible: bool = False
    error: Mapping[str, Any] = field(default_factory=dict)
    _told: dict[str, Any] = field(default_factory=dict)
    _body: bytearray = field(default_factory=bytearray)
    _kind: str = ""
    _ends_by_itself: bool = False
    _finished: bool = False
    _ended: bool = False
    _identity: str | None = None

    def begin(self, status: int, headers: Mapping[str, str]) -> None:
        """The head of the answer. headers: names in lower case."""
        self.status, self.headers = status, headers
        self._kind = headers.get("content-type", "").partition(";")[0].strip().lower()

    def feed(self, data: bytes) -> None:
        """A piece of the body. Raises Overlong."""
        self._body += data
        if self._kind == _EVENTS and b"\n" in data:
            *lines, self._body = self._body.split(b"\n")
            for line in lines:
                self._line(line)
        if len(self._body) > BODY_BYTES_MAX:
            raise Overlong

    def finish(self) -> None:
        """The body has come to the end that its framing promised."""
        if self._kind == _EVENTS:
            self._line(self._body)
        else:
            self._note(self._body)
            # Frames that cannot be read here, as Amazon's, are litellm's to judge.
            self._ended = self.is_legible or self._kind.endswith("eventstream")

    @property
    def request_id(self) -> str | None:
        """The provider's own id for the call: of its headers, or as Gemini has it, of its body."""
        return next((self.headers[name] for name in _REQUEST_IDS if name in self.headers), self._identity)

    @property
    def retry_after(self) -> str | None:
        """Seconds to wait, as Gemini says it: in the details of an error."""
        delays = (str(row.get("retryDelay", "")) for row in _rows(self.error, "details"))
        return next((delay[:-1] for delay in delays if re.fullmatch(r"[0-9.]{1,16}s", delay)), None)

    @property
    def components(self) -> Counts | None:
        """What was used, as far as the provider has told."""
        return read_components(self._told)

    @property
    def is_whole(self) -> bool:
        """Whether nothing can be missing; a stream on a wire that is not known here is left to litellm's judgement."""
        is_counted = self._finished and bool(self._told)
        is_unknown = self._kind == _EVENTS and self.is_legible and not self._ends_by_itself
        return (self._ended or is_counted or is_unknown) and not self.error

    def _line(self, line: bytes | bytearray) -> None:
        if line.startswith(b"data:"):
            data = line[5:].strip()
            self._ended = self._ended or data == b"[DONE]"
            # The first event shows the wire; of the others only those are read that may say one of these.
            if not self.is_legible or any(word in data for word in (b"sage", b"finish", b"message_stop", b"error")):
                self._note(data)

    def _note(self, data: bytes | bytearray) -> None:
        try:
            said = json.loads(data)
        except (ValueError, RecursionError):
            return
        said = said[0] if isinstance(said, list) and said else said  # as Gemini wraps its errors
        if not isinstance(said, dict):
            return
        kind = said.get("type")
        self.is_legible = True
        self._ends_by_itself |= kind == "message_start" or not {"choices", "candidates"}.isdisjoint(said)
        self._ended |= kind == "message_stop"
        if said.get("error") or kind == "error" or self.status >= 400:  # noqa: PLR2004 - the first error status
            wrong = said.get("error") or said
            self.error = wrong if isinstance(wrong, dict) else {"message": str(wrong)}
        rows = (*_rows(said, "choices"), *_rows(said, "candidates"))
        self._finished |= any(row.get("finish_reason") or row.get("finishReason") for row in rows)
        identity = said.get("responseId")
        self._identity = self._identity or (identity if isinstance(identity, str) else None)
        for usage in (
            _inside(_inside(said, "message"), "usage"),
            _inside(said, "usageMetadata"),
            _inside(said, "usage"),
        ):
            self._told.update((name, value) for name, value in usage.items() if value is not None)
