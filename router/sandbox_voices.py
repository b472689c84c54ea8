"""How the sandbox answers in each wire: the events and the whole, from one answer of pieces."""

import hashlib
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from struct import pack
from types import MappingProxyType
from typing import Protocol

import msgspec

from kernel import ModelReply, Operation
from router import anthropic, openai

_STOP_REASONS: Mapping[str, str] = MappingProxyType(
    {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
)


@dataclass(frozen=True, slots=True)
class Answer:
    """What will be said: pieces of one token each, as text or as the arguments of a call.

    id, created (seconds since 1970) and model head every event and the reply.
    """

    id: str
    created: int
    model: str
    pieces: tuple[str, ...]
    finish: str
    prompt_tokens: int
    choices: int = 1
    function: str | None = None
    call_id: str = ""

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(self.pieces)

    def usage(self) -> dict[str, int]:
        """Exactly the pieces of the messages and of the answers."""
        completion = len(self.pieces) * self.choices
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": completion,
            "total_tokens": self.prompt_tokens + completion,
        }


class Voice(Protocol):
    """One wire: what is said before, for and after the pieces, and how to read it back as a provider's."""

    def opening(self) -> Iterator[bytes]: ...  # noqa: D102 - told above, as all of these are
    def piece(self, piece: str) -> Iterator[bytes]: ...  # noqa: D102
    def ending(self) -> Iterator[bytes]: ...  # noqa: D102
    def whole(self) -> ModelReply: ...  # noqa: D102
    def reader(self) -> openai.AnswerReader | anthropic.AnswerReader: ...  # noqa: D102


def voice_of(operation: Operation, answer: Answer) -> Voice:
    """The voice for what is asked."""
    match operation:
        case Operation.MESSAGES | Operation.COUNT_TOKENS:
            return _Message(answer, operation)
        case Operation.COMPLETIONS:
            return _Completion(answer)
        case _:
            return _Chat(answer)


