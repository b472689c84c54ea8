"""How an answer leaves: event by event or whole, at its pace, until its script makes it go wrong."""

import asyncio
from dataclasses import dataclass

from tests.sim.bill import Bill, Stats
from tests.sim.connection import JSON_HEADERS, STREAM_HEADERS, Connection, Headers, chunk, head
from tests.sim.invoice import Finish
from tests.sim.refusal import Refusal
from tests.sim.script import Fault
from tests.sim.wire import Wire

_EVENTS_PER_TURN = 32
_CUTS = frozenset({Fault.RST, Fault.FIN, Fault.END})


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request's answer on its way to the client, in the words of its wire."""

    wire: Wire
    connection: Connection
    number: str
    stats: Stats

    async def send(self, bill: Bill) -> None:
        """The answer, as it was asked for."""
        await (self._stream if bill.answer.ask.stream else self._whole)(bill)

    async def refuse(self, refusal: Refusal) -> None:
        """An error status."""
        self.stats.statuses[refusal.status] += 1
        headers: Headers = (*JSON_HEADERS, *self.wire.headers(self.number))
        if refusal.retry_after_seconds is not None:
            headers += (("retry-after", f"{refusal.retry_after_seconds:g}"),)
        await self.connection.reply(refusal.status, self.wire.error(refusal, self.number), headers)

    async def _stream(self, bill: Bill) -> None:
        script = bill.answer.ask.script
        if await self._goes_wrong(script.fault_after(-1), bill):
            return
        self.stats.statuses[200] += 1
        start = head(200, (*STREAM_HEADERS, *self.wire.headers(self.number)), length=None)
        await self.connection.send(start, piece_bytes=script.piece_bytes)
        sent = 0
        for event in bill.answer.events():
            if await self._goes_wrong(script.fault_after(sent), bill):
                return
            await wait(script.pace_ms)
            bill.generate(event.generated)
            if event.generated == bill.answer.total:
                # Before the event that lets the caller know the whole usage, even where each event tells it.
                bill.close(bill.answer.finish)
            await self._frame(bill, self.wire.frame(event))
            sent += 1
            if sent % _EVENTS_PER_TURN == 0:
                await asyncio.sleep(0)
        if await self._goes_wrong(script.fault_after(sent), bill):
            return
        await self._frame(bill, self.wire.end)
        await self.connection.send(chunk(b""))

    async def _goes_wrong(self, fault: Fault | None, bill: Bill) -> bool:
        """Do what the script wants at this place; whether the answer is over with that."""
        match fault:
            case None:
                return False
            case Fault.MALFORMED:
                await self._frame(bill, self.wire.frame(self.wire.malformed))
                return False
            case Fault.STALL:
                await self._stall(bill)
            case Fault.ERROR:
                bill.close(Finish.ERROR)
                await self._frame(bill, self.wire.error_event(server_error(), self.number))
                await self.connection.send(chunk(b""))
            case Fault.END:
                bill.close(Finish.CUT)
                await self.connection.send(chunk(b""))
            case _:
                bill.close(Finish.CUT)
                self._cut(fault)
        return True

    async def _stall(self, bill: Bill) -> None:
        ping_ms = bill.answer.ask.script.ping_ms
        while ping_ms:
            await wait(ping_ms)
            await self.connection.send(chunk(self.wire.ping))
        await asyncio.get_running_loop().create_future()

    async def _frame(self, bill: Bill, frame: bytes) -> None:
        if frame:
            await self.connection.send(chunk(frame), piece_bytes=bill.answer.ask.script.piece_bytes)

    async def _whole(self, bill: Bill) -> None:
        answer = bill.answer
        script = answer.ask.script
        if script.fault is Fault.ERROR:
            bill.waive()
            raise server_error()
        stop_at = script.stall_at if script.stall_at is not None else answer.total
        for generated in range(1, min(stop_at, answer.total) + 1):
            await wait(script.pace_ms)
            bill.generate(generated)
        if script.fault is Fault.STALL:
            await asyncio.get_running_loop().create_future()
        bill.generate(answer.total)
        bill.close(Finish.CUT if script.fault in _CUTS else answer.finish)
        await self._body(bill)

    async def _body(self, bill: Bill) -> None:
        """The body as it is, or as much of it as the script lets through under a length that promises more."""
        script, body = bill.answer.ask.script, bill.answer.body()
        headers = (*JSON_HEADERS, *self.wire.headers(self.number))
        if script.fault is Fault.MALFORMED:
            body = body[: len(body) // 2]
        if script.fault in _CUTS:
            if script.fault_after(-1) is None:
                await self.connection.send(head(200, headers, length=len(body)) + body[: len(body) // 2])
            self._cut(script.fault)
            return
        self.stats.statuses[200] += 1
        await self.connection.reply(200, body, headers, piece_bytes=script.piece_bytes)

    def _cut(self, fault: Fault) -> None:
        if fault is Fault.RST:
            self.connection.reset()
        else:
            self.connection.close()


def server_error() -> Refusal:
    """What a provider says when it is to blame."""
    return Refusal(500, "The server had an error while processing your request.")


async def wait(milliseconds: float) -> None:
    """Pass the time, without yielding where there is none to pass."""
    if milliseconds:
        await asyncio.sleep(milliseconds / 1000)
