"""What a run of proofs found: the file that says so, and its table. Nothing is run here."""

import json
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from tests.prove.yardsticks import Yardsticks

BEGIN, END = "<!-- proof:begin -->", "<!-- proof:end -->"
Verdict = Literal["met", "not met", "not run"]


@dataclass(frozen=True, slots=True)
class Commit:
    """What was proven: the commit, and whether the tree held more than it."""

    name: str
    dirty: bool

    @classmethod
    def of(cls, root: Path) -> "Commit":
        """The commit checked out at `root`; `none` where there is no history."""
        return cls(_git(root, "rev-parse", "HEAD") or "none", bool(_git(root, "status", "--porcelain")))

    def __str__(self) -> str:
        return self.name[:12] + (" with uncommitted changes" if self.dirty else "")


@dataclass(frozen=True, slots=True)
class Row:
    """One proof's result."""

    id: str
    what: str
    must: str
    figure: str
    verdict: Verdict
    reason: str
    seed: int
    seconds: float
    commit: str


@dataclass(frozen=True, slots=True)
class Results:
    """All rows of a run, in order."""

    commit: Commit
    yardsticks: Yardsticks
    proofs: tuple[Row, ...]

    def write(self, path: Path) -> None:
        """Replace the file at `path` whole."""
        body = {
            "commit": self.commit.name,
            "dirty": self.commit.dirty,
            "yardsticks": asdict(self.yardsticks),
            "proofs": [asdict(row) for row in self.proofs],
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".draft")
        draft.write_text(json.dumps(body, indent=2, ensure_ascii=False) + "\n")
        draft.replace(path)

    def table(self) -> str:
        """The rows as a Markdown table, then what they were measured on."""
        lines = ["| id | what | must be | figure | verdict | s |", "|---|---|---|---|---|---|"]
        for row in self.proofs:
            verdict = row.verdict if row.verdict != "not run" else f"not run: {row.reason}"
            if row.commit != self.commit.name:
                verdict += f" (at {row.commit[:12]})"
            cells = (row.id, row.what, row.must, row.figure, verdict, f"{row.seconds:.0f}")
            lines.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
        return "\n".join([*lines, "", f"Commit {self.commit}. Machine: {self.yardsticks}."])


def earlier_rows(path: Path) -> tuple[Row, ...]:
    """The rows of an earlier file, each with its own commit; none where there is no file."""
    if not path.exists():
        return ()
    rows: list[dict[str, Any]] = json.loads(path.read_text())["proofs"]
    return tuple(Row(**row) for row in rows)


def merged(earlier: tuple[Row, ...], fresh: tuple[Row, ...]) -> tuple[Row, ...]:
    """The earlier rows, each replaced where a fresh one has its id, then the new ones."""
    by_id = {row.id: row for row in fresh}
    known = {row.id for row in earlier}
    return (*(by_id.get(row.id, row) for row in earlier), *(row for row in fresh if row.id not in known))


def replace_table(page: str, table: str) -> str:
    """The page with the table between its two marks. Raises ValueError where a mark is missing."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""
