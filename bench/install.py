"""Puts the peers into environments of their own under `.bench/`, from locks with hashes.

One that cannot be installed is missing with its reason and never an error: its rows say "not run".
"""

import hashlib
import re
import shutil
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from bench.processes import Failed, finish

LOCKS = Path(__file__).parent / "peers"
PIP = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--require-hashes")
_PLOTS = Path(__file__).parent / "requirements.lock"


@dataclass(frozen=True, slots=True)
class Peer:
    """A peer that is there: its version, and where its environment is."""

    version: str
    home: Path


@dataclass(frozen=True, slots=True)
class Missing:
    """A peer that is not there, and why."""

    reason: str


Say = Callable[[str], None]


class Peers:
    """The environments under one folder; what is there already, from the same lock, is left as it is."""

    def __init__(self, home: Path, say: Say) -> None:
        self._home = home
        self._say = say

    async def nginx(self) -> Peer | Missing:
        """The one of this machine; nobody installs it here."""
        found = shutil.which("nginx")
        if found is None:
            return Missing("nginx is not on the path")
        log = self._folder("nginx") / "version.log"
        await finish([found, "-v"], log)
        return Peer(log.read_text().strip().rpartition("/")[2], Path(found))

    async def tensorzero(self) -> Peer | Missing:
        """Its wheel, which holds the whole gateway."""
        return await self._python("tensorzero")

    async def litellm(self) -> Peer | Missing:
        """Its proxy, with the packages without which every request looks for them."""
        return await self._python("litellm")

    async def portkey(self) -> Peer | Missing:
        """Its gateway for node."""
        npm, node = shutil.which("npm"), shutil.which("node")
        if npm is None or node is None:
            return Missing("node and npm are not on the path")
        folder, lock = self._folder("portkey"), LOCKS / "portkey" / "package-lock.json"
        for name in ("package.json", "package-lock.json"):
            shutil.copy(lock.with_name(name), folder)

        async def install() -> None:
            arguments = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
            await finish(arguments, folder / "install.log", folder=folder)

        pinned = re.search(r'"@portkey-ai/gateway": "([^"]+)"', lock.with_name("package.json").read_text())
        assert pinned is not None, "package.json names what it is for"
        return await self._once("portkey", lock, pinned[1], install)

    async def plots(self) -> Peer | Missing:
        """What draws."""
        return await self._python("plots", _PLOTS, "matplotlib")

    async def _python(self, name: str, lock: Path | None = None, package: str | None = None) -> Peer | Missing:
        lock = lock or LOCKS / f"{name}.lock"
        folder = self._folder(name)
        python = str(folder / "bin" / "python")

        async def install() -> None:
            log = folder.parent / f"{name}.log"
            await finish([sys.executable, "-m", "venv", "--clear", str(folder)], log)
            await finish([python, *PIP, "--requirement", str(lock)], log, environment={"PYTHONPATH": ""})

        return await self._once(name, lock, version_in(lock, package or name), install)

    async def _once(
        self, name: str, lock: Path, version: str, install: Callable[[], Awaitable[None]]
    ) -> Peer | Missing:
        mark = self._home / f"{name}.ready"
        digest = _digest(lock)
        if digest != _kept(mark):
            self._say(f"installing {name} {version}")
            try:
                await install()
            except (Failed, OSError) as error:
                return Missing(f"{name} {version} could not be installed: {' '.join(str(error).split())[-200:]}")
            mark.write_text(digest)
        return Peer(version, self._home / name)

    def _folder(self, name: str) -> Path:
        folder = self._home / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder


def _digest(lock: Path) -> str:
    """What an environment was made from: the lock, and the Python it is for."""
    return hashlib.sha256(lock.read_bytes() + sys.version.encode()).hexdigest()


def _kept(mark: Path) -> str:
    return mark.read_text() if mark.exists() else ""


def version_in(lock: Path, package: str) -> str:
    """The version that a lock pins. Raises ValueError where it pins none."""
    found = re.search(rf"^{re.escape(package)}==([^\s;]+)", lock.read_text(), re.MULTILINE)
    if found is None:
        raise ValueError(f"{lock.name} does not pin {package}")
    return found[1]
