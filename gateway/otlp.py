"""Spans to a collector, by OTLP over HTTP, from a thread of their own. Imported only where a collector is configured.

Losing the collector costs spans and says so, in a counter and once in the log; never a turn, and never more memory
than the queue.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from urllib.parse import urlsplit

import requests
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

from gateway.telemetry import Kind, Span

_TURNS_MAX = 2_000  # that wait: some 6 MiB
_BATCH_TURNS = 100
_GATHERED_SECONDS = 0.5
_SEND_SECONDS = 5.0
_LAST_WORDS_SECONDS = 2.0
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)

_log = logging.getLogger("penstock.otlp")


class Otlp:
    """The turns whose spans wait to be sent. At most 2,000 wait; further ones are dropped.

    told: hears how many turns were `sent`, `failed` or were `dropped`, from whichever thread knows.
    """

    def __init__(self, exporter: SpanExporter, *, process: str, told: Callable[[str, int], None]) -> None:
        self._exporter = exporter
        self._told = told
        self._scope = InstrumentationScope("penstock", version("penstock"))
        attributes = {
            "service.name": "penstock",
            "service.version": version("penstock"),
            "service.instance.id": process,
        }
        self._resource = Resource(attributes)
        self._waiting: deque[Sequence[Span]] = deque()
        self._something = threading.Event()
        self._ending = False
        self._delivers = True
        self._sender = threading.Thread(target=self._send_on, name="otlp", daemon=True)

    @classmethod
    def to(cls, endpoint: str, headers: Mapping[str, str], *, process: str, told: Callable[[str, int], None]) -> "Otlp":
        """One that sends to the collector at this address, to `/v1/traces` where it has no path, with these headers."""
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # it says every failure, several times
        session = requests.Session()
        session.trust_env = False  # neither proxies nor passwords come from the environment
        to = endpoint if urlsplit(endpoint).path.strip("/") else f"{endpoint.rstrip('/')}/v1/traces"
        exporter = OTLPSpanExporter(
            to, headers=dict(headers), timeout=_SEND_SECONDS, compression=Compression.Gzip, session=session
        )
        return cls(exporter, process=process, told=told)

    def start(self) -> None:
        """Begin to send."""
        self._sender.start()

    def stop(self) -> None:
        """Send what waits, as far as the collector takes it within two seconds."""
        self._ending = True
        self._something.set()
        self._sender.join(_LAST_WORDS_SECONDS)
        self._exporter.shutdown()

    def add(self, spans: Sequence[Span]) -> None:
        """A turn's spans; never waits and never fails."""
        if len(self._waiting) >= _TURNS_MAX:
            self._told("dropped", 1)
            return
        self._waiting.append(spans)
        if not self._something.is_set():
            self._something.set()

    def _send_on(self) -> None:
        while not (self._ending and not self._waiting):
            self._something.wait()
            if not self._ending:
                time.sleep(_GATHERED_SECONDS)
            self._something.clear()
            while self._waiting:
                self._send([self._waiting.popleft() for _ in range(min(_BATCH_TURNS, len(self._waiting)))])

    def _send(self, turns: Sequence[Sequence[Span]]) -> None:
        delivered = False
        try:
            spans = [self._readable(span) for turn in turns for span in turn]
            delivered = self._exporter.export(spans) is SpanExportResult.SUCCESS
        except (OSError, ValueError, TypeError) as failure:
            _log.warning("spans could not be written: %s", type(failure).__name__)
        self._told("sent" if delivered else "failed", len(turns))
        if delivered is not self._delivers:
            self._delivers = delivered
            _log.warning("spans are delivered again" if delivered else "the collector takes no spans; they are dropped")

    def _readable(self, span: Span) -> ReadableSpan:
        parent = None
        if span.parent_id is not None:
            parent = SpanContext(span.trace_id, span.parent_id, is_remote=span.is_remote, trace_flags=_SAMPLED)
        return ReadableSpan(
            span.name,
            context=SpanContext(span.trace_id, span.span_id, is_remote=False, trace_flags=_SAMPLED),
            parent=parent,
            resource=self._resource,
            attributes=span.attributes,
            kind=_KINDS[span.kind],
            status=Status(StatusCode.UNSET if span.error is None else StatusCode.ERROR),
            start_time=span.began,
            end_time=span.ended,
            instrumentation_scope=self._scope,
        )


_KINDS: Mapping[Kind, SpanKind] = {"server": SpanKind.SERVER, "client": SpanKind.CLIENT, "internal": SpanKind.INTERNAL}
