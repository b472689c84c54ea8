"""The answer to one request: its events, its body, its tokens. Pure: when it is sent, if at all, is not known here."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from tests.sim.ask import Ask
from tests.sim.invoice import Finish, Tokens

_encode = msgspec.json.encode


@dataclass(frozen=True, slots=True)
class Event:
    """One server-sent event. generated: text tokens the caller will have been sent once it is out, all choices."""

    data: bytes
    generated: int


@dataclass(frozen=True, slots=True)
class Answer:
    """What the simulator says to `ask` under one id, second by second the same."""

    ask: Ask
    answer_id: str
    created: int

    @property
    def total(self) -> int:
        """Text tokens of the whole answer, all choices."""
        return len(self.ask.pieces) * self.ask.choices

    @property
    def finish(self) -> Finish:
        """How it ends when nothing goes wrong."""
        return Finish.LENGTH if self.ask.cut_short else Finish.STOP

    def tokens(self, generated: int, *, started: bool = True) -> Tokens:
        """What is billed, and reported, after so many text tokens; reasoning comes before the first event."""
        script = self.ask.script
        if script.usage == "zero":
            return Tokens()
        cached = min(script.cached, self.ask.prompt_tokens)
        cache_write = min(script.cache_write, self.ask.prompt_tokens - cached)
        return Tokens(
            input=self.ask.prompt_tokens - cached - cache_write,
            cached_input=cached,
            cache_write=cache_write,
            output=generated,
            reasoning=self.ask.reasoning * self.ask.choices if started else 0,
        )

    def events(self) -> Iterator[Event]:
        """The stream without its [DONE]: role, tokens and end of each choice, then usage where it was asked for."""
        generated = 0
        for choice in range(self.ask.choices):
            yield self._event(choice, self._opening(choice), 0, padded=choice == 0)
        for piece in self.ask.pieces:
            for choice in range(self.ask.choices):
                generated += 1
                yield self._event(choice, self._delta(piece), generated)
        for choice in range(self.ask.choices):
            yield self._event(choice, {}, generated, reason=self._reason())
        if self.ask.include_usage and self.ask.script.usage != "missing":
            last = Event(_encode(self._chunk() | {"choices": [], "usage": self._usage(generated)}), generated)
            yield from [last] * (2 if self.ask.script.usage == "duplicate" else 1)

    def body(self) -> bytes:
        """The whole answer at once."""
        message = self._message()
        choices = [
            {"index": index, "message": message, "logprobs": None, "finish_reason": self._reason()}
            for index in range(self.ask.choices)
        ]
        whole = self._chunk() | {"object": "chat.completion", "choices": choices}
        if self.ask.script.usage != "missing":
            whole["usage"] = self._usage(self.total)
        if self.ask.script.event_bytes:
            whole["obfuscation"] = "x" * self.ask.script.event_bytes
        return _encode(whole)

    def _event(
        self, choice: int, delta: dict[str, Any], generated: int, *, reason: str | None = None, padded: bool = False
    ) -> Event:
        choices = [{"index": choice, "delta": delta, "logprobs": None, "finish_reason": reason}]
        chunk = self._chunk() | {"choices": choices}
        if self.ask.script.usage == "cumulative":
            chunk["usage"] = self._usage(generated)
        elif self.ask.include_usage:
            chunk["usage"] = None
        if padded and self.ask.script.event_bytes:
            # OpenAI pads its events in this field too; it is no content, so it costs no token.
            chunk["obfuscation"] = "x" * self.ask.script.event_bytes
        return Event(_encode(chunk), generated)

    def _chunk(self) -> dict[str, Any]:
        return {
            "id": self.answer_id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.ask.model,
            "system_fingerprint": "fp_sim",
        }

    def _opening(self, choice: int) -> dict[str, Any]:
        if self.ask.tool is None:
            return {"role": "assistant", "content": "", "refusal": None}
        call = {"index": 0, "id": self._call_id(choice), "type": "function"}
        return {"role": "assistant", "content": None, "tool_calls": [call | {"function": self._function("")}]}

    def _delta(self, piece: str) -> dict[str, Any]:
        if self.ask.tool is None:
            return {"content": piece}
        return {"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}

    def _message(self) -> dict[str, Any]:
        text = "".join(self.ask.pieces)
        if self.ask.tool is None:
            return {"role": "assistant", "content": text, "refusal": None}
        call = {"id": self._call_id(0), "type": "function", "function": self._function(text)}
        return {"role": "assistant", "content": None, "refusal": None, "tool_calls": [call]}

    def _function(self, arguments: str) -> dict[str, Any]:
        return {"name": self.ask.tool, "arguments": arguments}

    def _call_id(self, choice: int) -> str:
        return f"call_{self.answer_id.removeprefix('chatcmpl-')}_{choice}"

    def _reason(self) -> str:
        if self.ask.cut_short:
            return "length"
        return "tool_calls" if self.ask.tool else "stop"

    def _usage(self, generated: int) -> dict[str, Any]:
        used = self.tokens(generated)
        prompt = used.input + used.cached_input + used.cache_write
        completion = used.output + used.reasoning
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {
                "cached_tokens": used.cached_input,
                "cache_write_tokens": used.cache_write,
                "audio_tokens": 0,
            },
            "completion_tokens_details": {
                "reasoning_tokens": used.reasoning,
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        }