class _Chat:
    """OpenAI's chats."""

    kind, whole_kind = "chat.completion.chunk", "chat.completion"

    def __init__(self, answer: Answer) -> None:
        self.answer = answer

    def reader(self) -> openai.AnswerReader:
        return openai.AnswerReader(choices=self.answer.choices)

    def opening(self) -> Iterator[bytes]:
        function = self.answer.function
        yield from self._chunks({"delta": {"role": "assistant", "content": None if function else ""}})
        if function:
            call = {"index": 0, "id": self.answer.call_id, "type": "function"}
            called = {"name": function, "arguments": ""}
            yield from self._chunks({"delta": {"tool_calls": [{**call, "function": called}]}})

    def piece(self, piece: str) -> Iterator[bytes]:
        if self.answer.function is None:
            return self._chunks({"delta": {"content": piece}})
        return self._chunks({"delta": {"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}})

    def ending(self) -> Iterator[bytes]:
        yield from self._chunks({"delta": {}}, self.answer.finish)
        yield self._body(self.kind, [], self.answer.usage())

    def whole(self) -> ModelReply:
        choices = self._each(self._said(), self.answer.finish)
        return openai.read_reply(self._body(self.whole_kind, choices, self.answer.usage()))

    def _said(self) -> Mapping[str, object]:
        answer = self.answer
        message: dict[str, object] = {"role": "assistant", "content": answer.text, "refusal": None}
        if answer.function is not None:
            called = {"name": answer.function, "arguments": answer.text}
            message |= {"content": None, "tool_calls": [{"id": answer.call_id, "type": "function", "function": called}]}
        return {"message": message}

    def _chunks(self, said: Mapping[str, object], finish: str | None = None) -> Iterator[bytes]:
        """One event for each choice."""
        for choice in self._each(said, finish):
            yield self._body(self.kind, [choice], None)

    def _each(self, said: Mapping[str, object], finish: str | None) -> list[Mapping[str, object]]:
        rest = {"logprobs": None, "finish_reason": finish}
        return [{"index": index, **said, **rest} for index in range(self.answer.choices)]

    def _body(self, kind: str, choices: Sequence[Mapping[str, object]], usage: Mapping[str, int] | None) -> bytes:
        answer = self.answer
        head = {"id": answer.id, "created": answer.created, "model": answer.model}
        return msgspec.json.encode({**head, "object": kind, "choices": choices, "usage": usage})


class _Completion(_Chat):
    """OpenAI's completions, which have text where chats have messages."""

    kind = whole_kind = "text_completion"

    def opening(self) -> Iterator[bytes]:
        return iter(())

    def piece(self, piece: str) -> Iterator[bytes]:
        return self._chunks({"text": piece})

    def ending(self) -> Iterator[bytes]:
        yield from self._chunks({"text": ""}, self.answer.finish)
        yield self._body(self.kind, [], self.answer.usage())

    def _said(self) -> Mapping[str, object]:
        return {"text": self.answer.text}


class _Message:
    """Anthropic's messages, and the count of one."""

    def __init__(self, answer: Answer, operation: Operation) -> None:
        self.answer = answer
        self._operation = operation

    def reader(self) -> anthropic.AnswerReader:
        return anthropic.AnswerReader()

    def opening(self) -> Iterator[bytes]:
        yield self._event("message_start", message=self._message([], None, 1))
        yield self._event("content_block_start", index=0, content_block=self._block())

    def piece(self, piece: str) -> Iterator[bytes]:
        delta = {"type": "text_delta", "text": piece}
        if self.answer.function is not None:
            delta = {"type": "input_json_delta", "partial_json": piece}
        yield self._event("content_block_delta", index=0, delta=delta)

    def ending(self) -> Iterator[bytes]:
        yield self._event("content_block_stop", index=0)
        usage = {"output_tokens": len(self.answer.pieces)}
        yield self._event("message_delta", delta={"stop_reason": self._finish, "stop_sequence": None}, usage=usage)
        yield self._event("message_stop")

    def whole(self) -> ModelReply:
        answer = self.answer
        if self._operation is Operation.COUNT_TOKENS:
            body: dict[str, object] = {"input_tokens": answer.prompt_tokens}
        else:
            said = {"text": answer.text} if answer.function is None else {"input": self._input()}
            body = self._message([{**self._block(), **said}], self._finish, len(answer.pieces))
        return anthropic.read_reply(msgspec.json.encode(body), answer.id, self._operation)

    @property
    def _finish(self) -> str:
        return _STOP_REASONS[self.answer.finish]

    def _input(self) -> object:
        try:
            return msgspec.json.decode(self.answer.text)
        except msgspec.DecodeError:  # cut at the limit
            return {}

    def _block(self) -> dict[str, object]:
        if self.answer.function is None:
            return {"type": "text", "text": ""}
        return {"type": "tool_use", "id": self.answer.call_id, "name": self.answer.function, "input": {}}

    def _message(self, content: Sequence[object], finish: str | None, output_tokens: int) -> dict[str, object]:
        answer = self.answer
        head = {"id": answer.id, "type": "message", "role": "assistant", "model": answer.model, "content": content}
        usage = {"input_tokens": answer.prompt_tokens, "output_tokens": output_tokens}
        return {**head, "stop_reason": finish, "stop_sequence": None, "usage": usage}

    def _event(self, kind: str, **said: object) -> bytes:
        return msgspec.json.encode({"type": kind, **said})


def embedded(answer: Answer, texts: Sequence[str], dimensions: int, encoding: str) -> ModelReply:
    """OpenAI's embeddings: numbers from a digest of each text, alike for like texts and meaning nothing."""
    rows = [
        {"object": "embedding", "index": index, "embedding": _vector(text, dimensions, encoding)}
        for index, text in enumerate(texts)
    ]
    usage = {"prompt_tokens": answer.prompt_tokens, "total_tokens": answer.prompt_tokens}
    body = {"object": "list", "data": rows, "model": answer.model, "usage": usage}
    return openai.read_reply(msgspec.json.encode(body), answer.id, Operation.EMBEDDINGS)


def _vector(text: str, dimensions: int, encoding: str) -> list[float] | str:
    digest = hashlib.shake_128(text.encode()).digest(dimensions)
    numbers = [byte - 127.5 for byte in digest]
    length = sum(number * number for number in numbers) ** 0.5
    vector = [number / length for number in numbers]
    return vector if encoding == "float" else b64encode(pack(f"<{dimensions}f", *vector)).decode()
