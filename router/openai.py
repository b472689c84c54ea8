"""Our side of OpenAI's wire: what we send, and the few facts we read from what comes back. No I/O."""

import math
from collections.abc import Mapping
from datetime import datetime
from email.utils import parsedate_to_datetime
from types import MappingProxyType

import msgspec
from msgspec import Raw, Struct

from kernel import Chunk, Component, ModelReply, ModelRequest, Operation, Target, Usage
from router.catalogue import Provider
from router.errors import UpstreamBroken, UpstreamBusy, UpstreamError, UpstreamFailed, UpstreamRefused

_NOTHING_GIVEN = frozenset({b"null", b'""', b"[]", b"{}"})
_ID_CHARACTERS_MAX = 128
_REFUSALS = frozenset({400, 413, 422})
_RETRY_AFTER_SECONDS_MAX = 86_400.0
_BUSY = 429
UNREADABLE = (msgspec.MsgspecError, ValueError, RecursionError)


class _Choice(Struct, gc=False):
    index: int = 0
    delta: dict[str, Raw] | None = None
    text: str | None = None
    finish_reason: str | None = None


class _Event(Struct, gc=False):
    id: object = None
    choices: list[_Choice] | None = None
    usage: object = None
    error: object = None


class _Reply(Struct, gc=False):
    id: object = None
    usage: object = None
    error: object = None


class _Refusal(Struct):
    message: object = None
    param: object = None
    code: object = None


class _RefusalBody(Struct):
    error: _Refusal | str | None = None
    message: object = None


_INPUTS: Mapping[Component, str] = MappingProxyType(
    {
        Component.CACHED_INPUT: "cached_tokens",
        Component.CACHE_WRITE: "cache_write_tokens",
        Component.AUDIO_INPUT: "audio_tokens",
        Component.IMAGE_INPUT: "image_tokens",
    }
)
_OUTPUTS: Mapping[Component, str] = MappingProxyType(
    {Component.REASONING: "reasoning_tokens", Component.AUDIO_OUTPUT: "audio_tokens"}
)
_COMPONENTS = frozenset(Component)
_EVENT = msgspec.json.Decoder(_Event)
_REPLY = msgspec.json.Decoder(_Reply)
_REFUSAL = msgspec.json.Decoder(_RefusalBody)
_MEMBERS = msgspec.json.Decoder(dict[str, Raw])


def encode(request: ModelRequest, target: Target, provider: Provider) -> bytes:
    """The body to send: the caller's own, with model, output limit and (on streams) include_usage replaced.

    Every other member is sent byte for byte. Without a limit of the request's own the target's ceiling is sent, since
    no more than that was set aside; embeddings have none.
    """
    limit = target.output_tokens_max if request.output_tokens_max is None else request.output_tokens_max
    body: dict[str, object] = dict(request.fields)
    body.pop("max_tokens", None)
    body.pop("max_completion_tokens", None)
    body["model"] = target.upstream_model
    if request.operation is Operation.CHAT:
        body[provider.output_limit_field] = limit
    elif request.operation is Operation.COMPLETIONS:
        body["max_tokens"] = limit
    if request.stream:
        body["stream"] = True
        body["stream_options"] = {**_members(request.fields.get("stream_options")), "include_usage": True}
    return msgspec.json.encode(body)


def read_reply(
    body: bytes, provider_request_id: str | None = None, operation: Operation = Operation.CHAT
) -> ModelReply:
    """A whole answer. Raises UpstreamBroken for anything but a JSON object without an error in it."""
    try:
        reply = _REPLY.decode(body)
    except UNREADABLE as error:
        raise UpstreamBroken("The provider's answer is not a JSON object.") from error
    if reply.error:
        raise UpstreamBroken("The provider reported an error inside an answer.")
    usage = read_usage(reply.usage, is_input_only=operation is Operation.EMBEDDINGS)
    return ModelReply(body, usage, provider_request_id or bounded_id(reply.id))


