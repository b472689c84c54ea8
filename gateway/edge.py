"""The data plane, in front of FastAPI, and the gate to both: nobody passes without a key.

One table (`ENDPOINTS`) says what there is and who may. What is not in it goes to the control plane under `/api`,
or is answered 404 to those who have a key and 401 to those who have none.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from enum import Enum
from functools import partial
from hmac import compare_digest
from http import HTTPStatus
from types import MappingProxyType
from typing import Any

import msgspec

from cost import Ledger, Turn
from gateway.asgi import AsgiApplication, hand_over
from gateway.chat import Chat
from gateway.doors import CHAT, COMPLETIONS, COUNT_TOKENS, EMBEDDINGS, MESSAGES, Door
from gateway.errors import (
    AppKeyRequired,
    CallerGone,
    InternalError,
    MethodNotAllowed,
    NotFound,
    ShuttingDown,
    error_headers,
    status_of,
)
from gateway.exchange import Connection, Exchange
from gateway.history import History
from gateway.listing import leaving_headers, model_facts
from gateway.metrics import Metrics
from gateway.telemetry import Telemetry
from gateway.trace import Trace
from governance import InvalidKey, Keys, Policy, RateLimited
from kernel import Caller, Clock, ModelRequest, Plan, PlatformError, Target, format_usd
from router import Catalogue, dropped

_log = logging.getLogger("penstock.edge")

TurnLog = Callable[[str, str, Mapping[str, object]], None]

# Without Redis limits are tighter and everything else goes on.
_GOOD_STATES = frozenset({"ok", "away"})
_MODEL: Mapping[str, object] = MappingProxyType(
    {"object": "model", "created": 0, "owned_by": "penstock", "type": "model", "created_at": "1970-01-01T00:00:00Z"}
)
_EVENTS = [("content-type", "text/event-stream; charset=utf-8"), ("cache-control", "no-cache")]


class Access(Enum):
    """Who may call an endpoint at all."""

    OPEN = "anybody"
    KEY = "any valid key"
    APP = "an app's key"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A row of the table: how it is called, by whom, and what answers. A path that ends in `/` takes an id.

    door: whose wire it speaks, in errors at least. asks_model: it is a turn, and passes the five beats.
    """

    method: str
    path: str
    access: Access
    answer: Callable[[Exchange], Awaitable[None]]
    door: Door = CHAT
    asks_model: bool = False


@dataclass(frozen=True, slots=True)
class EdgeLimits:
    """What the edge bounds by itself."""

    body_bytes_max: int
    body_seconds: float
    settle_seconds: float
    budget_exhausted_status: int
    metrics_token: str | None = None


