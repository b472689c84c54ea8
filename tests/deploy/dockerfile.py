"""A Dockerfile as what it says, stage by stage. It reads what ours use of the language, and refuses the rest."""

import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

_KNOWN = frozenset(
    "FROM RUN COPY ENV WORKDIR USER LABEL EXPOSE STOPSIGNAL HEALTHCHECK ENTRYPOINT CMD".split()  # noqa: SIM905 - as in a file
)


class NotUnderstood(Exception):
    """An instruction that is not among those that ours use."""


@dataclass(frozen=True, slots=True)
class Instruction:
    """One line: the word in capitals, and what follows it."""

    word: str
    text: str

    @property
    def argv(self) -> list[str]:
        """The exec form's arguments. Raises NotUnderstood for the shell form."""
        _, bracket, rest = self.text.partition("[")
        if not bracket:
            raise NotUnderstood(f"{self.word} {self.text}: use the exec form, so that signals arrive")
        return [str(each) for each in json.loads(f"[{rest}")]

    @property
    def pairs(self) -> dict[str, str]:
        """What ENV and LABEL set."""
        return dict(pair.split("=", 1) for pair in shlex.split(self.text))

    @property
    def copied(self) -> tuple[str | None, list[str], str]:
        """Of COPY: the stage it copies from, if any, its sources, and where they go."""
        words = shlex.split(self.text)
        stage = words.pop(0).removeprefix("--from=") if words[0].startswith("--from=") else None
        return stage, words[:-1], words[-1]


@dataclass(slots=True)
class Stage:
    """From one FROM to the next."""

    base: str
    name: str
    instructions: list[Instruction] = field(default_factory=list)

    def last(self, word: str) -> Instruction | None:
        """The instruction that holds, of those of which the last one does."""
        return next((each for each in reversed(self.instructions) if each.word == word), None)

    def all(self, word: str) -> list[Instruction]:
        """Every instruction with this word."""
        return [each for each in self.instructions if each.word == word]

    @property
    def environment(self) -> dict[str, str]:
        """Everything that ENV sets."""
        return {name: value for each in self.all("ENV") for name, value in each.pairs.items()}

    @property
    def command(self) -> list[str]:
        """What runs when nobody says otherwise."""
        found = [self.last("ENTRYPOINT"), self.last("CMD")]
        return [word for each in found if each for word in each.argv]

    @property
    def healthcheck(self) -> list[str]:
        """The command that says whether it is well."""
        found = self.last("HEALTHCHECK")
        return found.argv if found else []


def read_dockerfile(path: Path) -> list[Stage]:
    """The file's stages in order. Raises NotUnderstood."""
    stages: list[Stage] = []
    for word, text in _instructions(path.read_text()):
        if word not in _KNOWN:
            raise NotUnderstood(f"{path.name}: {word}")
        if word == "FROM":
            base, *named = text.split()
            stages.append(Stage(base, named[1] if named else str(len(stages))))
        else:
            stages[-1].instructions.append(Instruction(word, text))
    return stages


def _instructions(text: str) -> Iterator[tuple[str, str]]:
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        word, _, rest = line.strip().partition(" ")
        if word:
            yield word.upper(), " ".join(rest.split("\n")).strip()
