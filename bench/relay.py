"""`python -m bench.relay`: the floor, what no gateway on asyncio can go below.

It reads each message as far as its end, so that upstream connections can be pooled, and hands the bytes on.
No key, no JSON, no time-outs, no back-pressure: it shows what the sockets alone cost.
"""

import argparse
import asyncio

import uvloop

from bench.http1 import Malformed, Wire


class Upstream(Wire):
    """A connection to the provider; it serves one caller at a time, then goes back to the pool."""

    def __init__(self, pool: "Pool") -> None:
        super().__init__()
        self.caller: Caller | None = None
        self._pool = pool

    def data_received(self, data: bytes) -> None:
        """Hand the answer on; after its last byte both sides are free."""
        if self.caller is None or self.caller.transport is None:
            self.abort()
            return
        try:
            self.reader.feed(data)
        except Malformed:
            self.abort()
            return
        self.caller.transport.write(data)
        if self.reader.complete:
            self.caller.upstream = None
            self.caller = None
            self._pool.idle.append(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """A caller whose answer is cut is cut, too."""
        super().connection_lost(exc)
        if self.caller is not None:
            self.caller.abort()


class Pool:
    """Connections to one provider, made as they are needed and kept."""

    def __init__(self, port: int) -> None:
        self.idle: list[Upstream] = []
        self._port = port
        self._connecting: set[asyncio.Task[None]] = set()

    def take(self) -> Upstream | None:
        """An idle connection, if there is one that lives."""
        while self.idle:
            upstream = self.idle.pop()
            if upstream.transport is not None:
                return upstream
        return None

    def connect(self, caller: "Caller") -> None:
        """Make a connection and hand the caller's waiting bytes to it."""
        task = asyncio.create_task(self._connect(caller))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    def close(self) -> None:
        """Give up what is idle."""
        for upstream in self.idle:
            upstream.abort()

    async def _connect(self, caller: "Caller") -> None:
        loop = asyncio.get_running_loop()
        try:
            _, upstream = await loop.create_connection(lambda: Upstream(self), "127.0.0.1", self._port)
        except OSError:
            caller.abort()
            return
        caller.use(upstream)


class Caller(Wire):
    """A connection from a caller; its request goes to an upstream as it comes."""

    def __init__(self, pool: Pool) -> None:
        super().__init__()
        self.upstream: Upstream | None = None
        self._pool = pool
        self._waiting: list[bytes] | None = None

    def data_received(self, data: bytes) -> None:
        """Hand the request on, at once where an upstream is idle."""
        try:
            self.reader.feed(data)
        except Malformed:
            self.abort()
            return
        if self._waiting is not None:
            self._waiting.append(data)
            return
        if self.upstream is None and (idle := self._pool.take()):
            self.upstream, idle.caller = idle, self
        if self.upstream is None:
            self._waiting = [data]
            self._pool.connect(self)
        elif self.upstream.transport is not None:
            self.upstream.transport.write(data)

    def use(self, upstream: Upstream) -> None:
        """Send what waited through a fresh connection."""
        waiting, self._waiting = self._waiting or [], None
        if self.transport is None or upstream.transport is None:
            upstream.abort()
            return
        self.upstream, upstream.caller = upstream, self
        upstream.transport.write(b"".join(waiting))

    def connection_lost(self, exc: Exception | None) -> None:
        """A provider's answer that nobody reads is not read to its end."""
        super().connection_lost(exc)
        if self.upstream is not None:
            self.upstream.abort()


async def serve(port: int, upstream_port: int) -> None:
    """Relay from one port of 127.0.0.1 to another until cancelled."""
    pool = Pool(upstream_port)
    server = await asyncio.get_running_loop().create_server(lambda: Caller(pool), "127.0.0.1", port, backlog=4096)
    try:
        async with server:
            await server.serve_forever()
    finally:
        pool.close()


def main() -> None:
    """Serve until a signal ends it."""
    parser = argparse.ArgumentParser(prog="python -m bench.relay", description="Hands bytes on, and nothing else.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--upstream-port", type=int, required=True)
    given = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(given.port, given.upstream_port))


if __name__ == "__main__":
    main()
