"""The translator as `serve` has it: a child that is started when it is first needed, or one that is deployed beside.

Losing it means refusing what needs it, with 502; everything else goes on. What it does is told in router/translator.py,
which is never imported here.
"""

import asyncio
import logging
import secrets
import signal
import tempfile
from contextlib import suppress
from pathlib import Path

import msgspec

import router
from kernel import Clock
from router import Address, UpstreamUnreachable

PROGRAM = Path(router.__file__).with_name("translator.py")

_START_SECONDS = 30.0  # importing litellm takes five on an idle machine
_STOP_SECONDS = 2.0
_LOOK_SECONDS = 0.05
_PAUSE_SECONDS_MAX = 30.0
_LIVED_SECONDS = 60.0  # whoever lives so long did not die of starting

_log = logging.getLogger("penstock.translator")


class _Ready(msgspec.Struct):
    port: int


class TranslatorBeside:
    """A translator that somebody else runs. url: without a path."""

    def __init__(self, url: str, token: str) -> None:
        self._address = Address(f"{url.rstrip('/')}/v1", token)
        self.state: float | None = None  # nobody here looks after it

    async def address(self) -> Address:
        """Where it is; whether it answers shows when it is asked."""
        return self._address

    async def close(self) -> None:
        """Nothing here is ours to end."""


class TranslatorChild:
    """A translator of our own. It ends with us, however we end: it watches its standard input.

    python: of the environment that holds requirements/translator.lock. start_seconds bounds a start.
    """

    def __init__(
        self, python: Path, *, clock: Clock, start_seconds: float = _START_SECONDS, program: Path = PROGRAM
    ) -> None:
        self._python = python
        self._program = program
        self._clock = clock
        self._start_seconds = start_seconds
        self._address: Address | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._starting: asyncio.Task[Address] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._failures = 0
        self._not_before = 0.0
        self._closed = False

    @property
    def pid(self) -> int | None:
        """The child's, while there is one."""
        return self._process.pid if self._process is not None else None

    @property
    def state(self) -> float | None:
        """1 it listens, 0.5 it is being started, 0 it could not be and is not tried yet; None while nobody needs it."""
        if self._address is not None:
            return 1.0
        if self._starting is not None:
            return 0.5
        return 0.0 if self._clock.monotonic() < self._not_before else None

    async def address(self) -> Address:
        """Where it listens; starts it first if need be, once for all who ask. Raises UpstreamUnreachable."""
        if self._address is not None:
            return self._address
        if self._starting is None:
            pause = self._not_before - self._clock.monotonic()
            if self._closed or pause > 0:
                raise UpstreamUnreachable(
                    "The translator ended; it is started again in a moment.", retry_after_seconds=max(pause, 1.0)
                )
            self._starting = asyncio.create_task(self._start(), name="translator start")
            self._starting.add_done_callback(self._started)
        return await asyncio.shield(self._starting)  # whoever leaves does not end what others wait for

    async def close(self) -> None:
        """End it: SIGTERM, and after a few seconds SIGKILL."""
        self._closed, self._address = True, None
        for task in (self._starting, self._watching):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        await self._end()

    async def _start(self) -> Address:
        token = secrets.token_urlsafe(32)
        with tempfile.TemporaryDirectory(prefix="penstock-translator-") as folder:
            ready = Path(folder) / "ready.json"
            try:
                async with asyncio.timeout(self._start_seconds):
                    process = self._process = await asyncio.create_subprocess_exec(
                        *(str(self._python), "-I", str(self._program), "--ready", str(ready), "--with-parent"),
                        stdin=asyncio.subprocess.PIPE,
                        stdout=asyncio.subprocess.DEVNULL,  # litellm prints, and who knows what
                        stderr=asyncio.subprocess.DEVNULL,
                        env={"PENSTOCK_TRANSLATOR_TOKEN": token},  # and nothing else: no provider's key
                    )
                    while not ready.exists():
                        if process.returncode is not None:
                            raise not_started(f"ended with status {process.returncode}")
                        await asyncio.sleep(_LOOK_SECONDS)
                port = msgspec.json.decode(ready.read_bytes(), type=_Ready).port
            except TimeoutError as error:
                raise not_started(f"was not ready within {self._start_seconds:g} s") from error
            except OSError as error:
                raise not_started("cannot be started") from error
        self._address = Address(f"http://127.0.0.1:{port}/v1", token)
        self._watching = asyncio.create_task(self._watch(process), name="translator watch")
        return self._address

    def _started(self, start: asyncio.Task[Address]) -> None:
        self._starting = None
        if not start.cancelled() and start.exception() is not None:
            self._pause()
            _log.warning("%s", start.exception())
            if self._process is not None and self._process.returncode is None:
                self._process.kill()

    async def _watch(self, process: asyncio.subprocess.Process) -> None:
        since = self._clock.monotonic()
        status = await process.wait()
        self._address = self._process = None
        if self._clock.monotonic() - since > _LIVED_SECONDS:
            self._failures = 0
        self._pause()
        _log.warning("the translator ended with status %d; it is started again when it is needed", status)

    def _pause(self) -> None:
        """The first death costs nobody anything; from the second on there is a pause, twice as long each time."""
        pause = min(_PAUSE_SECONDS_MAX, 2.0 ** (self._failures - 1)) if self._failures else 0.0
        self._failures += 1
        self._not_before = self._clock.monotonic() + pause

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is None or process.returncode is not None:
            return
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(_STOP_SECONDS):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


def not_started(why: str) -> UpstreamUnreachable:
    """The error for a translator that is not there, with the cure. why: what is the matter with it."""
    return UpstreamUnreachable(
        f"This provider is reached through the translator, which {why}. Install it with `make translator`, or see what "
        "`penstock translator` says; PENSTOCK_TRANSLATOR_URL names one that is deployed beside."
    )
