"""The record of a reading: which files a reader opened to find where a thing happens, and whether it is still there."""

import tomllib
from pathlib import Path

RECORD = Path(__file__).with_name("reading.toml")


def check_reading(root: Path) -> tuple[int, int, int]:
    """Questions asked, those whose place still exists, and the most files opened for one of them.

    A place is `file:name`; the name must still be defined or used in that file.
    """
    answers = tomllib.loads(RECORD.read_text())["answer"] if RECORD.exists() else []
    found = sum(
        _stands(root, answer["place"]) and answer["place"].split(":")[0] in answer["opened"] for answer in answers
    )
    return len(answers), found, max((len(answer["opened"]) for answer in answers), default=0)


def _stands(root: Path, place: str) -> bool:
    file, _, name = place.partition(":")
    path = root / file
    return path.is_file() and name in path.read_text()
