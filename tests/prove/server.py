"""Real processes for proofs and stories: the gateway and the provider simulator, started, spoken to and killed.

Everything is on 127.0.0.1 and in the folder that is given; a process never outlives its `async with`.
"""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp

from tests.sim.invoice import Line, read_invoice

ROOT = Path(__file__).parents[2]
START_SECONDS = 15.0
STOP_SECONDS = 10.0
_POLL_SECONDS = 0.02
_LOG_LINES = 20


class StartFailed(Exception):
    """The process ended, or did not answer in time; the message ends with the last line of its log."""


class Refused(Exception):
    """The server answered a request of the test's own with an error status."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status} {text}")
        self.status = status


class Process:
    """A process of its own with its log in a file. `environment` is added to ours, without our PENSTOCK_*.

    user: the number of the user it runs as, where it must not run as us.
    """

    def __init__(
        self,
        arguments: list[str],
        log: Path,
        *,
        root: Path,
        environment: Mapping[str, str],
        user: int | None = None,
    ) -> None:
        self._arguments = arguments
        self._as: dict[str, Any] = {} if user is None else {"user": user, "group": user, "extra_groups": []}
        self._log = log
        self._root = root
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK_")}
        self._environment = inherited | {"PYTHONPATH": str(root)} | dict(environment)
        self._running: asyncio.subprocess.Process | None = None

    @property
    def logs(self) -> str:
        """Everything it wrote until now, over all its lives."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    @property
    def pid(self) -> int:
        """The process's id, while it has been started."""
        assert self._running is not None, "not started"
        return self._running.pid

    @property
    def alive(self) -> bool:
        """Whether it has been started and has not ended."""
        return self._running is not None and self._running.returncode is None

    @property
    def environment(self) -> dict[str, str]:
        """What the process sees; for commands that work on the same data."""
        return dict(self._environment)

    async def start(self) -> None:
        """Start it, in a session of its own, so that a Ctrl-C reaches it through us only."""
        assert not self.alive, "already started"
        with self._log.open("ab") as log:
            self._running = await asyncio.create_subprocess_exec(
                *self._arguments,
                stdout=log,
                stderr=log,
                cwd=self._root,
                env=self._environment,
                start_new_session=True,
                **self._as,
            )

    async def start_until(self, serves: Callable[[], Awaitable[bool]], name: str) -> None:
        """Start it and wait until it serves; one that takes too long is killed. Raises StartFailed."""
        await self.start()
        try:
            async with asyncio.timeout(START_SECONDS):
                while not await serves():
                    if not self.alive:
                        raise self.start_failed(f"{name} ended")
                    await asyncio.sleep(_POLL_SECONDS)
        except TimeoutError as error:
            await self.stop(signal.SIGKILL)
            raise self.start_failed(f"{name} did not serve within {START_SECONDS:g} s") from error

    async def stop(self, number: signal.Signals, *, seconds: float = STOP_SECONDS) -> int:
        """Send the signal and wait; one that does not end in time is killed. Returns the exit status."""
        assert self._running is not None, "not started"
        if self._running.returncode is None:
            self._running.send_signal(number)
        try:
            async with asyncio.timeout(seconds):
                return await self._running.wait()
        except TimeoutError:
            self._running.kill()
            return await self._running.wait()

    def start_failed(self, why: str) -> StartFailed:
        """The error for a start that came to nothing."""
        return StartFailed("\n".join([f"{why}; its log ends:", *self.logs.splitlines()[-_LOG_LINES:]]))


class _Server:
    """A process one speaks to over HTTP; `url` has no trailing slash and no path."""

    url: str

    def __init__(self, process: Process) -> None:
        self.process = process
        self._session: aiohttp.ClientSession | None = None

    @property
    def logs(self) -> str:
        """Everything the process wrote until now."""
        return self.process.logs

    @property
    def environment(self) -> dict[str, str]:
        """What the process sees; for commands that work on the same data."""
        return self.process.environment

    @property
    def session(self) -> aiohttp.ClientSession:
        """A client for tests, without limits of its own."""
        assert self._session is not None, "not entered"
        return self._session

    async def kill(self) -> int:
        """kill -9: nothing is said, nothing is saved."""
        return await self.process.stop(signal.SIGKILL)

    async def terminate(self, *, seconds: float = STOP_SECONDS) -> int:
        """SIGTERM, and the exit status once it has ended."""
        return await self.process.stop(signal.SIGTERM, seconds=seconds)

    async def start(self) -> None:
        """Start, again if need be, and wait until it serves. Raises StartFailed."""
        await self.process.start_until(self._serves, "it")

    async def ask(
        self, method: str, path: str, *, key: str, body: object = None, text: str | None = None
    ) -> dict[str, Any]:
        """One request with a bearer key and the JSON of its answer. Raises Refused for an error status."""
        headers = {"Authorization": f"Bearer {key}"}
        content: dict[str, Any] = {"json": body} if text is None else {"data": text.encode()}
        async with self.session.request(method, self.url + path, headers=headers, **content) as answer:
            said = await answer.text()
            if answer.status >= 400:
                raise Refused(answer.status, said)
            read: dict[str, Any] = json.loads(said) if said else {}
            return read

    async def _serves(self) -> bool:
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=None), trust_env=False
        )
        try:
            await self.start()
        except BaseException:
            await self._leave()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self._leave()

    async def _leave(self) -> None:
        await self.session.close()
        if self.process.alive:
            await self.terminate()


