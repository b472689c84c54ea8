"""A model for trying Penstock without a provider: in this process, without a network, honest about what it is.

It gets the bytes that a provider would get and counts tokens of its own making, so that budgets, limits and books
can be tried for real. A last user message `sandbox: {...}` tells it how to behave; see Directive.
"""

import asyncio
import math
import re
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from kernel import ChatReply, Chunk, Clock, new_id
from router.dispatch import Dispatch
from router.errors import UpstreamBroken, UpstreamBusy, UpstreamError, UpstreamFailed, UpstreamRefused, UpstreamTimeout
from router.openai import UNREADABLE, AnswerReader, encode, read_reply
from router.sandbox_schema import smallest_instance

_TOKEN = re.compile(r"\w{1,4}|\s{1,4}|[^\w\s]")
_WHO_SPEAKS = "This is the Penstock sandbox, not a language model."
_DIRECTIVE = "sandbox:"
_PIECES_BETWEEN_TURNS = 8192
_Count = Annotated[int, Meta(ge=0, le=1_000_000)]


class Directive(Struct, forbid_unknown_fields=True):
    """What a message may tell the sandbox.

    tokens: length of the answer, within the request's limit. text: the answer itself. first_ms: before the first
    event. delay_ms: between events. fail: how to fail, before the answer or after fail_after of its pieces.
    """

    tokens: _Count | None = None
    text: Annotated[str, Meta(max_length=100_000)] | None = None
    first_ms: _Count = 0
    delay_ms: _Count = 0
    fail: Literal["400", "429", "500", "cut", "hang"] | None = None
    fail_after: _Count = 0


class _Part(Struct):
    text: str = ""


class _Message(Struct):
    role: str
    content: str | list[_Part] | None = None

    def texts(self) -> Iterator[str]:
        """The text in it, part by part."""
        yield from [self.content] if isinstance(self.content, str) else [part.text for part in self.content or []]


class _Function(Struct):
    name: str
    parameters: object = None


class _Tool(Struct):
    function: _Function


class _SchemaOf(Struct):
    schema: object = None


class _Format(Struct):
    type: str = "text"
    json_schema: _SchemaOf | None = None


class _Question(Struct):
    """A chat request as the sandbox reads it."""

    messages: Annotated[list[_Message], Meta(min_length=1)]
    max_tokens: _Count | None = None
    max_completion_tokens: _Count | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    tools: list[_Tool] | None = None
    tool_choice: str | _Tool | None = None
    response_format: _Format | None = None

    @property
    def limit(self) -> int:
        """Tokens an answer may have."""
        limit = self.max_completion_tokens if self.max_tokens is None else self.max_tokens
        assert limit is not None  # what is sent always has one
        return limit

    def called(self) -> _Function | None:
        """The function to call, if one is wanted."""
        last = self.messages[-1].role
        functions = [tool.function for tool in self.tools or []]
        if last == "tool" or self.tool_choice == "none":
            return None
        if isinstance(self.tool_choice, _Tool):
            functions = [each for each in functions if each.name == self.tool_choice.function.name]
        elif self.tool_choice != "required" and last != "user":
            return None
        return functions[0] if functions else None


