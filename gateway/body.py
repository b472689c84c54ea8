"""A JSON body from a caller, taken apart into its members before anything is believed of it.

Every door opens its bodies here: encoding, characters, size and names are checked once, for all wires. What the
members mean is the doors' to say.
"""

import re
from codecs import getincrementaldecoder
from collections.abc import Mapping
from typing import TypeVar

import msgspec
from msgspec import Raw, Struct

from gateway.errors import InvalidRequest, UnsupportedEncoding

Facts = TypeVar("Facts", bound=Struct)

_NO_JSON = "The body is not valid JSON in UTF-8; send one JSON object."
# What is beside the members that may be long. Smaller bodies are not measured: they cannot hold more.
_OTHER_BYTES_MAX = 256 * 1024
# A member's name with what is around it, and the end of an object.
_NAME = re.compile(rb'[ \t\r\n]*+[{,][ \t\r\n]*+"(?:[^"\\]++|\\.)*+"[ \t\r\n]*+:[ \t\r\n]*+', re.DOTALL)
_END = re.compile(rb"[ \t\r\n]*+}[ \t\r\n]*+")
_SLICE_BYTES = 64 * 1024
# What is nested in a member counts as well; braces within a text do not.
_OBJECTS_MAX = 100_000
_BRACES = rb'(?:[^"{]*+(?:"(?:[^"\\]++|\\.)*+"[^"{]*+)*+\{){%d}'
_MANY_OBJECTS = re.compile(_BRACES % (_OBJECTS_MAX + 1), re.DOTALL)


class Opened(Struct, frozen=True):
    """A body taken apart.

    headers: of its request, names in lower case. size: of the body, in bytes. braces: so many open in it, at most.
    """

    fields: dict[str, Raw]
    headers: Mapping[str, str]
    size: int
    braces: int

    def holds_too_much(self, name: str) -> bool:
        """Whether the member holds so many objects that to count them would take more memory than the body did."""
        return self.braces > _OBJECTS_MAX and _MANY_OBJECTS.match(self.fields.get(name, Raw())) is not None


class _Long(Struct):
    """The members that may be as long as a body; the others are skipped without making anything of them."""

    messages: Raw = Raw()
    system: Raw = Raw()
    tools: Raw = Raw()
    functions: Raw = Raw()
    response_format: Raw = Raw()
    prompt: Raw = Raw()
    input: Raw = Raw()


_long = msgspec.json.Decoder(_Long)
_members = msgspec.json.Decoder(dict[str, Raw])


def open_body(body: bytes, headers: Mapping[str, str]) -> Opened:
    """The body's members, each the bytes that it was. Raises InvalidRequest or UnsupportedEncoding.

    headers: names in lower case.
    """
    if (coding := headers.get("content-encoding")) is not None and coding.strip().lower() != "identity":
        raise UnsupportedEncoding("The body has a Content-Encoding; send it without one.")
    try:
        _require_utf8(body)
        if len(body) > _OTHER_BYTES_MAX:
            _require_known_lengths(body)
        members = _members.decode(body)
    except msgspec.ValidationError as wrong:
        raise wrong_member(wrong) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InvalidRequest(_NO_JSON) from None
    if _names_one_twice(body, members):
        raise InvalidRequest("The body names a member twice; name each once.")
    return Opened(members, headers, len(body), body.count(b"{") if len(body) > _OBJECTS_MAX else 0)


def read_facts(fields: Mapping[str, Raw], decoder: msgspec.json.Decoder[Facts], names: frozenset[str]) -> Facts:
    """The members of these names, with their types. Raises InvalidRequest naming the first one at fault."""
    told = msgspec.json.encode({name: raw for name, raw in fields.items() if name in names})
    try:
        return decoder.decode(told)
    except msgspec.ValidationError as wrong:
        raise wrong_member(wrong) from None
    except (msgspec.DecodeError, RecursionError):
        raise InvalidRequest(_NO_JSON) from None


def wrong_member(wrong: msgspec.ValidationError, within: str = "") -> InvalidRequest:
    """What the caller is told of a member of the wrong type: where it is and what was expected, never its value.

    within: the member that was read by itself.
    """
    reason = str(wrong)
    param = f"{within}{_param(reason) or ''}".removeprefix(".")
    told = reason.replace("`$.", "`").replace("`$[", f"`{within}[").replace(" - at `", " in `")
    return InvalidRequest(f"{told}.", param=param or None)


def _require_utf8(body: bytes) -> None:
    """Raise UnicodeDecodeError, for what is only handed on is never looked at. Takes no memory of the body's size."""
    if not body.isascii():
        decode = getincrementaldecoder("utf-8")().decode
        for start in range(0, len(body), _SLICE_BYTES):
            decode(body[start : start + _SLICE_BYTES])
        decode(b"", final=True)


def _require_known_lengths(body: bytes) -> None:
    """Raise InvalidRequest for a long body whose length is not where it may be, before anything is made of it."""
    long = _long.decode(body)
    known = sum(len(memoryview(getattr(long, name))) for name in _Long.__struct_fields__)
    if len(body) - known > _OTHER_BYTES_MAX:
        raise InvalidRequest(
            f"Beside {', '.join(_Long.__struct_fields__)} a body may hold at most {_OTHER_BYTES_MAX} bytes."
        )


def _names_one_twice(body: bytes, members: Mapping[str, Raw]) -> bool:
    """Whether the body names a member twice, of which `members` holds one: nobody knows which of them is meant."""
    if len(body) == 1 + sum(len(name) + len(memoryview(raw)) + 4 for name, raw in members.items()):
        return False  # not a byte more than these members take
    at = 0
    for raw in members.values():  # in the body's order, if each is there once
        value, name = bytes(raw), _NAME.match(body, at)
        if name is None or not body.startswith(value, name.end()):
            return True
        at = name.end() + len(value)
    return _END.fullmatch(body, at) is None


def _param(reason: str) -> str | None:
    """The path in msgspec's message, without its root: `$.metadata[...]` is `.metadata[]`, `$[0]` is `[0]`."""
    path = reason.rpartition(" - at `$")[2].rstrip("`").replace("[...]", "[]") if " - at `$" in reason else ""
    if "missing required field" in reason:
        path += "." + reason.split("`")[1]
    return path or None
