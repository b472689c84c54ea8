"""Anthropic's wire: how messages, the count of their tokens and the list of models are answered."""

from collections.abc import Iterator
from typing import Any

import msgspec

from tests.sim.answer import Answer, Event, Said
from tests.sim.anthropic_ask import read_count, read_message
from tests.sim.ask import MODELS, Ask
from tests.sim.connection import Headers, Request
from tests.sim.invoice import Tokens
from tests.sim.refusal import Refusal
from tests.sim.tokens import words
from tests.sim.wire import Door, Wire, same

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    504: "timeout_error",
    529: "overloaded_error",
}


_SIGNATURE = "c2ltdWxhdGVk"
_EMPTY = {"thinking": "", "signature": "", "input": {}, "text": ""}


class Message(Answer):
    """A message. Thinking, which is billed whether it is shown or not, comes before the text."""

    __slots__ = ()
    tells = frozenset({"cached_input", "cache_write", "cache_write_1h", "reasoning"})

    def say(self) -> Iterator[Said]:
        manner, generated = self.ask.script.usage, 0
        yield {"type": "message_start", "message": self._message([], None, self._first_usage())}, 0
        for index, (block, deltas) in enumerate(self._content()):
            empty = block | {name: none for name, none in _EMPTY.items() if name in block}
            yield {"type": "content_block_start", "index": index, "content_block": empty}, generated
            if index == 0:
                yield {"type": "ping"}, generated
            for delta in deltas:
                generated += block["type"] != "thinking"
                yield {"type": "content_block_delta", "index": index, "delta": delta}, generated
                if manner == "cumulative":
                    yield self._delta(None, generated), generated
            yield {"type": "content_block_stop", "index": index}, generated
        yield from [(self._delta(self._reason, generated), generated)] * (2 if manner == "duplicate" else 1)
        yield {"type": "message_stop"}, generated

    def whole(self) -> dict[str, Any]:
        return self._message(
            [block for block, _ in self._content()], self._reason, self._full_usage(self.tokens(self.total))
        )

    def name_of(self, said: dict[str, Any]) -> str:
        return str(said["type"])

    @property
    def _reason(self) -> str:
        if self.ask.cut_short:
            return "max_tokens"
        return "tool_use" if self.ask.tool else "end_turn"

    def _content(self) -> Iterator[tuple[dict[str, Any], list[dict[str, str]]]]:
        """Each block as it is in the end, and the deltas that make it so."""
        pieces, text = self.ask.pieces, "".join(self.ask.pieces)
        if self.ask.thinking and self.ask.reasoning:
            thought = {"thinking": "".join(words(self.ask.reasoning)), "signature": _SIGNATURE}
            yield {"type": "thinking"} | thought, [{"type": f"{name}_delta", name: it} for name, it in thought.items()]
        if self.ask.tool:
            # A call that was cut short has no arguments that could be read.
            arguments = {} if self.ask.cut_short else msgspec.json.decode(text)
            call = {"id": f"toolu_{self.number}", "name": self.ask.tool, "input": arguments}
            deltas = [{"type": "input_json_delta", "partial_json": piece} for piece in pieces]
            yield {"type": "tool_use", "caller": {"type": "direct"}} | call, deltas
        elif pieces:
            yield {"type": "text", "text": text}, [{"type": "text_delta", "text": piece} for piece in pieces]

    def _message(self, content: list[dict[str, Any]], reason: str | None, usage: dict[str, Any]) -> dict[str, Any]:
        said = {"id": f"msg_{self.number}", "type": "message", "role": "assistant", "model": self.ask.model}
        return said | {"content": content, "stop_reason": reason, "stop_sequence": None} | self._told(usage)

    def _delta(self, reason: str | None, generated: int) -> dict[str, Any]:
        delta = {"stop_reason": reason, "stop_sequence": None}
        return {"type": "message_delta", "delta": delta} | self._told(self._usage(self.tokens(generated)))

    def _told(self, usage: dict[str, Any]) -> dict[str, Any]:
        return {} if self.ask.script.usage == "missing" else {"usage": usage}

    def _first_usage(self) -> dict[str, Any]:
        """What went in, and a first count of what comes out, which the later ones include."""
        first = min(1, self.tokens(self.total).completion)
        return self._full_usage(self.tokens(0, started=False)) | {"output_tokens": first}

    def _full_usage(self, used: Tokens) -> dict[str, Any]:
        """Only the message itself, never a delta, tells cache writes by how long they are kept."""
        kept = {"ephemeral_5m_input_tokens": used.cache_write, "ephemeral_1h_input_tokens": used.cache_write_1h}
        return self._usage(used) | {"cache_creation": kept, "service_tier": "standard"}

    def _usage(self, used: Tokens) -> dict[str, Any]:
        return {
            "input_tokens": used.input,
            "cache_creation_input_tokens": used.cache_write + used.cache_write_1h,
            "cache_read_input_tokens": used.cached_input,
            "output_tokens": used.completion,
            "output_tokens_details": {"thinking_tokens": used.reasoning},
        }


class _Counted(Answer):
    __slots__ = ()
    billed = False

    def whole(self) -> dict[str, Any]:
        return {"input_tokens": self.ask.prompt.total}


class _Models(Answer):
    __slots__ = ()
    billed = False

    def whole(self) -> dict[str, Any]:
        each = {"type": "model", "created_at": "2026-01-01T00:00:00Z", "lifecycle": "active"}
        models = [each | {"id": name, "display_name": name} for name in MODELS]
        return {"data": models, "has_more": False, "first_id": MODELS[0], "last_id": MODELS[-1]}


class Anthropic(Wire):
    """Anthropic itself; a request is for it if it names a version of its wire, or a path that nobody else has."""

    ping = b'event: ping\ndata: {"type": "ping"}\n\n'
    malformed = Event(b'{"type":"content_block_delta","index":0,"delta":', 0, "content_block_delta")
    doors = {  # noqa: RUF012 - declared in Wire
        "/v1/messages": Door("POST", read_message, Message),
        "/v1/messages/count_tokens": Door("POST", read_count, _Counted),
        "/v1/models": Door("GET", lambda _body, _model: Ask(), _Models),
    }

    def speaks(self, request: Request) -> bool:
        return "anthropic-version" in request.headers or request.path.startswith("/v1/messages")

    def admit(self, request: Request, key: str) -> None:
        given = request.headers.get("x-api-key") or request.headers.get("authorization", "").removeprefix("Bearer ")
        if not same(given, key):
            raise Refusal(401, "invalid x-api-key")
        if "anthropic-version" not in request.headers:
            raise Refusal(400, "anthropic-version: header is required")

    def headers(self, number: str) -> Headers:
        return (("request-id", self.request_id(number)),)

    def error(self, refusal: Refusal, number: str) -> bytes:
        other = "api_error" if refusal.status >= 500 else "invalid_request_error"
        error = {"type": _TYPES.get(refusal.status, other), "message": refusal.message}
        return msgspec.json.encode({"type": "error", "error": error, "request_id": self.request_id(number)})

    def error_event(self, refusal: Refusal, number: str) -> bytes:
        return self.frame(Event(self.error(refusal, number), 0, "error"))
