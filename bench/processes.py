"""Processes of the bench: started on a core, in a group of their own, and gone when their block is left."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext, suppress
from pathlib import Path

from bench.cores import on_core

ROOT = Path(__file__).parents[1]
STOP_SECONDS = 5.0
_LOG_BYTES = 600


class Failed(Exception):
    """A process ended, or did not do what it was started for; the message ends with the end of its log."""

    @classmethod
    def with_log(cls, why: str, log: Path) -> "Failed":
        """The error with what the process said last."""
        said = log.read_text(errors="replace")[-_LOG_BYTES:].strip() if log.exists() else ""
        return cls(f"{why}; its log ends: {' '.join(said.split())}" if said else why)


@asynccontextmanager
async def running(
    arguments: Sequence[str], log: Path, *, core: int, environment: Mapping[str, str] | None = None
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a process on a core while the block lasts. `environment` is added to ours."""
    process = await _start(arguments, log, core=core, environment=environment)
    try:
        yield process
    finally:
        await end(process)


async def finish(
    arguments: Sequence[str], log: Path, *, environment: Mapping[str, str] | None = None, folder: Path = ROOT
) -> None:
    """Run a process to its end on any core. Raises Failed where it fails; it does not outlive a cancellation."""
    process = await _start(arguments, log, core=None, environment=environment, folder=folder)
    try:
        status = await process.wait()
    finally:
        await end(process)
    if status:
        raise Failed.with_log(f"{Path(arguments[0]).name} ended with {status}", log)


async def output(arguments: Sequence[str], log: Path, *, core: int) -> str:
    """What a process on a core prints until its end. Raises Failed."""
    process = await _start(arguments, log, core=core, piped=True)
    try:
        printed, _ = await process.communicate()
    finally:
        await end(process)
    if process.returncode:
        raise Failed.with_log(f"{' '.join(arguments[1:3])} ended with {process.returncode}", log)
    return printed.decode()


async def end(process: asyncio.subprocess.Process) -> None:
    """End the process and whatever it started, at first kindly."""
    if process.returncode is None:
        _signal(process.pid, signal.SIGTERM)
        with suppress(TimeoutError):
            async with asyncio.timeout(STOP_SECONDS):
                await process.wait()
    _signal(process.pid, signal.SIGKILL)  # the group, for what the first may have left behind
    await process.wait()


async def _start(
    arguments: Sequence[str],
    log: Path,
    *,
    core: int | None = None,
    environment: Mapping[str, str] | None = None,
    folder: Path = ROOT,
    piped: bool = False,
) -> asyncio.subprocess.Process:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK_")}
    with log.open("wb") as kept, nullcontext() if core is None else on_core(core):
        return await asyncio.create_subprocess_exec(
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE if piped else kept,
            stderr=kept,
            cwd=folder,
            env=inherited | dict(environment or {}),
            start_new_session=True,  # a Ctrl-C reaches it through us only
        )


def _signal(group: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, number)
