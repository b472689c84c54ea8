"""The provider's own books: one line per billed request. Nobody but the provider writes them."""

import os
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec


class Finish(StrEnum):
    """Why the provider stopped generating."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    CUT = "cut"
    ERROR = "error"


class Tokens(msgspec.Struct, frozen=True):
    """What one request used, in disjoint parts."""

    input: int = 0
    cached_input: int = 0
    cache_write: int = 0
    cache_write_1h: int = 0
    audio_input: int = 0
    image_input: int = 0
    output: int = 0
    reasoning: int = 0
    audio_output: int = 0

    @property
    def completion(self) -> int:
        """All that came out."""
        return self.output + self.reasoning + self.audio_output

    @property
    def prompt(self) -> int:
        """All that went in."""
        whole: int = sum(msgspec.structs.astuple(self))
        return whole - self.completion


class Line(msgspec.Struct, frozen=True):
    """One billed request."""

    provider_request_id: str
    client_request_id: str | None
    tokens: Tokens
    finish: Finish
    model: str
    stream: bool


class Invoice:
    """An append-only file of JSON lines; a line is with the operating system when `write` returns, or on disk."""

    def __init__(self, path: Path, *, fsync: bool = False) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._fsync = fsync

    def write(self, line: Line) -> None:
        """Append the line whole: one write of less than a page."""
        os.write(self._file, msgspec.json.encode(line) + b"\n")
        if self._fsync:
            os.fsync(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        os.close(self._file)


def read_invoice(path: Path) -> list[Line]:
    """All lines of an invoice, in the order in which they were billed."""
    return [msgspec.json.decode(line, type=Line) for line in path.read_bytes().splitlines()]
