"""The provider simulator as a process: `python -m tests.sim.upstream --port 0 --invoice FILE --ready FILE`.

It speaks OpenAI's wire, Anthropic's, Gemini's and Azure's, each at the paths and with the key header of its vendor.
It listens on 127.0.0.1 only, says where in the ready file, and ends on SIGTERM or SIGINT with every bill closed.
"""

import argparse
import asyncio
import os
import signal
import time
from pathlib import Path

import msgspec

from tests.sim.connection import Connection
from tests.sim.invoice import Invoice
from tests.sim.provider import Provider


def main() -> None:
    """Serve until told to stop."""
    parser = argparse.ArgumentParser(description="A provider of every wire with an invoice of its own.")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--invoice", type=Path, required=True)
    parser.add_argument("--ready", type=Path, required=True, help='will hold {"port": ..., "pid": ...}')
    parser.add_argument("--key", default="sim-key")
    parser.add_argument("--fsync", action="store_true", help="bring each invoice line to disk before going on")
    given = parser.parse_args()
    with Invoice(given.invoice, fsync=given.fsync) as invoice:
        provider = Provider(key=given.key, invoice=invoice, clock=time.time)
        asyncio.run(_serve(provider, given.port, given.ready))


async def _serve(provider: Provider, port: int, ready: Path) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    server = await loop.create_server(
        lambda: Connection(provider.serve, provider.connections), "127.0.0.1", port, backlog=4096
    )
    _announce(ready, server.sockets[0].getsockname()[1])
    await stop.wait()
    server.close()
    tasks = [connection.end() for connection in tuple(provider.connections)]
    await asyncio.gather(*filter(None, tasks), return_exceptions=True)


def _announce(ready: Path, port: int) -> None:
    # Renamed into place, so that nobody reads half a file.
    draft = ready.with_suffix(".draft")
    draft.write_bytes(msgspec.json.encode({"port": port, "pid": os.getpid()}))
    draft.replace(ready)


if __name__ == "__main__":
    main()
