"""A TCP proxy in a process of its own, told what to do to those who pass: `python -m tests.chaos.proxy`.

It knows no protocol. A black hole keeps every connection open and forwards nothing, neither data nor ends; what was
held back travels on once it may pass again, as after a broken network.
"""

import argparse
import asyncio
import json
import signal
import socket
import struct
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.prove.server import ROOT, Process, free_port

_BLOCK_BYTES = 65_536
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Proxy:
    """Stands between a client and 127.0.0.1:`target`; every verb takes effect before it returns."""

    def __init__(self, workdir: Path, target: int, *, name: str = "proxy") -> None:
        self.port = free_port()
        self._ready = workdir / f"{name}.json"
        arguments = [sys.executable, "-m", "tests.chaos.proxy", "--port", str(self.port), "--target", str(target)]
        arguments += ["--ready", str(self._ready)]
        self._process = Process(arguments, workdir / f"{name}.log", root=ROOT, environment={})

    async def let_pass(self) -> None:
        """Forward everything at once, also what was held back."""
        await self._tell("pass")

    async def delay(self, milliseconds: float) -> None:
        """Hold each block back for so long, in either direction."""
        await self._tell("delay", milliseconds)

    async def throttle(self, bytes_per_second: float) -> None:
        """Forward no more than this, per connection and direction."""
        await self._tell("throttle", bytes_per_second)

    async def black_hole(self) -> None:
        """Accept, forward nothing, say nothing."""
        await self._tell("black_hole")

    async def refuse(self) -> None:
        """Listen no more and reset whoever is connected."""
        await self._tell("refuse")

    async def rst_all(self) -> None:
        """Reset whoever is connected; those who come anew are served as before."""
        await self._tell("rst_all")

    async def _listens(self) -> bool:
        return self._ready.exists()

    async def _tell(self, verb: str, figure: float = 0) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._control)
        try:
            writer.write(json.dumps([verb, figure]).encode() + b"\n")
            assert await reader.readline() == b"done\n", f"the proxy did not understand {verb}"
        finally:
            writer.close()

    async def __aenter__(self) -> Self:
        self._ready.unlink(missing_ok=True)
        await self._process.start_until(self._listens, "the proxy")
        self._control: int = json.loads(self._ready.read_text())["control"]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        if self._process.alive:
            await self._process.stop(signal.SIGKILL)


class Rule:
    """What happens to a block on its way."""

    def __init__(self) -> None:
        self._open = asyncio.Event()
        self._open.set()
        self.delay_seconds = 0.0
        self.bytes_per_second = 0.0

    def become(self, verb: str, figure: float) -> None:
        """Forget the rule before and follow this one."""
        self.delay_seconds = figure / 1000 if verb == "delay" else 0.0
        self.bytes_per_second = figure if verb == "throttle" else 0.0
        if verb == "black_hole":
            self._open.clear()
        else:
            self._open.set()

    @property
    def block_bytes(self) -> int:
        """How much to read at once, so that a slow rule is an even one."""
        return max(1, min(_BLOCK_BYTES, int(self.bytes_per_second / 20) or _BLOCK_BYTES))

    async def let_through(self, size: int) -> None:
        """Wait until so many bytes may go on; of none, until an end may be told."""
        if self.delay_seconds:
            await asyncio.sleep(self.delay_seconds)
        if self.bytes_per_second:
            await asyncio.sleep(size / self.bytes_per_second)
        await self._open.wait()


class Relay:
    """The proxy itself: its listener, its connections and the rule they follow."""

    def __init__(self, port: int, target: int) -> None:
        self._port = port
        self._target = target
        self._rule = Rule()
        self._open: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    async def obey(self, verb: str, figure: float) -> None:
        """Do what a verb says."""
        if verb in {"refuse", "rst_all"}:
            self._reset_all()
        if verb == "rst_all":
            return
        self._rule.become(verb, figure)
        if verb == "refuse":
            await self._unlisten()
        else:
            await self.listen()

    async def listen(self) -> None:
        """Take connections, if that is not done."""
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port, backlog=1024)

    async def _unlisten(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        await self._rule.let_through(0)
        try:
            beyond, onward = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            _reset(writer)
            self._open.discard(writer)
            return
        self._open.add(onward)
        await asyncio.gather(self._pump(reader, onward), self._pump(beyond, writer))
        for each in (writer, onward):
            each.close()
            self._open.discard(each)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(self._rule.block_bytes):
                await self._rule.let_through(len(data))
                writer.write(data)
                await writer.drain()
            await self._rule.let_through(0)
            writer.write_eof()
        except OSError:
            await self._rule.let_through(0)
            _reset(writer)

    def _reset_all(self) -> None:
        for writer in tuple(self._open):
            _reset(writer)
        self._open.clear()


def _reset(writer: asyncio.StreamWriter) -> None:
    connected: socket.socket | None = writer.get_extra_info("socket")
    if connected is not None:
        with suppress(OSError):
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    writer.transport.abort()


async def _run(port: int, target: int, ready: Path) -> None:
    relay = Relay(port, target)
    await relay.listen()

    async def control(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        verb, figure = json.loads(await reader.readline())
        await relay.obey(verb, figure)
        writer.write(b"done\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(control, "127.0.0.1", 0)
    draft = ready.with_suffix(".draft")
    draft.write_text(json.dumps({"control": server.sockets[0].getsockname()[1]}))
    draft.replace(ready)
    await server.serve_forever()


def main() -> None:
    """Relay until killed."""
    parser = argparse.ArgumentParser(description="A TCP proxy that can be told to misbehave.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--target", type=int, required=True)
    parser.add_argument("--ready", type=Path, required=True)
    given = parser.parse_args()
    asyncio.run(_run(given.port, given.target, given.ready))


if __name__ == "__main__":
    main()