class Edge:
    """What answers every request: the table above, then FastAPI for the control plane."""

    def __init__(  # noqa: PLR0913 - the edge is where everything meets; each is handed over once, by name
        self,
        *,
        chat: Chat,
        keys: Keys,
        policy: Policy,
        catalogue: Callable[[], Catalogue],
        ledger: Ledger,
        history: History,
        metrics: Metrics,
        telemetry: Telemetry,
        control: AsgiApplication,
        describe: Callable[[Collection[Endpoint]], object],
        ready: Callable[[], Awaitable[dict[str, str]]],
        clock: Clock,
        limits: EdgeLimits,
        log: TurnLog,
    ) -> None:
        self.chat = chat
        self.keys = keys
        self.policy = policy
        self.catalogue = catalogue
        self.ledger = ledger
        self.history = history
        self.metrics = metrics
        self.telemetry = telemetry
        self.control = control
        self.describe = describe
        self.ready = ready
        self.clock = clock
        self.limits = limits
        self.log = log
        self.endpoints = (
            Endpoint("GET", "/healthz", Access.OPEN, self.healthz),
            Endpoint("GET", "/readyz", Access.OPEN, self.readyz),
            Endpoint("GET", "/metrics", Access.OPEN, self.metrics_page),
            Endpoint("GET", "/api/openapi.json", Access.KEY, self.openapi),
            Endpoint("GET", "/v1/models", Access.APP, self.models),
            Endpoint("GET", "/v1/requests/", Access.KEY, self.request),
            *(
                Endpoint("POST", path, Access.APP, self.turn, door, asks_model=True)
                for path, door in (
                    ("/v1/chat/completions", CHAT),
                    ("/v1/completions", COMPLETIONS),
                    ("/v1/embeddings", EMBEDDINGS),
                    ("/v1/messages", MESSAGES),
                    ("/v1/messages/count_tokens", COUNT_TOKENS),
                )
            ),
        )
        self._rows = MappingProxyType({row.path: row for row in self.endpoints})
        self._unknown_keys = RefusalMeter(clock)
        self.stopping: Callable[[], bool] = lambda: False
        self._open: set[Exchange] = set()
        self._settling: dict[str, asyncio.Future[Any]] = {}

    async def __call__(self, connection: Connection) -> None:
        """One exchange: identify, find the row, answer; every error becomes OpenAI's error object."""
        path = connection.path
        row = self._rows.get(path) or self._rows.get(path[: path.rfind("/") + 1])
        x = Exchange(connection, Trace(self.clock), CHAT if row is None else row.door)
        try:
            await self._answer(x, row)
        except PlatformError as refusal:
            told = _without_frames(refusal)
            if x.caller is None or (row is not None and row.access is Access.APP):
                told = await self._record_refusal(x, refusal)
                seconds = self.clock.monotonic() - x.trace.started
                self.metrics.turn(x.trace, self._status(told), seconds, self.catalogue(), failure=told)
            await self._refuse(x, told)
            await x.finish()

    async def _answer(self, x: Exchange, row: Endpoint | None) -> None:
        if row is None or row.access is not Access.OPEN:
            x.caller = x.trace.caller = self._identify(x)
            x.trace.beat("identify")
        if row is None:
            await self._beyond(x)
            return
        if x.method != row.method:
            raise MethodNotAllowed(f"{row.path} is called with {row.method}.", row.method)
        if row.access is Access.APP and x.caller is not None and x.caller.app is None:
            raise AppKeyRequired("This key administers; use an app's key for models (POST /api/keys makes one).")
        await row.answer(x)

    def _identify(self, x: Exchange) -> Caller:
        scheme, _, presented = x.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not presented:
            presented = x.headers.get("x-api-key", "")
        try:
            return self.keys.identify(presented.strip())
        except InvalidKey as unknown:
            x.trace.facts["reason"] = unknown.reason
            raise

    async def _beyond(self, x: Exchange) -> None:
        if not x.path.startswith("/api/"):
            raise NotFound(f"There is no endpoint {x.method} {x.path[:128]}; docs/guides list what there is.")
        facts = {"penstock.caller": x.caller, "penstock.request_id": x.trace.turn_id}
        await hand_over(x.connection, self.control, facts, headers={"x-request-id": x.trace.turn_id})

    # The open rows

    async def healthz(self, x: Exchange) -> None:
        """Alive: this process answers."""
        await self._reply(x, {"status": "ok"})

    async def readyz(self, x: Exchange) -> None:
        """Ready: 200 with each dependency's state, or 503 naming what is missing."""
        states = await self.ready()
        if self.stopping():
            states["process"] = "stopping"
        good = all(state in _GOOD_STATES for state in states.values())
        await self._reply(x, states, HTTPStatus.OK if good else HTTPStatus.SERVICE_UNAVAILABLE)

    async def metrics_page(self, x: Exchange) -> None:
        """Prometheus' text format; for everybody, unless a token is set."""
        token = self.limits.metrics_token
        given = x.headers.get("authorization", "").encode()  # text beyond ASCII cannot be compared as such
        if token is not None and not compare_digest(given, f"Bearer {token}".encode()):
            raise InvalidKey("unknown")
        kind, page = await self.metrics.page()
        x.start(HTTPStatus.OK, [("content-type", kind)])
        await x.write(page)
        await x.finish()

    # What has a caller

    async def models(self, x: Exchange) -> None:
        """The names this caller may use, in a shape that is OpenAI's list and Anthropic's at once."""
        assert x.caller is not None
        catalogue, today, knows = self.catalogue(), self.clock.now().date(), partial(self.policy.visible, x.caller)
        names = [name for name in catalogue.names() if self._usable(x.caller, catalogue.reachable(name, today))]
        facts = [model_facts(catalogue, name, today=today, knows=knows) for name in names]
        rows = [{**_MODEL, "id": name, "display_name": name, **told} for name, told in zip(names, facts, strict=True)]
        ends = {"first_id": names[0], "last_id": names[-1]} if names else {"first_id": None, "last_id": None}
        await self._reply(x, {"object": "list", "data": rows, "has_more": False, **ends})

    def _usable(self, caller: Caller, plan: Plan) -> bool:
        """Whether the caller may use something of the plan for at least one of its use cases."""
        uses = (caller.acting_for(use_case) for use_case in caller.use_cases)
        return any(ruling.allowed for use in uses for ruling in self.policy.judge(use, plan).rulings)

    async def openapi(self, x: Exchange) -> None:
        """All that is answered here, described for tools; in a thread, since the first time takes a while."""
        await self._reply(x, await asyncio.to_thread(self.describe, self.endpoints))

    async def request(self, x: Exchange) -> None:
        """What happened to one request of this caller's app."""
        assert x.caller is not None
        turn_id = x.path.rpartition("/")[2]
        if turn_id in self._settling and self.ledger.is_writing:  # answered a moment ago; its books are a commit behind
            await asyncio.wait({self._settling[turn_id]}, timeout=self.limits.settle_seconds)
        await self._reply(x, await self.history.explain(x.caller, turn_id))

    async def turn(self, x: Exchange) -> None:
        """A turn at any door, whole or streamed; it ends settled, whoever ends it."""
        self._open.add(x)
        try:
            failure = await self._turn(x)
            self._release(x, failure)  # whoever reads slowly from here on keeps nobody else from anything
            if failure is not None:
                await self._refuse(x, failure)
            self._settle(x)
            await x.finish()
        finally:
            self._open.discard(x)

    async def _turn(self, x: Exchange) -> PlatformError | None:
        """Do what was asked; what went wrong, if anything did and as the trail has it, is still to be told."""
        failure: PlatformError
        try:
            self._require_running()
            identified = self.keys.mark()
            body = await x.body(bytes_max=self.limits.body_bytes_max, seconds=self.limits.body_seconds)
            request = x.door.read(body, x.headers)
            with x.turn_running():
                if not self.keys.is_unchanged(identified):
                    # A key may have been revoked while the body came; from here on its turns are found.
                    x.caller = x.trace.caller = self._identify(x)
                assert x.caller is not None
                await (self._stream if request.stream else self._whole)(x, x.caller, request)
        except PlatformError as refusal:
            failure = _without_frames(refusal)
        except asyncio.CancelledError:  # by uvicorn at the end of the drain, or by `end_turns_of`
            failure = x.ended_by or ShuttingDown(
                "This process stopped before the answer was complete.", retry_after_seconds=1
            )
        except Exception:  # noqa: BLE001 - the edge: whatever reaches it is a bug of ours
            _log.exception("turn %s failed by a bug of ours", x.trace.turn_id)
            failure = InternalError(f"Something went wrong on our side; quote {x.trace.turn_id}.")
        else:
            return None
        return await self._record_refusal(x, failure) if x.trace.turn is None else failure

    def end_turns_of(self, key_ids: Collection[str]) -> None:
        """End the open turns of keys that were just revoked, streams with an error event."""
        for x in [x for x in self._open if x.caller is not None and x.caller.key_id in key_ids]:
            x.end(InvalidKey("revoked"))

    def _require_running(self) -> None:
        if self.stopping():
            raise ShuttingDown("This process is stopping; send the request again.", retry_after_seconds=1)

    async def _whole(self, x: Exchange, caller: Caller, request: ModelRequest) -> None:
        reply = await self.chat.complete(caller, request, x.trace)
        await x.reply(HTTPStatus.OK, reply.body, self._turn_headers(x, request))

    async def _stream(self, x: Exchange, caller: Caller, request: ModelRequest) -> None:
        event = x.door.event
        async with aclosing(self.chat.stream(caller, request, x.trace)) as chunks:
            async for chunk in chunks:
                if not x.status:
                    x.start(HTTPStatus.OK, [*_EVENTS, *self._turn_headers(x, request)])
                await x.write(event(chunk, request, x.trace.turn), follows=chunk.more)
        if not x.status:
            x.start(HTTPStatus.OK, [*_EVENTS, *self._turn_headers(x, request)])
        await x.write(x.door.ending)

    def _turn_headers(self, x: Exchange, request: ModelRequest) -> list[tuple[str, str]]:
        turn, permit = x.trace.turn, x.trace.permit
        assert turn is not None
        assert permit is not None
        attempt, now = turn.attempts[-1], self.clock.monotonic()
        x.trace.answered, x.trace.is_stream = now, request.stream
        headers = [
            ("x-penstock-model", attempt.target.name),
            ("x-penstock-provider", attempt.target.provider),
            ("x-penstock-attempts", str(len(turn.attempts))),
            ("openai-processing-ms", str(int((now - x.trace.started) * 1000))),
            *permit.headers().items(),
        ]
        if not request.stream:
            headers.append(("x-penstock-cost-usd", format_usd(turn.cost_nano_usd)))
        if x.door.id_header is not None:
            headers.append((x.door.id_header, x.trace.turn_id))
        if attempt.was_lowered:
            headers.append(("x-penstock-max-output-tokens", str(attempt.output_tokens_max)))
        if request.headers and (dropped := self._dropped(attempt.target, request)):
            headers.append(("x-penstock-dropped", f"anthropic-beta: {','.join(dropped)}"))
        if x.trace.observed:
            headers.append(("x-penstock-observed", ",".join(x.trace.observed)))
        headers += leaving_headers(self.catalogue(), attempt.target.name)
        return headers

    def _dropped(self, target: Target, request: ModelRequest) -> tuple[str, ...]:
        """What the caller asked of the provider by a flag, and the provider was not told."""
        provider = self.catalogue().providers.get(target.provider)
        return () if provider is None else dropped(request, provider)

    # Endings

    def _release(self, x: Exchange, failure: PlatformError | None) -> None:
        """The turn is over but for its last bytes: give back its permit, count it, trace it and log it."""
        trace = x.trace
        if trace.permit is not None:
            tokens = _tokens_used(trace.turn)
            if tokens is not None:
                trace.permit.settle_tokens(tokens)
            trace.permit.release()
        status = self._status(failure) if failure else x.status or CallerGone.status
        seconds = self.clock.monotonic() - trace.started
        self.metrics.turn(trace, status, seconds, self.catalogue(), failure=failure)
        line = _turn_line(x, status, failure)
        traced = self.telemetry.turn(trace, status, x.headers.get("traceparent"), failure=failure)
        if traced is not None:
            line["trace"] = traced
        self.log("penstock.turn", "turn", line)

    def _settle(self, x: Exchange) -> None:
        """Let the books be durable before this connection carries another request; bounded, since they retry."""
        turn = x.trace.turn
        durable = None if turn is None else turn.closing
        if durable is None or durable.done():
            return
        turn_id = x.trace.turn_id
        self._settling[turn_id] = durable
        durable.add_done_callback(lambda _: self._settling.pop(turn_id))
        if self.ledger.is_writing:  # with a store that is away, the next request must not wait for it twice
            x.connection.rest_until(durable, self.limits.settle_seconds)

    async def _record_refusal(self, x: Exchange, refusal: PlatformError) -> PlatformError:
        """Put a refusal in the trail. Where the trail cannot be written, that is the refusal, but for unknown keys.

        Of those only so many a minute are recorded one by one: whoever has no key must not fill the trail.
        """
        if x.caller is None:
            unrecorded = self._unknown_keys.take()
            if unrecorded is None:
                return refusal
            x.trace.facts["unrecorded_before"] = unrecorded
        x.trace.facts |= {"status": self._status(refusal), "code": refusal.code}
        try:
            await self.ledger.record(x.trace.admission("turn.refused"))
        except PlatformError as unavailable:
            return refusal if x.caller is None else unavailable
        return refusal

    def _status(self, error: PlatformError) -> int:
        return status_of(error, self.limits.budget_exhausted_status)

    async def _refuse(self, x: Exchange, refusal: PlatformError) -> None:
        if x.status:
            await x.write(x.door.broken % x.door.error(refusal, x.trace.turn_id))
            return
        headers = dict(error_headers(refusal))
        if isinstance(refusal, RateLimited):
            headers |= refusal.headers
        elif x.trace.permit is not None:
            headers |= x.trace.permit.headers()
        if x.door.id_header is not None:
            headers[x.door.id_header] = x.trace.turn_id
        await x.reply(self._status(refusal), x.door.error(refusal, x.trace.turn_id), headers.items())

    async def _reply(self, x: Exchange, body: object, status: int = HTTPStatus.OK) -> None:
        await x.reply(status, msgspec.json.encode(body))
        await x.finish()


