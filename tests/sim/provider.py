"""A provider of OpenAI's wire: who may ask, what is answered, when it goes wrong and when it is billed."""

import asyncio
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from hmac import compare_digest
from types import TracebackType
from typing import Any, Self

import msgspec

from tests.sim.answer import Answer
from tests.sim.ask import MODELS, Refusal, read_ask, scripted_refusal
from tests.sim.connection import JSON_HEADERS, STREAM_HEADERS, Connection, Headers, Request, chunk, head
from tests.sim.invoice import Finish, Invoice, Line
from tests.sim.script import Fault

_EVENTS_PER_TURN = 32
_CUTS = frozenset({Fault.RST, Fault.FIN, Fault.END})
_ERROR = Refusal(500, "The server had an error while processing your request.", kind="server_error")


@dataclass(slots=True)
class Stats:
    """What the provider saw since the last reset. retries: requests by `x-stainless-retry-count`."""

    requests: int = 0
    answering: int = 0
    max_concurrent: int = 0
    cancelled: int = 0
    billed: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    retries: Counter[str] = field(default_factory=Counter)

    def reset(self) -> None:
        """Count anew, but for what is being answered."""
        self.requests = self.cancelled = self.billed = 0
        self.max_concurrent = self.answering
        self.statuses.clear()
        self.retries.clear()


class Bill:
    """The one line a request will have on the invoice, written once: by whoever closes it first.

    Leaving it open means that the client left, or that the provider is stopping.
    """

    def __init__(
        self, invoice: Invoice, stats: Stats, answer: Answer, *, request_id: str, client_id: str | None
    ) -> None:
        self.answer = answer
        self.generated = 0
        self.started = False
        self._invoice = invoice
        self._stats = stats
        self._ids = (request_id, client_id)
        self._open = True

    def close(self, finish: Finish) -> None:
        """Bill what was generated, unless that is done or waived."""
        if not self._open:
            return
        self._open = False
        ask = self.answer.ask
        tokens = self.answer.tokens(self.generated, started=self.started)
        self._invoice.write(Line(*self._ids, tokens=tokens, finish=finish, model=ask.model, stream=ask.stream))
        self._stats.billed += 1
        self._stats.cancelled += finish is Finish.CANCELLED

    def waive(self) -> None:
        """Bill nothing: the answer is an error status."""
        self._open = False

    def generate(self, tokens: int) -> None:
        """So many text tokens exist by now."""
        self.started = True
        self.generated = tokens

    def __enter__(self) -> Self:
        self._stats.answering += 1
        self._stats.max_concurrent = max(self._stats.max_concurrent, self._stats.answering)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stats.answering -= 1
        self.close(Finish.CANCELLED)


