"""Gemini's wire: how content, whole and streamed, the count of its tokens and embeddings are answered.

As every server made of protocol buffers it leaves zeros out of what it says.
"""

import re
from collections.abc import Iterator
from functools import partial
from typing import Any

import msgspec

from tests.sim.answer import Answer, Event, Said
from tests.sim.ask import MODELS, Ask
from tests.sim.connection import Headers, Request
from tests.sim.embedding import EmbeddingAsk, vector
from tests.sim.gemini_ask import read_count, read_embed, read_embeds, read_generate
from tests.sim.invoice import Tokens
from tests.sim.refusal import Refusal
from tests.sim.tokens import words
from tests.sim.wire import Door, Wire, same

_PATH = re.compile(r"/v1(?:beta)?/models/([^/:]+):(\w+)")
_STATUSES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    409: "ABORTED",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


def _modalities(**tokens: int) -> list[dict[str, Any]]:
    return [{"modality": name, "tokenCount": count} for name, count in tokens.items() if count]


def _usage(used: Tokens) -> dict[str, Any]:
    """Thoughts stand beside the candidates, not among them; what was cached stands among the prompt."""
    candidates = used.output + used.audio_output
    told = {
        "promptTokenCount": used.prompt,
        "cachedContentTokenCount": used.cached_input,
        "candidatesTokenCount": candidates,
        "thoughtsTokenCount": used.reasoning,
        "totalTokenCount": used.prompt + used.completion,
        "promptTokensDetails": _modalities(
            TEXT=used.input + used.cached_input, IMAGE=used.image_input, AUDIO=used.audio_input
        ),
        "cacheTokensDetails": _modalities(TEXT=used.cached_input),
        "candidatesTokensDetails": _modalities(TEXT=used.output, AUDIO=used.audio_output),
    }
    return {name: count for name, count in told.items() if count}


class Content(Answer):
    """Generated content. Each event of a stream tells the usage until then; a call comes in one piece."""

    __slots__ = ()
    tells = frozenset({"cached_input", "image_input", "audio_input", "reasoning", "audio_output"})

    def say(self) -> Iterator[Said]:
        generated, choices = 0, range(self.ask.choices)
        for part, tokens in (*self._thoughts(), *self._parts()):
            for choice in choices:
                generated += tokens
                yield self._said([(choice, [part], None)], generated), generated
        last = self._said([(choice, [{"text": ""}], self._reason) for choice in choices], generated), generated
        yield from [last] * (2 if self.ask.script.usage == "duplicate" else 1)

    def whole(self) -> dict[str, Any]:
        said = [part for part, _ in self._parts()] if self.ask.tool else [{"text": "".join(self.ask.pieces)}]
        parts = [*(part for part, _ in self._thoughts()), *said]
        return self._said([(choice, parts, self._reason) for choice in range(self.ask.choices)], self.total)

    @property
    def _reason(self) -> str:
        return "MAX_TOKENS" if self.ask.cut_short else "STOP"

    def _thoughts(self) -> list[tuple[dict[str, Any], int]]:
        shown = self.ask.thinking and self.ask.reasoning
        return [({"text": "".join(words(self.ask.reasoning)), "thought": True}, 0)] if shown else []

    def _parts(self) -> list[tuple[dict[str, Any], int]]:
        """What is said, and how many tokens each part of it is."""
        pieces = self.ask.pieces
        if self.ask.tool is None:
            return [({"text": piece}, 1) for piece in pieces]
        if self.ask.cut_short:
            return [({"text": ""}, len(pieces))]
        call = {"id": f"call-{self.number}", "name": self.ask.tool, "args": msgspec.json.decode("".join(pieces))}
        return [({"functionCall": call}, len(pieces))]

    def _said(self, candidates: list[tuple[int, list[dict[str, Any]], str | None]], generated: int) -> dict[str, Any]:
        told: list[dict[str, Any]] = []
        for index, parts, reason in candidates:
            candidate = {"content": {"parts": parts, "role": "model"}, "index": index}
            told.append(candidate | ({"finishReason": reason} if reason else {}))
        usage = {} if self.ask.script.usage == "missing" else {"usageMetadata": _usage(self.tokens(generated))}
        return {"candidates": told, "modelVersion": self.ask.model, "responseId": f"gemini-{self.number}"} | usage