def _tokens_used(turn: Turn | None) -> int | None:
    """What counts against limits; None where nobody said, so that the estimate stands and hanging up gains nothing."""
    if turn is not None and turn.usage is not None:
        return turn.usage.total_tokens
    return None if turn is not None and any(attempt.is_estimated for attempt in turn.attempts) else 0


def _without_frames(refusal: PlatformError) -> PlatformError:
    """The refusal without the frames it came through: they hold the body, and the refusal, until they are collected."""
    refusal.__context__ = refusal.__cause__ = None
    return refusal.with_traceback(None)


class RefusalMeter:
    """Lets through so many records a minute and counts the rest."""

    def __init__(self, clock: Clock, per_minute: int = 60) -> None:
        self._clock = clock
        self._per_minute = per_minute
        self._minute = -1
        self._taken = self._skipped = 0

    def take(self) -> int | None:
        """How many were skipped since the last one that was let through; None to skip this one too."""
        minute = int(self._clock.monotonic() // 60)
        if minute != self._minute:
            self._minute, self._taken = minute, 0
        if self._taken >= self._per_minute:
            self._skipped += 1
            return None
        self._taken += 1
        skipped, self._skipped = self._skipped, 0
        return skipped


def _turn_line(x: Exchange, status: int, failure: PlatformError | None) -> dict[str, object]:
    """One turn in the log: who, which target, how it ended, how long and how much. Never content."""
    trace = x.trace
    turn, caller = trace.turn, trace.caller
    return {
        "turn": trace.turn_id,
        "key": caller.key_id if caller else None,
        "app": caller.app if caller else None,
        "target": turn.target.name if turn and turn.target else None,
        "status": status,
        "code": failure.code if failure else None,
        "milliseconds": trace.milliseconds | (turn.milliseconds if turn else {}),
        "cost_nano_usd": turn.cost_nano_usd if turn else 0,
        "retry": x.headers.get("x-stainless-retry-count"),
    }