class Provider:
    """Answers requests and bills them. `clock` gives wall seconds, for the `created` of answers."""

    def __init__(self, *, key: str, invoice: Invoice, clock: Callable[[], float]) -> None:
        self.connections: set[Connection] = set()
        self._authorization = f"Bearer {key}".encode("latin-1")
        self._invoice = invoice
        self._clock = clock
        self._stats = Stats()
        # Ids go on being unique when the process is started anew with the same invoice.
        self._run = os.urandom(6).hex()
        self._count = 0

    async def serve(self, request: Request, connection: Connection) -> None:
        """Answer one request; ends early when the client leaves."""
        if request.path.startswith("/sim/"):
            await self._inspect(request, connection)
            return
        self._stats.requests += 1
        self._stats.retries[request.headers.get("x-stainless-retry-count", "0")] += 1
        self._count += 1
        number = f"{self._run}{self._count:08x}"
        try:
            self._authenticate(request)
            await self._route(request, connection, number)
        except Refusal as refusal:
            await self._refuse(connection, refusal, number)

    def _authenticate(self, request: Request) -> None:
        given = request.headers.get("authorization", "").encode("latin-1")
        if not compare_digest(given, self._authorization):
            raise Refusal(401, "Incorrect API key provided.", code="invalid_api_key")

    async def _route(self, request: Request, connection: Connection, number: str) -> None:
        match request.method, request.path:
            case "POST", "/v1/chat/completions":
                await self._chat(request, connection, number)
            case "GET", "/v1/models":
                models = [{"id": name, "object": "model", "created": 0, "owned_by": "simulator"} for name in MODELS]
                body = msgspec.json.encode({"object": "list", "data": models})
                await self._reply(connection, body, number)
            case _, "/v1/chat/completions" | "/v1/models":
                raise Refusal(405, f"Not allowed to {request.method} on {request.path}.", code="method_not_supported")
            case _:
                raise Refusal(404, f"Invalid URL ({request.method} {request.path})", code="unknown_url")

    async def _chat(self, request: Request, connection: Connection, number: str) -> None:
        ask = read_ask(request.body)
        answer = Answer(ask, f"chatcmpl-{number}", int(self._clock()))
        client_id = request.headers.get("x-client-request-id")
        with Bill(self._invoice, self._stats, answer, request_id=f"req_{number}", client_id=client_id) as bill:
            await _wait(ask.script.first_ms)
            refusal = scripted_refusal(ask.script)
            if refusal:
                if ask.script.bill_errors:
                    bill.close(Finish.ERROR)
                bill.waive()
                raise refusal
            await (self._stream if ask.stream else self._whole)(bill, connection, number)

    async def _stream(self, bill: Bill, connection: Connection, number: str) -> None:
        script = bill.answer.ask.script
        if await self._goes_wrong(script.fault_after(-1), bill, connection):
            return
        self._stats.statuses[200] += 1
        start = head(200, (*STREAM_HEADERS, ("x-request-id", f"req_{number}")), length=None)
        await connection.send(start, piece_bytes=script.piece_bytes)
        sent = 0
        for event in bill.answer.events():
            if await self._goes_wrong(script.fault_after(sent), bill, connection):
                return
            await _wait(script.pace_ms)
            bill.generate(event.generated)
            if event.generated == bill.answer.total:
                # Before the event that lets the caller know the whole usage, even where each event tells it.
                bill.close(bill.answer.finish)
            await self._event(bill, connection, event.data)
            sent += 1
            if sent % _EVENTS_PER_TURN == 0:
                await asyncio.sleep(0)
        if await self._goes_wrong(script.fault_after(sent), bill, connection):
            return
        await self._event(bill, connection, b"[DONE]")
        await connection.send(chunk(b""))

    async def _goes_wrong(self, fault: Fault | None, bill: Bill, connection: Connection) -> bool:
        """Do what the script wants at this place; whether the answer is over with that."""
        match fault:
            case None:
                return False
            case Fault.MALFORMED:
                await self._event(bill, connection, b'{"id":"chatcmpl-malformed","choices":[{"delta":')
                return False
            case Fault.STALL:
                await self._stall(bill, connection)
            case Fault.ERROR:
                bill.close(Finish.ERROR)
                await self._event(bill, connection, _ERROR.body())
                await connection.send(chunk(b""))
            case Fault.END:
                bill.close(Finish.CUT)
                await connection.send(chunk(b""))
            case _:
                bill.close(Finish.CUT)
                _cut(connection, fault)
        return True

    async def _stall(self, bill: Bill, connection: Connection) -> None:
        ping_ms = bill.answer.ask.script.ping_ms
        while ping_ms:
            await _wait(ping_ms)
            await connection.send(chunk(b": ping\n\n"))
        await asyncio.get_running_loop().create_future()

    async def _event(self, bill: Bill, connection: Connection, data: bytes) -> None:
        piece_bytes = bill.answer.ask.script.piece_bytes
        await connection.send(chunk(b"data: " + data + b"\n\n"), piece_bytes=piece_bytes)

    async def _whole(self, bill: Bill, connection: Connection, number: str) -> None:
        answer = bill.answer
        script = answer.ask.script
        if script.fault is Fault.ERROR:
            bill.waive()
            raise _ERROR
        stop_at = script.stall_at if script.stall_at is not None else answer.total
        for generated in range(1, min(stop_at, answer.total) + 1):
            await _wait(script.pace_ms)
            bill.generate(generated)
        if script.fault is Fault.STALL:
            await asyncio.get_running_loop().create_future()
        bill.generate(answer.total)
        bill.close(Finish.CUT if script.fault in _CUTS else answer.finish)
        await self._body(answer, connection, number)

    async def _body(self, answer: Answer, connection: Connection, number: str) -> None:
        """The body as it is, or as much of it as the script lets through under a length that promises more."""
        script, body = answer.ask.script, answer.body()
        if script.fault is Fault.MALFORMED:
            body = body[: len(body) // 2]
        if script.fault in _CUTS:
            if script.fault_after(-1) is None:
                start = head(200, (*JSON_HEADERS, ("x-request-id", f"req_{number}")), length=len(body))
                await connection.send(start + body[: len(body) // 2])
            _cut(connection, script.fault)
            return
        await self._reply(connection, body, number, piece_bytes=script.piece_bytes)

    async def _reply(self, connection: Connection, body: bytes, number: str, *, piece_bytes: int = 0) -> None:
        self._stats.statuses[200] += 1
        headers = (*JSON_HEADERS, ("x-request-id", f"req_{number}"))
        await connection.reply(200, body, headers, piece_bytes=piece_bytes)

    async def _refuse(self, connection: Connection, refusal: Refusal, number: str) -> None:
        self._stats.statuses[refusal.status] += 1
        headers: Headers = (*JSON_HEADERS, ("x-request-id", f"req_{number}"))
        if refusal.retry_after_seconds is not None:
            headers += (("retry-after", f"{refusal.retry_after_seconds:g}"),)
        await connection.reply(refusal.status, refusal.body(), headers)

    async def _inspect(self, request: Request, connection: Connection) -> None:
        match request.method, request.path:
            case "GET", "/sim/stats":
                seen: dict[str, Any] = msgspec.to_builtins(self._stats, str_keys=True)
                body = msgspec.json.encode(seen | {"open_connections": len(self.connections)})
                await connection.reply(200, body)
            case "POST", "/sim/reset":
                self._stats.reset()
                await connection.reply(200, b"{}")
            case _:
                await connection.reply(404, b"{}")


def _cut(connection: Connection, fault: Fault) -> None:
    if fault is Fault.RST:
        connection.reset()
    else:
        connection.close()


async def _wait(milliseconds: float) -> None:
    if milliseconds:
        await asyncio.sleep(milliseconds / 1000)
