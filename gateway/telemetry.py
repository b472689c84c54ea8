"""Traces of turns, made after each from what its record holds: a turn that is not traced costs a look at one header.

Here is what a turn's spans are; otlp.py sends them. Never content, and no name that a caller made up.
"""

import asyncio
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from random import Random
from types import MappingProxyType
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

from msgspec import Struct

from cost import Attempt
from gateway.trace import Trace
from kernel import Clock, Component, Operation, PlatformError, Usage
from router import Catalogue, Provider

Value = str | int | float | bool
Kind = Literal["server", "client", "internal"]

_PARENT = re.compile(r"(?!ff)([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_CODE = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_SAMPLED = 1
_SERVER_FAULT = 500
_NOT_FAILED = frozenset({None, "unpriced", "over_hold", "no_usage"})
_OPERATIONS = MappingProxyType(
    {Operation.MESSAGES: "chat", Operation.COMPLETIONS: "text_completion"}  # the others have our own words
)
_PROVIDERS = MappingProxyType(
    {"gemini": "gcp.gemini", "vertex_ai": "gcp.vertex_ai", "azure": "azure.ai.openai", "bedrock": "aws.bedrock"}
)
_COUNTS = MappingProxyType(
    {
        "gen_ai.usage.cache_read.input_tokens": (Component.CACHED_INPUT,),
        "gen_ai.usage.cache_write.input_tokens": (Component.CACHE_WRITE, Component.CACHE_WRITE_1H),
        "gen_ai.usage.reasoning.output_tokens": (Component.REASONING,),
    }
)


class Span(Struct, frozen=True):
    """A piece of a turn. began, ended: nanoseconds since 1970. error: what OpenTelemetry calls its type.

    parent_id: None for one that begins a trace; is_remote: the parent is the caller's.
    """

    name: str
    trace_id: int
    span_id: int
    parent_id: int | None
    began: int
    ended: int
    kind: Kind = "internal"
    attributes: Mapping[str, Value] = {}
    error: str | None = None
    is_remote: bool = False


@dataclass(frozen=True, slots=True)
class Parent:
    """What a caller says of the trace that its request is part of."""

    trace_id: int
    span_id: int
    is_sampled: bool

    @classmethod
    def read(cls, header: str) -> "Parent | None":
        """The W3C `traceparent`, or None for one that is malformed. Source: w3.org/TR/trace-context."""
        found = _PARENT.fullmatch(header)
        if found is None or (found[1] == "00" and found[5]):
            return None
        trace_id, span_id = int(found[2], 16), int(found[3], 16)
        return cls(trace_id, span_id, bool(int(found[4], 16) & _SAMPLED)) if trace_id and span_id else None


class Sink(Protocol):
    """Where spans go."""

    def start(self) -> None:
        """Begin to send."""
        ...

    def add(self, spans: Sequence[Span]) -> None:
        """A turn's spans; never waits and never fails."""
        ...

    def stop(self) -> None:
        """Send what waits, within seconds."""
        ...


class TelemetryUnusable(Exception):
    """Traces are wanted and cannot be made; the message names the cure."""


def otlp(endpoint: str, headers: Mapping[str, str], *, process: str, told: Callable[[str, int], None]) -> Sink:
    """A collector at this address. told: as Otlp has it. Raises TelemetryUnusable."""
    try:
        # OpenTelemetry is an extra, and takes a third of a second to import.
        from gateway.otlp import Otlp  # noqa: PLC0415
    except ImportError as missing:
        raise TelemetryUnusable(
            "otlp_endpoint (PENSTOCK_OTLP_ENDPOINT) needs OpenTelemetry: pip install 'penstock[telemetry]'"
        ) from missing
    return Otlp.to(endpoint, headers, process=process, told=told)


class Telemetry:
    """Decides which turns are traced, and hands on their spans once their books are durable.

    make_sink: called by `start`; None: nothing is traced. ratio: the share of turns whose callers do not say; those who
    send `traceparent` decide by its flag. dice: makes ids and draws the share.
    """

    def __init__(
        self,
        make_sink: Callable[[], Sink] | None,
        *,
        ratio: float,
        catalogue: Callable[[], Catalogue],
        clock: Clock,
        dice: Random,
    ) -> None:
        self._make_sink = make_sink
        self._sink: Sink | None = None
        self._ratio = ratio
        self._catalogue = catalogue
        self._clock = clock
        self._dice = dice

    def start(self) -> None:
        """Begin to trace, if anything is to be. Raises TelemetryUnusable."""
        if self._make_sink is not None:
            self._sink = self._make_sink()
            self._sink.start()

    async def close(self) -> None:
        """Send what waits; bounded, and nobody else waits for it."""
        if self._sink is not None:
            sink, self._sink = self._sink, None
            await asyncio.to_thread(sink.stop)

    def turn(
        self, trace: Trace, status: int, header: str | None, *, failure: PlatformError | None = None
    ) -> str | None:
        """A turn is over but for its books: the id of its trace in hexadecimal, None where it is not traced.

        header: its `traceparent`.
        """
        if self._sink is None:
            return None
        parent = None if header is None else Parent.read(header)
        if not (self._dice.random() < self._ratio if parent is None else parent.is_sampled):
            return None
        story = Story(
            trace=trace,
            status=status,
            failure=None if failure is None else type(failure).code,
            parent=parent,
            trace_id=self._dice.getrandbits(128) or 1 if parent is None else parent.trace_id,
            ended=self._clock.monotonic(),
            catalogue=self._catalogue(),
            new_id=lambda: self._dice.getrandbits(64) or 1,
        )
        durable = None if trace.turn is None else trace.turn.closing
        if durable is None or durable.done():
            self._tell(story)
        else:
            durable.add_done_callback(partial(self._tell, story))
        return f"{story.trace_id:032x}"

    def _tell(self, story: "Story", _durable: object = None) -> None:
        if self._sink is not None:
            now = self._clock.monotonic()
            self._sink.add(story.spans(now, self._clock.now().timestamp() - now))


@dataclass(frozen=True, slots=True)
class Story:
    """One turn that is traced, from its first byte to its books."""

    trace: Trace
    status: int
    failure: str | None
    parent: Parent | None
    trace_id: int
    ended: float
    catalogue: Catalogue
    new_id: Callable[[], int]

    def spans(self, settled: float, offset: float) -> list[Span]:
        """The turn, its beats, its attempts. settled: when its books were durable; offset: of wall time to the clock.

        A hold belongs to the turn, or to `do` where an attempt before it failed.
        """
        draw = partial(self._span, offset=offset)
        trace, turn = self.trace, self.trace.turn
        root = Span(
            self._name(),
            self.trace_id,
            self.new_id(),
            None if self.parent is None else self.parent.span_id,
            _ns(trace.started, offset),
            _ns(self.ended, offset),
            "server",
            dict(self._facts()),
            (self.failure or str(self.status)) if self.status >= _SERVER_FAULT else None,
            is_remote=self.parent is not None,
        )
        spans, at = [root], trace.started
        for beat in ("identify", "admit"):
            if beat in trace.milliseconds:
                began, at = at, at + trace.milliseconds[beat] / 1000
                spans.append(draw(beat, root, began, at))
        if turn is None:
            return [*spans, draw("admit", root, at, self.ended)] if "admit" not in trace.milliseconds else spans
        if not turn.attempts:
            return [*spans, draw("hold", root, at, self.ended)]
        first, last = turn.attempts[0], turn.attempts[-1]
        spans.append(draw("hold", root, at, first.began))
        do = draw("do", root, first.began, last.ended)
        spans.append(do)
        for attempt in turn.attempts:
            if attempt is not first:
                spans.append(draw("hold", do, at, attempt.began))
            spans.append(self._attempt(attempt, do, offset))
            at = attempt.ended
        spans.append(draw("settle", root, max(self.ended, at), settled))
        return spans

    def _span(self, name: str, parent: Span, began: float, ended: float, *, offset: float) -> Span:
        return Span(
            name, self.trace_id, self.new_id(), parent.span_id, _ns(began, offset), _ns(max(began, ended), offset)
        )

    def _attempt(self, attempt: Attempt, parent: Span, offset: float) -> Span:
        target, told = attempt.target, attempt.summary()
        reason = told["reason"]
        error = None if reason in _NOT_FAILED else reason if _CODE.fullmatch(reason) else "_OTHER"
        facts: dict[str, Value] = {
            "gen_ai.operation.name": self._operation(),
            "gen_ai.request.model": target.upstream_model,
            "gen_ai.request.max_tokens": attempt.output_tokens_max,
            "penstock.attempt": attempt.number,
            "penstock.target": target.name,
            "penstock.provider": target.provider,
            "penstock.held_nano_usd": attempt.held_nano_usd,
            "penstock.cost_nano_usd": attempt.cost_nano_usd,
            "penstock.estimated": attempt.is_estimated,
            "penstock.end": str(told["end"]),
            **_addressed(self.catalogue.providers.get(target.provider)),
            **_used(attempt.usage),
        }
        if attempt.provider_request_id is not None:
            facts["penstock.provider_request_id"] = attempt.provider_request_id
        if self.trace.is_stream and self.trace.answered is not None and error is None:
            facts["gen_ai.request.stream"] = True
            facts["gen_ai.response.time_to_first_chunk"] = round(self.trace.answered - attempt.began, 6)
        if error is not None:
            facts["error.type"] = error
        return Span(
            f"{facts['gen_ai.operation.name']} {target.upstream_model}",
            self.trace_id,
            self.new_id(),
            parent.span_id,
            _ns(attempt.began, offset),
            _ns(attempt.ended, offset),
            "client",
            facts,
            error,
        )

    def _operation(self) -> str:
        operation = self.trace.facts.get("operation", Operation.CHAT)
        return _OPERATIONS.get(operation, str(operation))

    def _name(self) -> str:
        known = self._requested()
        return self._operation() if known is None else f"{self._operation()} {known}"

    def _requested(self) -> str | None:
        """The name that was asked for; None for one that nobody declared, which may say anything."""
        requested = str(self.trace.facts.get("requested", ""))
        return requested if self.catalogue.knows(requested) else None

    def _facts(self) -> Iterator[tuple[str, Value]]:
        trace, turn, caller = self.trace, self.trace.turn, self.trace.caller
        asked, answered = self._requested(), turn.target.name if turn and turn.target else None
        told: dict[str, Any] = {
            "http.request.method": "POST",
            "http.response.status_code": self.status,
            "gen_ai.operation.name": self._operation(),
            "gen_ai.request.model": asked,
            "gen_ai.response.model": answered,
            "error.type": self.failure,
            "penstock.turn_id": trace.turn_id,
            "penstock.attempts": len(turn.attempts) if turn else 0,
            "penstock.cost_nano_usd": turn.cost_nano_usd if turn else 0,
        }
        if caller is not None:
            told |= {
                "penstock.key_id": caller.key_id,
                "penstock.app": caller.app,
                "penstock.department": caller.department,
                "penstock.use_case": caller.use_case,
                "penstock.data_class": caller.data_class.label,
            }
        return ((name, value) for name, value in told.items() if value is not None)


def _used(usage: Usage | None) -> Mapping[str, Value]:
    if usage is None:
        return {}
    counts: dict[str, Value] = {
        "gen_ai.usage.input_tokens": usage.input_tokens,
        "gen_ai.usage.output_tokens": usage.output_tokens,
    }
    for name, parts in _COUNTS.items():
        if count := sum(usage.tokens.get(part, 0) for part in parts):
            counts[name] = count
    return counts


def _addressed(provider: Provider | None) -> Mapping[str, Value]:
    """Who answers, and where; a provider that was withdrawn meanwhile is not told."""
    if provider is None:
        return {"gen_ai.provider.name": "_OTHER"}
    dialect = getattr(provider, "translate_as", None) or provider.dialect
    return {"gen_ai.provider.name": _PROVIDERS.get(dialect, dialect), **_server_of(provider.base_url)}


@lru_cache(1024)
def _server_of(base_url: str | None) -> Mapping[str, Value]:
    if base_url is None:
        return {}
    parts = urlsplit(base_url)
    return {
        "server.address": parts.hostname or "",
        "server.port": parts.port or (443 if parts.scheme == "https" else 80),
    }


def _ns(seconds: float, offset: float) -> int:
    return int((seconds + offset) * 1e9)
