"""An environment of its own for the official SDKs, made from their lock and kept as long as that is the same."""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

CACHE = Path(".cache/clients")
LOCK = Path("requirements/clients.lock")


def clients_python(lock: Path = LOCK, cache: Path = CACHE, *, python: str = sys.executable) -> Path:
    """The interpreter of an environment that holds the lock and nothing else. Raises CalledProcessError.

    The first call installs, which needs the package index and takes seconds; the next ones find it there.
    """
    version = "".join(str(part) for part in sys.version_info[:2])
    folder = cache.absolute() / f"{hashlib.sha256(lock.read_bytes()).hexdigest()[:16]}-{version}"
    found, complete = folder / "bin" / "python", folder / "complete"
    if complete.exists():
        return found
    # Whatever an interrupted installation left is not trusted.
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([python, "-m", "venv", str(folder)], check=True)
    install = [str(found), "-m", "pip", "install", "--require-hashes", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*install, "--requirement", str(lock)], check=True)
    complete.touch()
    return found
