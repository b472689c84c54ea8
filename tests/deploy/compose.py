"""A compose file as `docker compose config` reads it: YAML first, then variables as compose's specification has them.

It checks nothing else.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OPERATORS = (":-", ":?", ":+", "-", "?", "+")


class Unset(Exception):
    """A variable without which nothing starts; the message is the file's own."""


class Malformed(Exception):
    """What compose would not understand either."""


@dataclass(frozen=True, slots=True)
class Variable:
    """One place where a variable stands. operator is `` for a bare one, which compose would make empty."""

    name: str
    operator: str
    word: str


def read_compose(path: Path) -> dict[str, Any]:
    """The file, with its anchors resolved and its variables as they stand."""
    read: dict[str, Any] = yaml.safe_load(path.read_text())
    return read


def variables(tree: object) -> Iterator[Variable]:
    """Every variable in it, those in defaults included."""
    for text in _texts(tree):
        yield from (part for part in _everywhere(text) if isinstance(part, Variable))


def interpolated(tree: Any, given: Mapping[str, str]) -> Any:
    """The same with every variable replaced. Raises Unset with the message of the first that is missing."""
    if isinstance(tree, dict):
        return {name: interpolated(value, given) for name, value in tree.items()}
    if isinstance(tree, list):
        return [interpolated(value, given) for value in tree]
    return _filled(tree, given) if isinstance(tree, str) else tree


def _filled(text: str, given: Mapping[str, str]) -> str:
    return "".join(part if isinstance(part, str) else _value(part, given) for part in _parts(text))


def _value(variable: Variable, given: Mapping[str, str]) -> str:
    value = given.get(variable.name)
    is_there = bool(value) if variable.operator.startswith(":") else value is not None
    match variable.operator[-1:]:
        case "-":
            return value or "" if is_there else _filled(variable.word, given)
        case "?":
            if not is_there:
                raise Unset(f"required variable {variable.name} is missing a value: {_filled(variable.word, given)}")
        case "+":
            return _filled(variable.word, given) if is_there else ""
    return value or ""


def _everywhere(text: str) -> Iterator[str | Variable]:
    for part in _parts(text):
        yield part
        if isinstance(part, Variable):
            yield from _everywhere(part.word)


def _parts(text: str) -> Iterator[str | Variable]:
    """The text cut into what stands for itself and what is a variable; `$$` is a dollar."""
    while text:
        before, dollar, text = text.partition("$")
        yield before
        if not dollar:
            return
        if text.startswith("$"):
            yield "$"
            text = text[1:]
        elif text.startswith("{"):
            inside, text = _braced(text)
            yield _variable(inside)
        elif found := _NAME.match(text):
            yield Variable(found[0], "", "")
            text = text[found.end() :]
        else:
            raise Malformed(f"a single dollar before {text[:20]!r}: write $$")


def _braced(text: str) -> tuple[str, str]:
    depth = 0
    for at, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return text[1:at], text[at + 1 :]
    raise Malformed(f"no closing brace after ${text[:20]}")


def _variable(inside: str) -> Variable:
    found = _NAME.match(inside)
    if found is None:
        raise Malformed(f"${{{inside}}} names no variable")
    rest = inside[found.end() :]
    operator = next((each for each in _OPERATORS if rest.startswith(each)), "")
    if rest and not operator:
        raise Malformed(f"${{{inside}}}: nothing compose knows follows the name")
    return Variable(found[0], operator, rest[len(operator) :])


def _texts(tree: object) -> Iterator[str]:
    if isinstance(tree, dict):
        for value in tree.values():
            yield from _texts(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _texts(value)
    elif isinstance(tree, str):
        yield tree
