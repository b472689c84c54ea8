"""OpenAI's wire: how chat completions, text completions, embeddings and the list of models are answered."""

from collections.abc import Iterator
from typing import Any, ClassVar

import msgspec

from tests.sim.answer import Answer, Said
from tests.sim.ask import MODELS, Ask
from tests.sim.connection import Request
from tests.sim.embedding import EmbeddingAsk, packed, vector
from tests.sim.openai_ask import CompletionAsk, read_chat, read_completion, read_embedding
from tests.sim.refusal import Refusal
from tests.sim.wire import Door, Wire, same

_TELLS = frozenset({"cached_input", "cache_write", "image_input", "audio_input", "reasoning", "audio_output"})


class _Generated(Answer):
    """A text, token by token, and its usage in the end where it was asked for."""

    __slots__ = ()
    tells = _TELLS
    prefix: ClassVar[str]
    kind: ClassVar[str]
    chunk_kind: ClassVar[str]

    def part(self, choice: int, piece: str | None, reason: str | None) -> dict[str, Any]:
        """One choice of an event: a piece of it, or its end with the reason."""
        raise NotImplementedError

    def choice(self, index: int) -> dict[str, Any]:
        """One choice of the whole answer."""
        raise NotImplementedError

    def say(self) -> Iterator[Said]:
        generated = 0
        for choice in range(self.ask.choices):
            yield from self.opening(choice)
        for piece in self.ask.pieces:
            for choice in range(self.ask.choices):
                generated += 1
                yield self._said(self.part(choice, piece, None), generated)
        for choice in range(self.ask.choices):
            yield self._said(self.part(choice, None, self.reason), generated)
        if self.ask.include_usage and self.ask.script.usage != "missing":
            last = self._head(self.chunk_kind) | {"choices": [], "usage": self._usage(generated)}, generated
            yield from [last] * (2 if self.ask.script.usage == "duplicate" else 1)

    def opening(self, choice: int) -> Iterator[Said]:
        """What comes before the first piece of a choice."""
        yield from ()

    def whole(self) -> dict[str, Any]:
        shown = self.ask.shown if isinstance(self.ask, CompletionAsk) else range(self.ask.choices)
        choices = [self.choice(index) | {"index": place} for place, index in enumerate(shown)]
        told = self._head(self.kind) | {"choices": choices}
        return told if self.ask.script.usage == "missing" else told | {"usage": self._usage(self.total)}

    @property
    def reason(self) -> str:
        """Why it ends."""
        return "length" if self.ask.cut_short else "stop"

    def _said(self, choice: dict[str, Any], generated: int) -> Said:
        chunk = self._head(self.chunk_kind) | {"choices": [choice]}
        if self.ask.script.usage == "cumulative":
            chunk["usage"] = self._usage(generated)
        elif self.ask.include_usage:
            chunk["usage"] = None
        return chunk, generated

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": f"{self.prefix}{self.number}",
            "object": kind,
            "created": self.created,
            "model": self.ask.model,
            "system_fingerprint": "fp_sim",
        }

    def _usage(self, generated: int) -> dict[str, Any]:
        used = self.tokens(generated)
        return {
            "prompt_tokens": used.prompt,
            "completion_tokens": used.completion,
            "total_tokens": used.prompt + used.completion,
            "prompt_tokens_details": {
                "cached_tokens": used.cached_input,
                "cache_write_tokens": used.cache_write,
                "audio_tokens": used.audio_input,
                "image_tokens": used.image_input,
            },
            "completion_tokens_details": {
                "reasoning_tokens": used.reasoning,
                "audio_tokens": used.audio_output,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        }


class Chat(_Generated):
    """A chat completion."""

    __slots__ = ()
    prefix, kind, chunk_kind = "chatcmpl-", "chat.completion", "chat.completion.chunk"

    def opening(self, choice: int) -> Iterator[Said]:
        yield self._said(self._part(choice, self._role(choice), None), 0)

    def part(self, choice: int, piece: str | None, reason: str | None) -> dict[str, Any]:
        delta: dict[str, Any] = {}
        if piece is not None and self.ask.tool:
            delta = {"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}
        elif piece is not None:
            delta = {"content": piece}
        return self._part(choice, delta, reason)

    def choice(self, index: int) -> dict[str, Any]:
        text = "".join(self.ask.pieces)
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if self.ask.tool:
            message |= {"content": None, "tool_calls": [self._call(index, text)]}
        return {"message": message, "logprobs": None, "finish_reason": self.reason}

    @property
    def reason(self) -> str:
        return "tool_calls" if self.ask.tool and not self.ask.cut_short else super().reason

    def _part(self, choice: int, delta: dict[str, Any], reason: str | None) -> dict[str, Any]:
        return {"index": choice, "delta": delta, "logprobs": None, "finish_reason": reason}

    def _role(self, choice: int) -> dict[str, Any]:
        if self.ask.tool is None:
            return {"role": "assistant", "content": "", "refusal": None}
        return {"role": "assistant", "content": None, "tool_calls": [{"index": 0} | self._call(choice, "")]}

    def _call(self, choice: int, arguments: str) -> dict[str, Any]:
        function = {"name": self.ask.tool, "arguments": arguments}
        return {"id": f"call_{self.number}_{choice}", "type": "function", "function": function}


class Completion(_Generated):
    """A text completion."""

    __slots__ = ()
    prefix, kind, chunk_kind = "cmpl-", "text_completion", "text_completion"

    def part(self, choice: int, piece: str | None, reason: str | None) -> dict[str, Any]:
        return {"index": choice, "text": piece or "", "logprobs": None, "finish_reason": reason}

    def choice(self, index: int) -> dict[str, Any]:
        return self.part(index, "".join(self.ask.pieces), self.reason)


class Embedding(Answer):
    """One vector per text."""

    __slots__ = ()

    def whole(self) -> dict[str, Any]:
        assert isinstance(self.ask, EmbeddingAsk)
        vectors = [vector(text, self.ask.dimensions) for text in self.ask.texts]
        data = [
            {"object": "embedding", "index": index, "embedding": packed(numbers) if self.ask.base64 else numbers}
            for index, numbers in enumerate(vectors)
        ]
        told = {"object": "list", "data": data, "model": self.ask.model}
        if self.ask.script.usage == "missing":
            return told
        used = self.tokens(0).prompt
        return told | {"usage": {"prompt_tokens": used, "total_tokens": used}}


class _Models(Answer):
    __slots__ = ()
    billed = False

    def whole(self) -> dict[str, Any]:
        models = [{"id": name, "object": "model", "created": 0, "owned_by": "simulator"} for name in MODELS]
        return {"object": "list", "data": models}


def error_of(refusal: Refusal) -> dict[str, Any]:
    """The four keys OpenAI promises."""
    kind = "server_error" if refusal.status >= 500 else "invalid_request_error"
    told = {"message": refusal.message, "type": "requests" if refusal.status == 429 else kind}
    return {"error": told | {"param": refusal.param, "code": refusal.code}}


class OpenAI(Wire):
    """OpenAI itself, or a server that speaks as it does. It speaks for itself wherever nobody else does."""

    end = b"data: [DONE]\n\n"
    doors = {  # noqa: RUF012 - declared in Wire
        "/v1/chat/completions": Door("POST", read_chat, Chat),
        "/v1/completions": Door("POST", read_completion, Completion),
        "/v1/embeddings": Door("POST", read_embedding, Embedding),
        "/v1/models": Door("GET", lambda _body, _model: Ask(), _Models),
    }

    def speaks(self, request: Request) -> bool:
        return True

    def admit(self, request: Request, key: str) -> None:
        if not same(request.headers.get("authorization", ""), f"Bearer {key}"):
            raise Refusal(401, "Incorrect API key provided.", "invalid_api_key")

    def error(self, refusal: Refusal, number: str) -> bytes:
        return msgspec.json.encode(error_of(refusal))
