"""deploy/balancer/haproxy.cfg, run by this machine's HAProxy before gateways of this machine."""

import re
import shutil
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from tests.deploy.machine import Unable
from tests.deploy.served import status_of
from tests.prove.server import Process, free_port

_NAMES_ARE_FOUND_BY = re.compile(r" resolvers docker resolve-prefer ipv4 init-addr libc,none")


@asynccontextmanager
async def balanced(config: Path, ports: Sequence[int], folder: Path) -> AsyncIterator[int]:
    """The port where the file's balancer listens, with these gateways instead of its own. Raises Unable, StartFailed.

    Addresses are replaced, and how they are found; every other line is the file's.
    """
    haproxy = shutil.which("haproxy")
    if haproxy is None:
        raise Unable("no haproxy on the path")
    port, health = free_port(), free_port()
    text = _NAMES_ARE_FOUND_BY.sub("", config.read_text())
    text = text.replace("maxconn 20000", "maxconn 1000")  # this machine may have fewer files to open
    text = text.replace("bind :8080", f"bind 127.0.0.1:{port}").replace("bind :8404", f"bind 127.0.0.1:{health}")
    for number, gateway in enumerate(ports, 1):
        text = text.replace(f" gateway-{number}:8080", f" 127.0.0.1:{gateway}")
    (folder / "haproxy.cfg").write_text(text)
    command = [haproxy, "-db", "-f", str(folder / "haproxy.cfg")]
    process = Process(command, folder / "haproxy.log", root=folder, environment={})

    async def serves() -> bool:
        return await status_of("GET", f"http://127.0.0.1:{port}/readyz") == 200

    await process.start_until(serves, "HAProxy")
    try:
        yield port
    finally:
        await process.stop(signal.SIGTERM)
