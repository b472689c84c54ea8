"""The declarative file: sections of named things, as YAML or JSON. What a thing means is its kind's to say."""

import json
import math
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import yaml
from pydantic import BaseModel, TypeAdapter

from governance.errors import TooLarge
from governance.wire import Name
from kernel import InvalidDeclaration

FILE_BYTES_MAX = 1_048_576
_INTEGER_MAX = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Declaration:
    """What an operator wants to be in force. `body` holds JSON values that nobody has checked yet."""

    kind: str
    name: str
    body: Mapping[str, Any]


def plural(kind: str) -> str:
    """The section of a file that holds this kind: policy, policies; alias, aliases; app, apps."""
    if kind.endswith("y"):
        return kind[:-1] + "ies"
    return kind + ("es" if kind.endswith("s") else "s")


def schema(kinds: Mapping[str, type[BaseModel]]) -> dict[str, Any]:
    """The file as a JSON schema: a section for each kind, whose things have their name beside what the kind has."""
    name = TypeAdapter(Name).json_schema()
    sections: dict[str, Any] = {}
    for kind, shape in kinds.items():
        thing = shape.model_json_schema()
        thing["properties"] = {"name": name, **thing["properties"]}
        thing["required"] = ["name", *thing.get("required", ())]
        sections[plural(kind)] = {"type": "array", "items": thing}
    return {"title": "Declarations", "type": ["object", "null"], "properties": sections, "additionalProperties": False}


def parse(text: str, kinds: Iterable[str]) -> list[Declaration]:
    """The declarations of a file, in its order. Raises InvalidDeclaration with every fault's section and index.

    Anchors, aliases, tags beyond JSON's types and repeated keys are refused; dates stay text. Slow for large files
    (seconds for the largest): call it in a thread.
    """
    if len(text.encode(errors="replace")) > FILE_BYTES_MAX:
        raise TooLarge(f"A declarative file has at most {FILE_BYTES_MAX} bytes; split it.")
    content = _content(text)
    if content is None:
        return []
    if not isinstance(content, dict):
        raise InvalidDeclaration("The file is a mapping of sections, such as `departments:` and `apps:`.")
    sections = {plural(kind): kind for kind in kinds}
    faults: list[str] = []
    found = [
        declaration
        for section, entries in content.items()
        for declaration in _section(section, entries, sections=sections, faults=faults)
    ]
    if faults:
        raise InvalidDeclaration("\n".join(faults))
    return found


def render(declarations: Iterable[Declaration]) -> str:
    """The file, as YAML, that `parse` reads back."""
    content: dict[str, list[dict[str, Any]]] = {}
    for declaration in declarations:
        content.setdefault(plural(declaration.kind), []).append({"name": declaration.name, **declaration.body})
    dumped: str = yaml.dump(content, Dumper=_Plain, sort_keys=False, allow_unicode=True, width=120)
    return dumped


def _section(section: str, entries: object, *, sections: Mapping[str, str], faults: list[str]) -> Iterator[Declaration]:
    kind = sections.get(section)
    if kind is None:
        faults.append(f"section '{section[:128]}' is unknown; the sections are {', '.join(sorted(sections))}")
    elif not isinstance(entries, list):
        faults.append(f"section '{section}' is a list of things that have a name")
    else:
        for index, entry in enumerate(entries):
            if not isinstance(entry, dict):
                faults.append(f"{section}[{index}] is a mapping with a name")
            elif not isinstance(name := entry.get("name"), str):
                faults.append(f"{section}[{index}].name is missing or not text; quote it if it looks like a number")
            else:
                yield Declaration(kind, name, {field: value for field, value in entry.items() if field != "name"})


def _content(text: str) -> object:
    try:
        content = _json(text) if text.lstrip().startswith("{") else _yaml(text)
        _check_plain(content)
    except yaml.MarkedYAMLError as fault:
        line = fault.problem_mark.line + 1 if fault.problem_mark else 0
        raise InvalidDeclaration(f"The file is not valid YAML at line {line}: {fault.problem}.") from fault
    except LookupError as fault:  # PyYAML's own, of a text that its tag says is a number or a truth
        raise InvalidDeclaration("A value is not what its tag says; leave the tag out.") from fault
    except (yaml.YAMLError, ValueError) as fault:
        raise InvalidDeclaration(f"The file cannot be read: {fault}.") from fault
    except RecursionError as fault:
        raise InvalidDeclaration("The file is nested too deeply.") from fault
    return content


def _json(text: str) -> object:
    try:
        return json.loads(text, object_pairs_hook=_once)
    except json.JSONDecodeError:
        return _yaml(text)  # A YAML file may begin with a brace too.


def _yaml(text: str) -> object:
    return yaml.load(text, Loader=_Strict)  # noqa: S506 (a stricter SafeLoader)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"key '{key[:128]}' stands twice in one mapping")
        found[key] = value
    return found


def _check_plain(value: object) -> None:
    """Raises ValueError for anything that JSON in a 64-bit world cannot hold."""
    match value:
        case None | bool():
            pass
        case str():
            value.encode()  # A lone surrogate raises UnicodeEncodeError, which is a ValueError.
        case int():
            if not -_INTEGER_MAX <= value <= _INTEGER_MAX:
                raise ValueError("a whole number does not fit 64 bits")
        case float():
            if not math.isfinite(value):
                raise ValueError("a number is not finite")
        case list():
            for each in value:
                _check_plain(each)
        case dict():
            for key, each in value.items():
                if not isinstance(key, str):
                    raise ValueError(f"key {str(key)[:128]} is not text; quote it")  # noqa: TRY004 (one family)
                _check_plain(key)
                _check_plain(each)
        case _:
            raise ValueError(f"a value is of type {type(value).__name__}; write text, numbers, lists and mappings")


class _Strict(yaml.SafeLoader):
    """SafeLoader without aliases, repeated keys and dates: what is written is what is meant, and as large."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call] # PyYAML's scanner has no types
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            self._fail("anchors and aliases are not supported, write it out", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:  # noqa: FBT001, FBT002 (theirs)
        seen: set[str] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self._fail("a key is text", key_node.start_mark)
            if key_node.value in seen:
                self._fail(f"key '{key_node.value[:128]}' stands twice in one mapping", key_node.start_mark)
            seen.add(key_node.value)
        return super().construct_mapping(node, deep=deep)

    @staticmethod
    def _fail(problem: str, mark: yaml.Mark) -> NoReturn:
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


# Dates stay text; PyYAML's own would fail with no error of its own where a tag makes one of what is none.
_Strict.yaml_constructors = {
    tag: make for tag, make in yaml.SafeLoader.yaml_constructors.items() if not (tag or "").endswith(":timestamp")
}
_Strict.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if not tag.endswith(":timestamp")]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


class _Plain(yaml.SafeDumper):
    """SafeDumper that writes every value out, since the loader reads no aliases."""

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002 (its signature)
        return True

    def represent_text(self, text: str) -> yaml.ScalarNode:
        """Quoted with escapes where it holds a line's end: beyond LF those are read back as spaces otherwise."""
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"')


_Plain.add_representer(str, _Plain.represent_text)
