"""How each gateway is started: the floor, nginx and the peers. Ours is in bench/penstock.py, because it has more on.

The peers check nothing and keep nothing: each runs in the cheapest way it has, on one core.
"""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.asking import Address, first_answer
from bench.cores import Cores
from bench.install import Peer
from bench.processes import Failed, running
from tests.prove.server import free_port

PEERS = Path(__file__).parent / "peers"
FIRST_ANSWER_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Running:
    """A gateway that answers. pid: the root of its processes, none for no gateway at all.

    start_seconds: from its start to its first answer. explain: one turn, as its books and its trail tell it.
    commit_ms: the median of one insert and commit in its store, for so many of them.
    """

    address: Address
    pid: int | None = None
    start_seconds: float | None = None
    explain: Callable[[], Awaitable[dict[str, Any]]] | None = None
    commit_ms: Callable[[int], Awaitable[float]] | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """Where a gateway is started: a folder of its own, the port of the provider, the cores."""

    folder: Path
    mock_port: int
    cores: Cores

    def written(self, name: str, **facts: object) -> str:
        """The path of a peer's configuration with these facts in it."""
        path = self.folder / name
        path.write_text((PEERS / name).read_text().format(mock_port=self.mock_port, folder=self.folder, **facts))
        return str(path)


Start = Callable[[Place], AbstractAsyncContextManager[Running]]


@asynccontextmanager
async def direct(place: Place) -> AsyncIterator[Running]:
    """No gateway: what the two ends themselves take."""
    yield Running(Address(place.mock_port))


@asynccontextmanager
async def relay(place: Place) -> AsyncIterator[Running]:
    """Bytes through asyncio."""
    port = free_port()
    arguments = [sys.executable, "-m", "bench.relay", "--port", str(port), "--upstream-port", str(place.mock_port)]
    async with _answering(place, arguments, Address(port)) as started:
        yield started


def nginx(peer: Peer) -> Start:
    """A plain proxy in C."""

    @asynccontextmanager
    async def start(place: Place) -> AsyncIterator[Running]:
        port = free_port()
        configured = place.written("nginx.conf", port=port)
        arguments = [str(peer.home), "-e", "stderr", "-p", str(place.folder), "-c", configured]
        async with _answering(place, arguments, Address(port)) as started:
            yield started

    return start


def tensorzero(peer: Peer) -> Start:
    """A gateway in Rust, with observability off and no key asked for."""

    @asynccontextmanager
    async def start(place: Place) -> AsyncIterator[Running]:
        told = place.folder / "port"
        script = str(PEERS.with_name("tensorzero_gateway.py"))
        arguments = [str(peer.home / "bin" / "python"), script, place.written("tensorzero.toml"), str(told)]
        began = time.monotonic()
        async with _started(place, arguments) as process:
            while not told.exists():
                if process.returncode is not None or time.monotonic() - began > FIRST_ANSWER_SECONDS:
                    raise Failed.with_log("it told no port", _log(place))
                await asyncio.sleep(0.005)
            path, model = "/openai/v1/chat/completions", "tensorzero::model_name::mock"
            address = Address(int(told.read_text()), path, model=model)
            await _first(place, address, process)
            yield Running(address, process.pid, time.monotonic() - began)

    return start


def portkey(peer: Peer) -> Start:
    """A gateway in TypeScript on node; it is told its provider by each request."""

    @asynccontextmanager
    async def start(place: Place) -> AsyncIterator[Running]:
        port = free_port()
        script = peer.home / "node_modules" / "@portkey-ai" / "gateway" / "build" / "start-server.js"
        headers = (
            "x-portkey-provider: openai",
            f"x-portkey-custom-host: http://127.0.0.1:{place.mock_port}/v1",
            "Authorization: Bearer sk-mock",
        )
        arguments = ["node", str(script), f"--port={port}", "--headless"]
        node = {"NODE_ENV": "production"}
        async with _answering(place, arguments, Address(port, headers=headers), node) as started:
            yield started

    return start


def litellm(peer: Peer) -> Start:
    """LiteLLM's proxy with one worker, without key, database and callbacks."""

    @asynccontextmanager
    async def start(place: Place) -> AsyncIterator[Running]:
        port = free_port()
        arguments = [str(peer.home / "bin" / "litellm"), "--config", place.written("litellm.yaml")]
        arguments += ["--host", "127.0.0.1", "--port", str(port), "--num_workers", "1", "--telemetry", "False"]
        settings = {
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # else it asks another host for prices, for eight seconds
            "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
            "LITELLM_MODE": "PRODUCTION",
            "LITELLM_LOG": "ERROR",
        }
        async with _answering(place, arguments, Address(port), settings) as started:
            yield started

    return start


@asynccontextmanager
async def _answering(
    place: Place, arguments: list[str], address: Address, environment: Mapping[str, str] | None = None
) -> AsyncIterator[Running]:
    began = time.monotonic()
    async with _started(place, arguments, environment) as process:
        await _first(place, address, process)
        yield Running(address, process.pid, time.monotonic() - began)


def _started(
    place: Place, arguments: list[str], environment: Mapping[str, str] | None = None
) -> AbstractAsyncContextManager[asyncio.subprocess.Process]:
    # A peer must not find our folders beside its own packages.
    own = {"PYTHONPATH": "", **(environment or {})}
    return running(arguments, _log(place), core=place.cores.gateway, environment=own)


async def _first(place: Place, address: Address, process: asyncio.subprocess.Process) -> None:
    """Wait for the first answer, or for the process to end before it."""
    answered = asyncio.create_task(first_answer(address, seconds=FIRST_ANSWER_SECONDS))
    ended = asyncio.create_task(process.wait())
    try:
        await asyncio.wait({answered, ended}, return_when=asyncio.FIRST_COMPLETED)
        if not answered.done():
            raise Failed.with_log(f"it ended with {process.returncode}", _log(place))
        try:
            answered.result()
        except TimeoutError as error:
            raise Failed.with_log(str(error), _log(place)) from error
    finally:
        answered.cancel()
        ended.cancel()


def _log(place: Place) -> Path:
    return place.folder / "gateway.log"