@dataclass(frozen=True, slots=True)
class _Answer:
    """What will be said: pieces of one token each, as text or as the arguments of a call."""

    pieces: tuple[str, ...]
    finish: str
    function: str | None = None
    call_id: str = ""

    def opening(self) -> dict[str, object]:
        """The delta that names the function and holds no token yet."""
        function = {"name": self.function, "arguments": ""}
        return {"tool_calls": [{"index": 0, "id": self.call_id, "type": "function", "function": function}]}

    def delta(self, piece: str) -> dict[str, object]:
        """The delta that carries one piece."""
        if self.function is None:
            return {"content": piece}
        return {"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}

    def message(self) -> dict[str, object]:
        """All of it at once."""
        text = "".join(self.pieces)
        if self.function is None:
            return {"role": "assistant", "content": text, "refusal": None}
        function = {"name": self.function, "arguments": text}
        calls = [{"id": self.call_id, "type": "function", "function": function}]
        return {"role": "assistant", "content": None, "tool_calls": calls, "refusal": None}


class Sandbox:
    """Answers every request by itself; fails only when told to or when the request is wrong."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    async def complete(self, dispatch: Dispatch) -> ChatReply:
        """The whole answer. Raises UpstreamError."""
        turn = await self._hear(dispatch)
        answer = turn.answer
        for given in range(len(answer.pieces) + 1):
            await turn.wait(given)
        choices = [
            {"index": index, "message": answer.message(), "logprobs": None, "finish_reason": answer.finish}
            for index in range(turn.choices)
        ]
        return read_reply(turn.body("chat.completion", choices, turn.usage()))

    async def stream(self, dispatch: Dispatch) -> AsyncGenerator[Chunk, None]:
        """The answer, one token an event, then how it ended, then what it used."""
        turn, reader = await self._hear(dispatch), AnswerReader()
        await turn.wait(0)
        for event in turn.opening():
            yield reader.read(event)
        for given, piece in enumerate(turn.answer.pieces, start=1):
            for event in turn.chunks(turn.answer.delta(piece)):
                yield reader.read(event)
            await turn.wait(given)
        for event in turn.chunks({}, turn.answer.finish):
            yield reader.read(event)
        yield reader.read(turn.body("chat.completion.chunk", [], turn.usage()))

    async def close(self) -> None:
        """Nothing is open."""

    async def _hear(self, dispatch: Dispatch) -> "_Turn":
        dispatch.call.sent()
        body = encode(dispatch.request, dispatch.target, dispatch.provider)
        try:
            question = msgspec.json.decode(body, type=_Question)
            directive = _directive(question)
        except UNREADABLE as error:
            raise UpstreamRefused(f"The sandbox cannot read the request: {error}.") from error
        prompt_tokens = await _count(question)
        answer = _answer(question, directive, prompt_tokens)
        head = {
            "id": new_id("chatcmpl"),
            "created": int(self._clock.now().timestamp()),
            "model": dispatch.target.upstream_model,
        }
        return _Turn(head, dispatch, directive, answer, question.n or 1, prompt_tokens)


@dataclass(frozen=True, slots=True)
class _Turn:
    """One answer being given. head: what every event and the reply repeat."""

    head: Mapping[str, object]
    dispatch: Dispatch
    directive: Directive
    answer: _Answer
    choices: int
    prompt_tokens: int

    async def wait(self, given: int) -> None:
        """Return when the next piece is due, `given` of them being out; fail here where that was told."""
        told, provider = self.directive, self.dispatch.provider
        if given:
            delay_ms, limit_seconds, phase = told.delay_ms, provider.event_seconds, "event"
        else:
            delay_ms, limit_seconds, phase = told.first_ms, provider.answer_seconds, "answer"
        failing = told.fail is not None and given >= min(told.fail_after, len(self.answer.pieces))
        seconds = math.inf if failing and told.fail == "hang" else delay_ms / 1000
        await asyncio.sleep(min(seconds, limit_seconds))  # of 0 as well: others must get their turn
        if seconds > limit_seconds:
            raise UpstreamTimeout(self.dispatch.target.name, phase, sent=True)
        if failing:
            raise self._failure(given)

    def opening(self) -> Iterator[bytes]:
        """The events before the first token: who speaks and, if a function is called, which."""
        yield from self.chunks({"role": "assistant", "content": None if self.answer.function else ""})
        if self.answer.function:
            yield from self.chunks(self.answer.opening())

    def chunks(self, delta: Mapping[str, object], finish: str | None = None) -> Iterator[bytes]:
        """One event for each choice."""
        for index in range(self.choices):
            choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
            yield self.body("chat.completion.chunk", [choice], None)

    def body(self, kind: str, choices: Sequence[Mapping[str, object]], usage: Mapping[str, int] | None) -> bytes:
        """The JSON of a reply or an event."""
        return msgspec.json.encode({**self.head, "object": kind, "choices": choices, "usage": usage})

    def usage(self) -> dict[str, int]:
        """Exactly the pieces of the messages and of the answers."""
        completion = len(self.answer.pieces) * self.choices
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": completion,
            "total_tokens": self.prompt_tokens + completion,
        }

    def _failure(self, given: int) -> UpstreamError:
        told, target = self.directive.fail, self.dispatch.target.name
        if given or told == "cut":
            return UpstreamBroken("The sandbox broke off, as it was told to.")
        if told == "429":
            return UpstreamBusy(target, retry_after_seconds=1.0)
        if told == "400":
            return UpstreamRefused("The sandbox refuses this request, as it was told to.", param="messages")
        return UpstreamFailed(target, 500)


def _directive(question: _Question) -> Directive:
    said = next((message for message in reversed(question.messages) if message.role == "user"), None)
    text = "".join(said.texts()).strip() if said else ""
    if not text.startswith(_DIRECTIVE):
        return Directive()
    return msgspec.json.decode(text.removeprefix(_DIRECTIVE).strip(), type=Directive)


def _answer(question: _Question, directive: Directive, prompt_tokens: int) -> _Answer:
    function = None if directive.text is not None or directive.tokens is not None else question.called()
    text = directive.text
    if text is None:
        text = _json(question, function) or f"{_WHO_SPEAKS} It read {prompt_tokens} tokens and answers with this."
    pieces: list[str] = _TOKEN.findall(text)
    limit = question.limit
    if directive.tokens is not None:
        pieces = list(islice(cycle(pieces), min(directive.tokens, limit + 1)))
    finish = "tool_calls" if function else "stop"
    if len(pieces) > limit:
        pieces, finish = pieces[:limit], "length"
    return _Answer(tuple(pieces), finish, function.name if function else None, new_id("call"))


def _json(question: _Question, function: _Function | None) -> str | None:
    """The answer where it must be JSON."""
    wanted = question.response_format
    if function is not None:
        made = smallest_instance(function.parameters) or {}
    elif wanted is not None and wanted.type == "json_schema" and wanted.json_schema is not None:
        made = smallest_instance(wanted.json_schema.schema)
    elif wanted is not None and wanted.type == "json_object":
        made = {"answer": _WHO_SPEAKS}
    else:
        return None
    return msgspec.json.encode(made).decode()


async def _count(question: _Question) -> int:
    """Tokens of all messages' text; a long prompt is counted in turns with everybody else's work."""
    count = 0
    for message in question.messages:
        for text in message.texts():
            for _ in _TOKEN.finditer(text):
                count += 1
                if count % _PIECES_BETWEEN_TURNS == 0:
                    await asyncio.sleep(0)
    return count
