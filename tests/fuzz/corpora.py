"""The committed inputs of each target: a file of Python bytes literals, one a line, so that they can be read.

A line that begins with `#` says why the one below is there.
"""

import ast
import hashlib
from collections.abc import Iterable
from pathlib import Path

FOLDER = Path(__file__).parent / "corpus"


def read(target: str, folder: Path = FOLDER) -> list[bytes]:
    """The inputs of a target, in order."""
    lines = (folder / f"{target}.txt").read_text().splitlines()
    return [ast.literal_eval(line) for line in lines if line and not line.startswith("#")]


def unpack(target: str, folder: Path) -> None:
    """Lay the inputs into a folder, a file each, as fuzzers want them."""
    folder.mkdir(parents=True, exist_ok=True)
    for data in read(target):
        (folder / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)


def add(target: str, found: Iterable[bytes], folder: Path = FOLDER) -> int:
    """Add what is not there yet, shortest first; how many that were."""
    path, known = folder / f"{target}.txt", set(read(target, folder))
    fresh = sorted(set(found) - known, key=lambda data: (len(data), data))
    with path.open("a") as kept:
        kept.writelines(f"{data!r}\n" for data in fresh)
    return len(fresh)
