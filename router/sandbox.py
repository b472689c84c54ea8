"""A model for trying Penstock without a provider: in this process, without a network, honest about what it is.

It gets the bytes that a provider would get and counts tokens of its own making, so that budgets, limits and books
can be tried for real. A last user message `sandbox: {...}` tells it how to behave; see Directive.
"""

import asyncio
import math
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from itertools import cycle, islice

import msgspec

from kernel import Chunk, Clock, ModelReply, Operation, new_id
from router.dispatch import Dispatch
from router.errors import UpstreamBroken, UpstreamBusy, UpstreamError, UpstreamFailed, UpstreamRefused, UpstreamTimeout
from router.openai import UNREADABLE
from router.sandbox_question import TOKEN, Directive, Function, Question, inputs, read_question
from router.sandbox_schema import smallest_instance
from router.sandbox_voices import Answer, Voice, embedded, voice_of

_WHO_SPEAKS = "This is the Penstock sandbox, not a language model."


class Sandbox:
    """Answers every request by itself; fails only when told to or when the request is wrong."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    async def complete(self, dispatch: Dispatch) -> ModelReply:
        """The whole answer. Raises UpstreamError."""
        turn = await self._hear(dispatch)
        for given in range(len(turn.answer.pieces) + 1):
            await turn.wait(given)
        if dispatch.request.operation is Operation.EMBEDDINGS:
            return embedded(turn.answer, *inputs(dispatch))
        return turn.voice.whole()

    async def stream(self, dispatch: Dispatch) -> AsyncGenerator[Chunk, None]:
        """The answer, one token an event, then how it ended, then what it used."""
        turn = await self._hear(dispatch)
        voice, reader = turn.voice, turn.voice.reader()
        await turn.wait(0)
        for event in voice.opening():
            yield reader.read(event)
        for given, piece in enumerate(turn.answer.pieces, start=1):
            for event in voice.piece(piece):
                yield reader.read(event)
            await turn.wait(given)
        for event in voice.ending():
            yield reader.read(event)

    async def close(self) -> None:
        """Nothing is open."""

    async def _hear(self, dispatch: Dispatch) -> "_Turn":
        dispatch.call.sent()
        question = read_question(dispatch)
        try:
            directive = question.directive()
        except UNREADABLE as error:
            raise UpstreamRefused(f"The sandbox cannot read the request: {error}.") from error
        answer = _answer(
            question,
            directive,
            await question.count(),
            created=int(self._clock.now().timestamp()),
            model=dispatch.target.upstream_model,
        )
        return _Turn(dispatch, directive, answer, voice_of(dispatch.request.operation, answer))


@dataclass(frozen=True, slots=True)
class _Turn:
    """One answer being given."""

    dispatch: Dispatch
    directive: Directive
    answer: Answer
    voice: Voice

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

    def _failure(self, given: int) -> UpstreamError:
        told, target = self.directive.fail, self.dispatch.target.name
        if given or told == "cut":
            return UpstreamBroken("The sandbox broke off, as it was told to.")
        if told == "429":
            return UpstreamBusy(target, retry_after_seconds=1.0)
        if told == "400":
            return UpstreamRefused("The sandbox refuses this request, as it was told to.", param="messages")
        return UpstreamFailed(target, 500)


def _answer(question: Question, directive: Directive, prompt_tokens: int, *, created: int, model: str) -> Answer:
    function = None if directive.text is not None or directive.tokens is not None else question.called()
    text = directive.text
    if text is None:
        text = _json(question, function) or f"{_WHO_SPEAKS} It read {prompt_tokens} tokens and answers with this."
    pieces: list[str] = TOKEN.findall(text)
    limit = question.limit
    if directive.tokens is not None:
        pieces = list(islice(cycle(pieces), min(directive.tokens, limit + 1)))
    finish = "tool_calls" if function else "stop"
    if len(pieces) > limit:
        pieces, finish = pieces[:limit], "length"
    return Answer(
        id=new_id("chatcmpl"),
        created=created,
        model=model,
        pieces=tuple(pieces),
        finish=finish,
        prompt_tokens=prompt_tokens,
        choices=question.n or 1,
        function=function.name if function else None,
        call_id=new_id("call"),
    )


def _json(question: Question, function: Function | None) -> str | None:
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