class _Counted(Answer):
    __slots__ = ()
    billed = False
    tells = Content.tells

    def whole(self) -> dict[str, Any]:
        used = _usage(self.tokens(0))
        return {"totalTokens": used["totalTokenCount"], "promptTokensDetails": used["promptTokensDetails"]}


class _Embeddings(Answer):
    """A vector for each content."""

    __slots__ = ()
    tells = frozenset({"image_input", "audio_input"})

    def whole(self) -> dict[str, Any]:
        return {"embeddings": self._vectors()} | self._used()

    def _vectors(self) -> list[dict[str, Any]]:
        assert isinstance(self.ask, EmbeddingAsk)
        return [{"values": vector(text, self.ask.dimensions)} for text in self.ask.texts]

    def _used(self) -> dict[str, Any]:
        return {} if self.ask.script.usage == "missing" else {"usageMetadata": _usage(self.tokens(0))}


class _Embedding(_Embeddings):
    __slots__ = ()

    def whole(self) -> dict[str, Any]:
        return {"embedding": self._vectors()[0]} | self._used()


class _Models(Answer):
    __slots__ = ()
    billed = False

    def whole(self) -> dict[str, Any]:
        methods = ["generateContent", "countTokens", "embedContent"]
        return {"models": [{"name": f"models/{name}", "supportedGenerationMethods": methods} for name in MODELS]}


class Gemini(Wire):
    """Gemini as the developer API serves it. It tells its id in the body, as `responseId`, and in no header."""

    malformed = Event(b'{"candidates":[{"content":', 0)
    doors = {  # noqa: RUF012 - declared in Wire
        "generateContent": Door("POST", read_generate, Content),
        "streamGenerateContent": Door("POST", partial(read_generate, stream=True), Content),
        "countTokens": Door("POST", read_count, _Counted),
        "embedContent": Door("POST", read_embed, _Embedding),
        "batchEmbedContents": Door("POST", read_embeds, _Embeddings),
        "models": Door("GET", lambda _body, _model: Ask(), _Models),
    }

    def speaks(self, request: Request) -> bool:
        return request.path.startswith("/v1beta/") or _PATH.fullmatch(request.path) is not None

    def admit(self, request: Request, key: str) -> None:
        given = request.headers.get("x-goog-api-key") or request.query.get("key")
        if given is None:
            raise Refusal(403, "Method doesn't allow unregistered callers.")
        if not same(given, key):
            raise Refusal(400, "API key not valid. Please pass a valid API key.", "API_KEY_INVALID")

    def place(self, request: Request) -> tuple[str, str]:
        found = _PATH.fullmatch(request.path)
        if found is None:
            return request.path.removeprefix("/v1beta/"), ""
        if found[2] == "streamGenerateContent" and request.query.get("alt") != "sse":
            raise Refusal(400, "The simulator streams with alt=sse only.")
        return found[2], found[1]

    def request_id(self, number: str) -> str:
        return f"gemini-{number}"

    def headers(self, number: str) -> Headers:
        return ()

    def frame(self, event: Event) -> bytes:
        return b"data: " + event.data + b"\r\n\r\n"

    def error(self, refusal: Refusal, number: str) -> bytes:
        other = "INTERNAL" if refusal.status >= 500 else "FAILED_PRECONDITION"
        error = {
            "code": refusal.status,
            "message": refusal.message,
            "status": _STATUSES.get(refusal.status, other),
            "details": _details(refusal),
        }
        return msgspec.json.encode({"error": {name: value for name, value in error.items() if value}})


def _details(refusal: Refusal) -> list[dict[str, Any]]:
    google = "type.googleapis.com/google.rpc"
    if refusal.code == "API_KEY_INVALID":
        return [{"@type": f"{google}.ErrorInfo", "reason": refusal.code, "domain": "googleapis.com"}]
    if refusal.retry_after_seconds is not None:
        return [{"@type": f"{google}.RetryInfo", "retryDelay": f"{refusal.retry_after_seconds:g}s"}]
    return []