def read_chunk(data: bytes) -> Chunk:
    """One event of a streamed answer. Raises UpstreamBroken for malformed JSON and for an error object."""
    return AnswerReader().read(data)


class AnswerReader:
    """Reads the events of one streamed answer and knows whether it is whole. choices: how many were asked for."""

    def __init__(self, provider_request_id: str | None = None, *, choices: int = 1) -> None:
        self._provider_request_id = provider_request_id
        self._choices = choices
        self._open: set[int] = set()
        self._finished: set[int] = set()
        self._told_all = False

    @property
    def ended(self) -> bool:
        """Whether an event said that it was the last; here [DONE] does, which is no event."""
        return False

    @property
    def finished(self) -> bool:
        """Whether every choice that began has its finish_reason, and at least one began."""
        return bool(self._finished) and not self._open

    @property
    def whole(self) -> bool:
        """Whether nothing that matters can be missing, even if the provider never says [DONE]."""
        return self.finished and self._told_all

    def require_finished(self) -> None:
        """Check an answer that said [DONE]. Raises UpstreamBroken."""
        if not self.finished:
            raise UpstreamBroken("The provider said [DONE] before every choice was finished.")

    def require_whole(self) -> None:
        """Check an answer that ended without [DONE]. Raises UpstreamBroken."""
        if not self.whole:
            raise UpstreamBroken("The provider ended the stream before [DONE].")

    def missing(self) -> Chunk | None:
        """None: what callers wait for at the end of this wire is no event."""
        return None

    def read(self, data: bytes, *, more: bool = False) -> Chunk:
        """The event as a chunk. more: as the chunk says it. Raises UpstreamBroken."""
        try:
            event = _EVENT.decode(data)
        except UNREADABLE as error:
            raise UpstreamBroken("The provider sent an event that is not a chunk of an answer.") from error
        if event.error:
            raise UpstreamBroken("The provider reported an error inside a stream.")
        content = final = False
        for choice in event.choices or ():
            content = self._follow(choice) or content
        usage = None if event.usage is None else read_usage(event.usage)
        if usage is not None:
            # Usage that comes earlier is a running count, even where no more choices are in its event; and providers
            # that answer one choice after the other have finished all that began before the last has begun.
            final = self.finished and len(self._finished) >= self._choices
            self._told_all = self._told_all or final
        if self._provider_request_id is None:
            self._provider_request_id = bounded_id(event.id)
        return Chunk(
            # Data of several lines must not reach the caller's stream as such; in JSON a line end is a space.
            data.replace(b"\n", b" ") if b"\n" in data else data,
            usage,
            content,
            usage_only=not event.choices and event.usage is not None,
            provider_request_id=self._provider_request_id,
            final=final,
            more=more,
        )

    def _follow(self, choice: _Choice) -> bool:
        if choice.finish_reason:  # some write "" where nothing is finished
            self._open.discard(choice.index)
            self._finished.add(choice.index)
            return True
        if choice.index not in self._finished:
            self._open.add(choice.index)
        for name, given in (choice.delta or {}).items():
            if name != "role" and bytes(given) not in _NOTHING_GIVEN:
                return True
        return bool(choice.text)


def read_usage(usage: object, *, is_input_only: bool = False) -> Usage | None:
    """Disjoint components from OpenAI's overlapping ones, or None where the totals cannot be used.

    prompt_tokens includes what was cached, cache writes, audio and images; completion_tokens includes reasoning
    and audio. Details that do not fit into their total are dropped: all of it is then plain input or output.
    Where total_tokens exceeds both, the rest is output: xAI and Gemini report reasoning there and nowhere else.
    `components`, where there are any, are the translator's, who has counted from the provider's own usage.
    is_input_only: nobody says how long an answer was where there is none, and the total is all input.
    """
    if not isinstance(usage, dict):
        return None
    if usage.get("components") and (counted := read_components(usage["components"])) is not None:
        return counted
    prompt, completion = read_count(usage.get("prompt_tokens")), read_count(usage.get("completion_tokens"))
    if is_input_only:  # all of it went in, though some tell no more than the total
        known = [count for count in (prompt, read_count(usage.get("total_tokens"))) if count is not None]
        prompt, completion = max(known, default=None), 0
    if prompt is None or completion is None:
        return None
    completion = max(completion, (read_count(usage.get("total_tokens")) or 0) - prompt)
    return Usage(
        {
            **_split(prompt, Component.INPUT, _INPUTS, usage.get("prompt_tokens_details")),
            **_split(completion, Component.OUTPUT, _OUTPUTS, usage.get("completion_tokens_details")),
        }
    )


