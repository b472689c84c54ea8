"""One connection to Redis for what every turn waits for: few words, little work, and gone at the first doubt.

It knows no limits, opens nothing again and tries nothing twice; what a lost connection means is redis.py's to say.
Not redis.asyncio, which stays for publishing: with it a turn's limits (take, settle, release) cost this process 149 us
of CPU alone and 55 us among 64, so they cost 36 and 17; a take by itself cost 110 and 22, so it costs 20 and 8.5.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from ssl import SSLContext

import hiredis

Command = tuple[str | int, ...]


class Refused(ConnectionError):
    """Redis answered with an error; the message is its code alone, such as NOAUTH or OOM."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a Redis is and how it lets us in."""

    host: str
    port: int
    db: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: SSLContext | None = None

    def greeting(self) -> list[Command]:
        """What a connection says first."""
        said: list[Command] = [("PING",)]
        if self.db:
            said.insert(0, ("SELECT", self.db))
        if self.password is not None:
            said.insert(0, ("AUTH", *([self.username] if self.username else []), self.password))
        return said


@dataclass(slots=True)
class _Flight:
    """What left in one write, and what came back so far. until: the loop's time at which it is lost."""

    commands: Sequence[Command]
    done: "asyncio.Future[list[object]]"
    until: float
    answers: list[object] = field(default_factory=list)


class Connection(asyncio.Protocol):
    """Sends each flight of commands as one write and matches the answers in order; it fails as a whole.

    A flight that is not answered within `seconds`, an error among the answers or an end of the line fails everything
    that waits, and the connection is of no use any more. Only scripts that Redis forgot are loaded again.
    """

    def __init__(self, scripts: Sequence[str], seconds: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._loads: list[Command] = [("SCRIPT", "LOAD", script) for script in scripts]
        self._seconds = seconds
        self._reader = hiredis.Reader()
        self._flights: deque[_Flight] = deque()
        self._line: asyncio.WriteTransport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._lost: Exception | None = None

    async def open(self, place: Place) -> None:
        """Get in, once, and load the scripts, within `seconds`. Raises as `ask` does."""
        try:
            async with asyncio.timeout(self._seconds):
                self._line, _ = await self._loop.create_connection(lambda: self, place.host, place.port, ssl=place.tls)
                await self.ask([*place.greeting(), *self._loads])
        except BaseException:
            self.drop()
            raise

    def ask(self, commands: Sequence[Command]) -> "asyncio.Future[list[object]]":
        """The answers to at least one command, in order. Raises OSError, TimeoutError or hiredis.ProtocolError."""
        return self._send(commands, self._loop.time() + self._seconds)

    def drop(self, why: Exception | None = None) -> None:
        """Let go of it at once; whoever still waits hears why."""
        if self._lost is not None:
            return
        self._lost = why or ConnectionAbortedError()
        if self._timer is not None:
            self._timer.cancel()
        if self._line is not None:
            self._line.abort()
        for flight in self._flights:
            _fail(flight, self._lost)
        self._flights.clear()

    def _send(self, commands: Sequence[Command], until: float) -> "asyncio.Future[list[object]]":
        flight = _Flight(commands, self._loop.create_future(), until)
        if self._lost is not None or self._line is None:
            _fail(flight, self._lost or ConnectionAbortedError())
            return flight.done
        self._flights.append(flight)
        self._line.write(b"".join([_packed(command) for command in commands]))
        if self._timer is None:
            self._timer = self._loop.call_at(until, self._due)
        return flight.done

    # What asyncio calls

    def data_received(self, data: bytes) -> None:
        """Give the answers to the flights in their order; one that nobody asked for is a doubt."""
        try:
            self._reader.feed(data)
            while self._lost is None and (answer := self._reader.gets()) is not False:
                flight = self._flights[0]
                flight.answers.append(answer)
                if len(flight.answers) == len(flight.commands):
                    self._land(self._flights.popleft())
        except (hiredis.ProtocolError, IndexError) as doubt:
            self.drop(doubt)

    def connection_lost(self, error: Exception | None) -> None:
        """The line is closed."""
        self.drop(error or ConnectionResetError())

    # Flights

    def _land(self, flight: _Flight) -> None:
        errors = [str(answer) for answer in flight.answers if isinstance(answer, hiredis.ReplyError)]
        if not errors:
            if not flight.done.done():
                flight.done.set_result(flight.answers)
        elif self._loads and all(error.startswith("NOSCRIPT") for error in errors):
            self._say_again(flight)
        else:
            refused = Refused(errors[0].partition(" ")[0])
            _fail(flight, refused)
            self.drop(refused)

    def _say_again(self, flight: _Flight) -> None:
        """Load the scripts that Redis forgot; what wanted one is said once more, its answer comes into its place."""
        missing = [at for at, answer in enumerate(flight.answers) if isinstance(answer, hiredis.ReplyError)]

        def mend(again: "asyncio.Future[list[object]]") -> None:
            if (fault := again.exception()) is not None:
                _fail(flight, fault)
            elif not flight.done.done():
                for at, answer in zip(missing, again.result()[len(self._loads) :], strict=True):
                    flight.answers[at] = answer
                flight.done.set_result(flight.answers)

        commands = [*self._loads, *(flight.commands[at] for at in missing)]
        self._send(commands, flight.until).add_done_callback(mend)

    def _due(self) -> None:
        # Where the loop stood still, it has read its sockets before it runs its timers.
        self._timer = None
        if not self._flights:
            return
        until = self._flights[0].until
        if until <= self._loop.time():
            self.drop(TimeoutError())
        else:
            self._timer = self._loop.call_at(until, self._due)


def _packed(command: Command) -> bytes:
    packed: bytes = hiredis.pack_command(command)  # type: ignore[arg-type]  # its stub knows one word only
    return packed


def _fail(flight: _Flight, why: BaseException) -> None:
    if not flight.done.done():
        flight.done.set_exception(why)
