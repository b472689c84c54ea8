"""A provider that speaks every wire: who may ask, what is answered and when it is billed."""

import os
from collections.abc import Callable
from typing import Any

import msgspec

from tests.sim.anthropic import Anthropic
from tests.sim.azure import Azure
from tests.sim.bill import Bill, Stats
from tests.sim.connection import Connection, Request
from tests.sim.exchange import Exchange, wait
from tests.sim.gemini import Gemini
from tests.sim.invoice import Finish, Invoice
from tests.sim.openai import OpenAI
from tests.sim.refusal import Refusal, scripted_refusal
from tests.sim.wire import Wire

# The first one that the request is for; OpenAI takes what nobody else does.
WIRES: tuple[Wire, ...] = (Azure(), Gemini(), Anthropic(), OpenAI())


class Provider:
    """Answers requests and bills them. `clock` gives wall seconds, for the `created` of answers."""

    def __init__(self, *, key: str, invoice: Invoice, clock: Callable[[], float]) -> None:
        self.connections: set[Connection] = set()
        self._key = key
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
        wire = next(wire for wire in WIRES if wire.speaks(request))
        exchange = Exchange(wire, connection, f"{self._run}{self._count:08x}", self._stats)
        try:
            wire.admit(request, self._key)
            await self._answer(request, exchange)
        except Refusal as refusal:
            await exchange.refuse(refusal)

    async def _answer(self, request: Request, exchange: Exchange) -> None:
        wire, number = exchange.wire, exchange.number
        answer = wire.answer(request, number, int(self._clock()))
        ids = (wire.request_id(number), wire.client_id(request))
        with Bill(self._invoice, self._stats, answer, ids) as bill:
            if not answer.billed:
                bill.waive()
            script = answer.ask.script
            await wait(script.first_ms)
            refusal = scripted_refusal(script)
            if refusal:
                if script.bill_errors:
                    bill.close(Finish.ERROR)
                bill.waive()
                raise refusal
            await exchange.send(bill)

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