def read_refusal(
    target: Target, status: int, *, body: bytes, retry_after_seconds: float | None = None, credential: str | None = None
) -> UpstreamError:
    """The error that an answer with another status than 200 means; the credential is struck from what it repeats."""
    if status == _BUSY:
        return UpstreamBusy(target.name, retry_after_seconds)
    if status not in _REFUSALS:
        return UpstreamFailed(target.name, status, retry_after_seconds)
    try:
        said = _REFUSAL.decode(body)
    except UNREADABLE:
        said = _RefusalBody()
    refusal = said.error if isinstance(said.error, _Refusal) else _Refusal(message=said.error or said.message)
    message, param, code = (_text(each, credential) for each in (refusal.message, refusal.param, refusal.code))
    return UpstreamRefused(
        message or f"The target `{target.name}` refused the request with status {status}.",
        status=status,
        param=param,
        code=code,
    )


def read_retry_after(headers: Mapping[str, str], now: datetime) -> float | None:
    """Seconds to wait, from retry-after-ms or Retry-After (seconds or an HTTP date); None where neither is usable.

    headers: names in lower case. No more than a day, whatever it says.
    """
    for name, unit_seconds in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) * unit_seconds
        except ValueError:
            continue
        if math.isfinite(seconds) and seconds >= 0:
            return min(seconds, _RETRY_AFTER_SECONDS_MAX)
    try:
        seconds = (parsedate_to_datetime(headers.get("retry-after", "")) - now).total_seconds()
    except (ValueError, TypeError):  # no date at all, or one without a zone
        return None
    return min(max(0.0, seconds), _RETRY_AFTER_SECONDS_MAX)


def bounded_id(value: object) -> str | None:
    """The provider's id for a request, if it is one that can be kept."""
    return value[:_ID_CHARACTERS_MAX] if isinstance(value, str) and value.isprintable() and value else None


def _members(raw: Raw | None) -> dict[str, Raw]:
    try:
        return {} if raw is None else _MEMBERS.decode(raw)
    except UNREADABLE:  # null, or something a provider would refuse
        return {}


def read_components(told: object) -> Usage | None:
    """Usage that is split into our components already, or None where it is not."""
    if not isinstance(told, dict) or not told.keys() <= _COMPONENTS:
        return None
    counts = {Component(name): read_count(count) for name, count in told.items()}
    known = {part: count for part, count in counts.items() if count is not None}
    return Usage(known) if len(known) == len(counts) else None


def read_count(value: object) -> int | None:
    """A number of tokens, if it is one."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _split(total: int, rest: Component, parts: Mapping[Component, str], details: object) -> dict[Component, int]:
    whole = {rest: total}
    if not isinstance(details, dict):
        return whole
    counts = {part: read_count(0 if details.get(name) is None else details[name]) for part, name in parts.items()}
    known = {part: count for part, count in counts.items() if count is not None}
    if len(known) < len(counts) or sum(known.values()) > total:
        return whole
    return {rest: total - sum(known.values()), **{part: count for part, count in known.items() if count}}


def _text(value: object, credential: str | None) -> str | None:
    if not isinstance(value, str) or not value:
        return None
    return value.replace(credential, "[credential]") if credential else value