@dataclass(frozen=True, slots=True)
class Quickstart:
    """What the first start wrote down. base_url is for SDKs."""

    base_url: str
    app_key: str
    admin_key: str
    author_key: str
    approver_key: str


@dataclass(frozen=True, slots=True)
class IssuedKey:
    """A key as it is shown once, and its id."""

    id: str
    key: str


class Gateway(_Server):
    """`penstock serve` with its data in a folder; entering it waits for readiness and reads quickstart.json.

    Of several processes on one store only the first to start writes that file; the others are handed its keys.
    """

    quickstart: Quickstart

    def __init__(
        self,
        workdir: Path,
        *,
        root: Path = ROOT,
        python: str = sys.executable,
        environment: Mapping[str, str] | None = None,
        port: int | None = None,
    ) -> None:
        self.data_dir = workdir / "data"
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        settings = {"PENSTOCK_DATA_DIR": str(self.data_dir), "PENSTOCK_PORT": str(self.port)} | dict(environment or {})
        arguments = [python, "-m", "gateway", "serve"]
        super().__init__(Process(arguments, workdir / "gateway.log", root=root, environment=settings))

    async def start(self) -> None:
        """Start, wait for /readyz, and read the keys that the first start made, if this was it."""
        await super().start()
        kept = self.data_dir / "quickstart.json"
        if kept.exists():
            self.quickstart = Quickstart(**json.loads(kept.read_text()))

    async def apply(self, declared: str) -> dict[str, Any]:
        """Apply declarative YAML as the administrator."""
        return await self.ask("POST", "/api/apply", key=self.quickstart.admin_key, text=declared)

    async def put_credential(self, name: str, secret: str) -> None:
        """Store a provider's credential under a name that providers can use."""
        await self.ask("PUT", f"/api/credentials/{name}", key=self.quickstart.admin_key, body={"secret": secret})

    async def create_key(self, **wanted: object) -> str:
        """A new key, for example `create_key(app="web")`."""
        return (await self.issue_key(**wanted)).key

    async def issue_key(self, **wanted: object) -> IssuedKey:
        """A new key with the id by which budgets and revocations know it."""
        made = await self.ask("POST", "/api/keys", key=self.quickstart.admin_key, body=wanted)
        return IssuedKey(str(made["id"]), str(made["key"]))

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `penstock` on the same data; what it printed and its exit status."""
        command = [sys.executable, "-m", "gateway", *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=self.environment, check=False)

    async def _serves(self) -> bool:
        try:
            async with self.session.get(f"{self.url}/readyz") as answer:
                return answer.status == 200
        except aiohttp.ClientError:
            return False


class Simulator(_Server):
    """The provider simulator with its invoice in a folder. A restart keeps the port and the invoice."""

    def __init__(
        self,
        workdir: Path,
        *,
        root: Path = ROOT,
        python: str = sys.executable,
        key: str = "sim-key",
        fsync: bool = False,
    ) -> None:
        self.key = key
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.invoice_path = workdir / "invoice.jsonl"
        self._ready = workdir / "simulator.json"
        arguments = [python, "-m", "tests.sim.upstream", "--port", str(self.port), "--key", key]
        arguments += ["--invoice", str(self.invoice_path), "--ready", str(self._ready), *(["--fsync"] if fsync else [])]
        super().__init__(Process(arguments, workdir / "simulator.log", root=root, environment={}))

    @property
    def base_url(self) -> str:
        """What a provider document or an SDK is given."""
        return f"{self.url}/v1"

    def invoice(self) -> list[Line]:
        """What it billed until now."""
        return read_invoice(self.invoice_path)

    async def stats(self) -> dict[str, Any]:
        """What it saw since its start or the last reset."""
        return await self.ask("GET", "/sim/stats", key=self.key)

    async def reset(self) -> None:
        """Count anew; the invoice stays."""
        await self.ask("POST", "/sim/reset", key=self.key)

    async def start(self) -> None:
        """Start and wait until it says that it listens."""
        self._ready.unlink(missing_ok=True)
        await super().start()

    async def _serves(self) -> bool:
        return self._ready.exists()


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listened on a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])
