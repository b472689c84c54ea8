"""Our side of Anthropic's wire: what we send, and the few facts we read from what comes back. No I/O."""

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct

from kernel import Chunk, Component, ModelReply, ModelRequest, Operation, Target, Usage
from router.catalogue import Provider
from router.errors import UpstreamBroken
from router.openai import UNREADABLE, bounded_id, read_components, read_count

VERSION, BETA = "anthropic-version", "anthropic-beta"
_CONTENT = frozenset({"content_block_delta", "message_delta", "message_stop"})
_EMPTY_AT_FIRST = frozenset({"text", "thinking"})


class _Message(Struct, gc=False):
    id: object = None
    usage: object = None


class _Block(Struct, gc=False):
    type: str = ""


class _Delta(Struct, gc=False):
    stop_reason: str | None = None


class _Event(Struct, gc=False):
    type: str
    message: _Message | None = None
    content_block: _Block | None = None
    delta: _Delta | None = None
    usage: object = None


class _Reply(Struct, gc=False):
    type: str = ""
    id: object = None
    usage: object = None
    input_tokens: object = None


_EVENT = msgspec.json.Decoder(_Event)
_REPLY = msgspec.json.Decoder(_Reply)


def encode(request: ModelRequest, target: Target, provider: Provider) -> bytes:
    """The body to send: the caller's own, with model and output limit replaced; a count has no limit.

    Anthropic takes no tier for leave to use a dearer one.
    """
    body: dict[str, object] = dict(request.fields)
    body.pop("max_tokens", None)
    body["model"] = target.upstream_model
    if request.operation is Operation.MESSAGES:
        limit = request.output_tokens_max
        body["max_tokens"] = target.output_tokens_max if limit is None else limit
        if provider.dialect == "anthropic":
            body["service_tier"] = "standard_only"
    return msgspec.json.encode(body)


def headers_for(request: ModelRequest, provider: Provider) -> Mapping[str, str]:
    """What of the caller's headers this provider gets: the version, and such flags as it declares."""
    told = dict(request.headers)
    flags = [flag for flag in _flags(told.pop(BETA, "")) if flag in provider.betas]
    return {**told, BETA: ",".join(flags)} if flags else told


def dropped(request: ModelRequest, provider: Provider) -> tuple[str, ...]:
    """The flags that the caller sent and this provider does not get."""
    return tuple(flag for flag in _flags(request.headers.get(BETA, "")) if flag not in provider.betas)


def _flags(said: str) -> list[str]:
    return [flag for each in said.split(",") if (flag := each.strip())]


def read_reply(body: bytes, provider_request_id: str | None, operation: Operation) -> ModelReply:
    """A whole answer. Raises UpstreamBroken for anything but a JSON object without an error in it."""
    try:
        reply = _REPLY.decode(body)
    except UNREADABLE as error:
        raise UpstreamBroken("The provider's answer is not a JSON object.") from error
    if reply.type == "error":
        raise UpstreamBroken("The provider reported an error inside an answer.")
    if operation is Operation.COUNT_TOKENS:
        return ModelReply(body, Usage({}), provider_request_id)  # counting is free
    usage = read_usage(reply.usage) if isinstance(reply.usage, dict) else None
    return ModelReply(body, usage, provider_request_id or bounded_id(reply.id))


class AnswerReader:
    """Reads the events of one streamed answer and knows whether it is whole.

    Usage comes in pieces, each of which says anew what it knows: first what went in, at the end what came out.
    """

    def __init__(self, provider_request_id: str | None = None) -> None:
        self._provider_request_id = provider_request_id
        self._told: dict[str, Any] = {}
        self.ended = self.whole = False

    def require_finished(self) -> None:
        """Check an answer that said [DONE], which is nothing that this wire knows. Raises UpstreamBroken."""
        raise UpstreamBroken("The provider ended the stream in another provider's words.")

    def require_whole(self) -> None:
        """Check an answer that ended. Raises UpstreamBroken."""
        if not self.whole:
            raise UpstreamBroken("The provider ended the stream before message_stop.")

    def missing(self) -> Chunk | None:
        """What a whole answer should have ended with and did not; callers wait for it."""
        return None if self.ended else self.read(b'{"type":"message_stop"}')

    def read(self, data: bytes, *, more: bool = False) -> Chunk:
        """The event as a chunk. more: as the chunk says it. Raises UpstreamBroken."""
        try:
            event = _EVENT.decode(data)
        except UNREADABLE as error:
            raise UpstreamBroken("The provider sent an event that is not a part of a message.") from error
        if event.type == "error" or not event.type.isidentifier():
            raise UpstreamBroken("The provider reported an error inside a stream.")
        told = event.usage
        if event.message is not None:
            told = event.message.usage
            self._provider_request_id = self._provider_request_id or bounded_id(event.message.id)
        self.whole = self.whole or (event.delta is not None and event.delta.stop_reason is not None)
        self.ended = event.type == "message_stop"
        if isinstance(told, dict):
            # Counts only grow: where a later one is 0, its sender does not know it.
            self._told.update((name, value) for name, value in told.items() if value or name not in self._told)
        begins = event.content_block is not None and event.content_block.type not in _EMPTY_AT_FIRST
        return Chunk(
            data.replace(b"\n", b" ") if b"\n" in data else data,
            # A message's start tells what went in and nothing of what will come out: no count that could be the last.
            read_usage(self._told) if isinstance(told, dict) and event.message is None else None,
            begins or event.type in _CONTENT,
            provider_request_id=self._provider_request_id,
            final=self.whole,
            more=more,
            event=event.type,
        )


def read_usage(told: Mapping[str, Any]) -> Usage | None:
    """Disjoint components from Anthropic's, or None where the totals cannot be used.

    input_tokens leaves out what was cached. Writes to the cache are split by their lifetime; where the split and the
    total differ, the greater counts.
    """
    if told.get("components") and (counted := read_components(told["components"])) is not None:
        return counted
    into, out = read_count(told.get("input_tokens")), read_count(told.get("output_tokens"))
    read, written = (_optional(told, f"cache_{each}_input_tokens") for each in ("read", "creation"))
    if into is None or out is None or read is None or written is None:
        return None
    split = told.get("cache_creation")
    short, long = (_part(split, f"ephemeral_{each}_input_tokens") for each in ("5m", "1h"))
    written = max(written, short + long)
    thought = _part(told.get("output_tokens_details"), "thinking_tokens", out)
    counts = {
        Component.INPUT: into,
        Component.CACHED_INPUT: read,
        Component.CACHE_WRITE: written - long,
        Component.CACHE_WRITE_1H: long,
        Component.OUTPUT: out - thought,
        Component.REASONING: thought,
    }
    return Usage({part: count for part, count in counts.items() if count or part in _ALWAYS})


_ALWAYS = frozenset({Component.INPUT, Component.OUTPUT})


def _optional(told: Mapping[str, Any], name: str) -> int | None:
    """A count that may be missing or null, which is 0; None where it is none."""
    return 0 if told.get(name) is None else read_count(told[name])


def _part(details: object, name: str, whole: int | None = None) -> int:
    """How much of the whole is this part; nothing where that cannot be."""
    count = read_count(details.get(name)) if isinstance(details, dict) else None
    return 0 if count is None or (whole is not None and count > whole) else count
