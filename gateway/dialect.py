"""OpenAI's chat wire as callers speak it: a body and headers in, a `ChatRequest` or a 400 that names the field.

It reads the few facts the gate needs and keeps every other member as the bytes it was. Inbound only: what callers
are told is edge.py's, what providers are asked and answer is router/openai.py's.
"""

import re
from codecs import getincrementaldecoder
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from gateway.errors import InvalidRequest, UnsupportedEncoding
from kernel import NO_HINTS, ChatRequest, DataClass, Hints

_CHOICES_MAX = 128
_MESSAGES_MAX = 20_000
_PARTS_MAX = 20_000
_TOO_MANY = f"messages must hold 1 to {_MESSAGES_MAX} messages and at most {_PARTS_MAX} parts together."
_NO_JSON = "The body is not valid JSON in UTF-8; send one JSON object."
# What is beside the members that may be long. Smaller bodies are not measured: they cannot hold more.
_OTHER_BYTES_MAX = 256 * 1024
# In `messages`: parts, calls of tools and what is nested in them count as well.
_OBJECTS_MAX = 100_000
_MANY_OBJECTS = re.compile(rb'(?:[^"{]*+(?:"(?:[^"\\]++|\\.)*+"[^"{]*+)*+\{){%d}' % (_OBJECTS_MAX + 1), re.DOTALL)
# A member's name with what is around it, and the end of an object.
_NAME = re.compile(rb'[ \t\r\n]*+[{,][ \t\r\n]*+"(?:[^"\\]++|\\.)*+"[ \t\r\n]*+:[ \t\r\n]*+', re.DOTALL)
_END = re.compile(rb"[ \t\r\n]*+}[ \t\r\n]*+")
_SLICE_BYTES = 64 * 1024
_MODEL_CHARACTERS_MAX = 256
_LATENCY_MS_MAX = 24 * 3600 * 1000
_TAGS_MAX = 32
_TAG_CHARACTERS_MAX = 128
# What would make an answer cost more than its hold, or let caller text be a program.
_NOT_OFFERED = MappingProxyType(
    {
        "web_search_options": "its fees per call cannot be priced",
        "prediction": "rejected predictions cost more than the answer's ceiling",
        "best_of": "use n, which is paid for",
        "chat_template": "templates belong to the model",
    }
)
_TIERS = frozenset({"auto", "default"})
# What providers add to a prompt by themselves: role marks and instructions for tools. More is the model's to declare.
_OVERHEAD_TOKENS = 8
_OVERHEAD_TOKENS_MESSAGE = 8
_OVERHEAD_TOKENS_TOOLS = 1024
_NOT_PROMPT = frozenset({"model", "messages", "stream", "stream_options", "metadata", "user", "store", "penstock"})
_HINT_HEADERS = {
    "use_case": "x-use-case",
    "data_class": "x-data-class",
    "task_type": "x-task-type",
    "max_latency_ms": "x-max-latency-ms",
    "quality_level": "x-quality-level",
}


class _TextPart(Struct, forbid_unknown_fields=True):
    """A part that is certainly text: any other member may name an image, a file or a sound."""

    type: Literal["text", "refusal", "input_text"]
    text: Raw = Raw()
    refusal: Raw = Raw()
    cache_control: Raw = Raw()


class _TextMessage(Struct):
    role: str
    content: str | list[_TextPart] | None = None


class _Part(Struct):
    """A part of any kind: nothing of it is made into an object, however much it holds."""


class _Message(Struct):
    role: str
    content: str | list[_Part] | None = None


class _StreamOptions(Struct):
    include_usage: bool = False


class _Facts(Struct):
    """The members of a body that the gate reads, with their types; but for its messages, which may be long."""

    model: str
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    n: int | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    modalities: list[str] | None = None
    service_tier: str | None = None
    metadata: dict[str, str] | None = None
    penstock: dict[str, Any] | UnsetType = UNSET


class _Long(Struct):
    """The members that may be as long as a body; the others are skipped without making anything of them."""

    messages: Raw = Raw()
    tools: Raw = Raw()
    functions: Raw = Raw()
    response_format: Raw = Raw()


_FACTS = frozenset(_Facts.__struct_fields__)
_members = msgspec.json.Decoder(dict[str, Raw])
_facts = msgspec.json.Decoder(_Facts)
_long = msgspec.json.Decoder(_Long)
_texts = msgspec.json.Decoder(list[_TextMessage])
_messages = msgspec.json.Decoder(list[_Message])


def read_chat(body: bytes, headers: Mapping[str, str]) -> ChatRequest:
    """The request in `body`. Raises InvalidRequest naming the first field at fault, or UnsupportedEncoding.

    headers: names in lower case.
    """
    if (coding := headers.get("content-encoding")) is not None and coding.strip().lower() != "identity":
        raise UnsupportedEncoding("The body has a Content-Encoding; send it without one.")
    try:
        _require_utf8(body)
        if len(body) > _OTHER_BYTES_MAX:
            _require_known_lengths(body)
        fields = _members.decode(body)
        told = fields.get("messages")
        facts = _facts.decode(msgspec.json.encode({name: raw for name, raw in fields.items() if name in _FACTS}))
    except msgspec.ValidationError as wrong:
        raise InvalidRequest(_explain(str(wrong)), param=_param(str(wrong))) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InvalidRequest(_NO_JSON) from None
    if _names_one_twice(body, fields):
        raise InvalidRequest("The body names a member twice; name each once.")
    if told is None:
        raise InvalidRequest("messages is missing; send a list of messages.", param="messages")
    _check(facts)
    if len(body) > _OBJECTS_MAX and body.count(b"{") > _OBJECTS_MAX and _MANY_OBJECTS.match(told) is not None:
        # So many that only to count them would take more memory than the body did.
        raise InvalidRequest(_TOO_MANY, param="messages")
    count, is_text = _read_messages(told)
    for name in _NOT_OFFERED.keys() & fields.keys():
        raise InvalidRequest(f"{name} is not offered: {_NOT_OFFERED[name]}.", param=name)
    hints = read_hints(facts, headers)
    # Hints are ours; content is not kept by providers either; another tier has another price.
    fields = {name: raw for name, raw in fields.items() if name not in {"penstock", "store"}}
    if facts.service_tier is not None:
        fields["service_tier"] = Raw(b'"default"')
    return ChatRequest(
        model=facts.model,
        fields=fields,
        stream=bool(facts.stream),
        include_usage=facts.stream_options is not None and facts.stream_options.include_usage,
        choices=1 if facts.n is None else facts.n,
        input_tokens_max=_input_tokens_max(facts, fields, count) if is_text else None,
        output_tokens_max=facts.max_tokens if facts.max_completion_tokens is None else facts.max_completion_tokens,
        hints=hints,
        size=len(body),
    )


def read_hints(facts: _Facts, headers: Mapping[str, str]) -> Hints:
    """What the caller said beside the request: header first, then `penstock` in the body, then `metadata`.

    Of several data classes the highest counts, wherever it was said: a hint raises, none lowers.
    """
    if facts.metadata is None and facts.penstock is UNSET and headers.keys().isdisjoint(_HINT_HEADERS.values()):
        return NO_HINTS
    own = facts.penstock if isinstance(facts.penstock, dict) else {}
    if own.keys() - _HINT_HEADERS.keys() - {"tags"}:
        raise InvalidRequest(
            f"penstock has a member that is not a hint; known are {', '.join([*_HINT_HEADERS, 'tags'])}.",
            param="penstock",
        )
    sources = [
        {name: (facts.metadata or {})[name] for name in _HINT_HEADERS if name in (facts.metadata or {})},
        own,
        {name: headers[header] for name, header in _HINT_HEADERS.items() if header in headers},
    ]
    said = {name: word for source in sources for name, word in source.items()}
    try:
        return Hints(
            use_case=_word(said, "use_case"),
            data_class=_highest(source["data_class"] for source in sources if "data_class" in source),
            task_type=_word(said, "task_type"),
            max_latency_ms=_latency_ms(said["max_latency_ms"]) if "max_latency_ms" in said else None,
            quality_level=_word(said, "quality_level"),
            tags=_tags(said.get("tags", ())),
        )
    except (KeyError, AttributeError):
        raise InvalidRequest(
            "data_class (header X-Data-Class) must be one of public, internal, confidential, restricted.",
            param="data_class",
        ) from None
    except (ValueError, TypeError, OverflowError):
        raise InvalidRequest(
            f"max_latency_ms must be a whole number from 1 to {_LATENCY_MS_MAX} and tags a list of at most {_TAGS_MAX} "
            f"strings of at most {_TAG_CHARACTERS_MAX} characters.",
            param="penstock",
        ) from None


def _latency_ms(said: str | float) -> int:
    latency_ms = int(said)
    if not 1 <= latency_ms <= _LATENCY_MS_MAX:
        raise ValueError
    return latency_ms


def _tags(said: object) -> tuple[str, ...]:
    tags = msgspec.convert(said, tuple[str, ...])
    if len(tags) > _TAGS_MAX or any(len(tag) > _TAG_CHARACTERS_MAX for tag in tags):
        raise ValueError
    return tags


def _highest(words: Iterable[str]) -> DataClass | None:
    """The highest of the classes named; a repeated header comes as a list with commas."""
    return max((DataClass.parse(word.strip()) for said in words for word in said.split(",")), default=None)


def _word(said: Mapping[str, Any], name: str) -> str | None:
    word = said.get(name)
    if word is not None and (not isinstance(word, str) or not 0 < len(word) <= 128):  # noqa: PLR2004 - as in the text
        raise InvalidRequest(f"{name} must be a string of 1 to 128 characters.", param=name)
    return word


def _check(facts: _Facts) -> None:
    if not 0 < len(facts.model) <= _MODEL_CHARACTERS_MAX:
        raise InvalidRequest(
            f"model must have 1 to {_MODEL_CHARACTERS_MAX} characters; name a model or an alias.", param="model"
        )
    if facts.n is not None and not 1 <= facts.n <= _CHOICES_MAX:
        raise InvalidRequest(f"n must be between 1 and {_CHOICES_MAX}.", param="n")
    if facts.service_tier is not None and facts.service_tier not in _TIERS:
        raise InvalidRequest("service_tier must be auto or default; other tiers have no price.", param="service_tier")
    for name in ("max_tokens", "max_completion_tokens"):
        ceiling = getattr(facts, name)
        if ceiling is not None and ceiling < 1:
            raise InvalidRequest(f"{name} must be at least 1.", param=name)


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
    known = sum(len(memoryview(raw)) for raw in (long.messages, long.tools, long.functions, long.response_format))
    if len(body) - known > _OTHER_BYTES_MAX:
        raise InvalidRequest(
            f"Beside messages, tools and response_format a body may hold at most {_OTHER_BYTES_MAX} bytes."
        )


def _names_one_twice(body: bytes, fields: Mapping[str, Raw]) -> bool:
    """Whether the body names a member twice, of which `fields` holds one: nobody knows which of them is meant."""
    if len(body) == 1 + sum(len(name) + len(memoryview(raw)) + 4 for name, raw in fields.items()):
        return False  # not a byte more than these members take
    at = 0
    for raw in fields.values():  # in the body's order, if each is there once
        value, name = bytes(raw), _NAME.match(body, at)
        if name is None or not body.startswith(value, name.end()):
            return True
        at = name.end() + len(value)
    return _END.fullmatch(body, at) is None


def _read_messages(told: Raw) -> tuple[int, bool]:
    """How many messages there are, and whether all of them are certainly text.

    Raises InvalidRequest naming the first one at fault. Their texts are never taken apart: nothing here may take much
    longer than reading the bytes once.
    """
    try:
        messages: Sequence[_TextMessage | _Message] = _texts.decode(told)
        is_text = True
    except msgspec.ValidationError:
        messages, is_text = _read_media(told), False
    parts = sum(len(message.content) for message in messages if isinstance(message.content, list))
    if not 0 < len(messages) <= _MESSAGES_MAX or parts > _PARTS_MAX:
        raise InvalidRequest(_TOO_MANY, param="messages")
    return len(messages), is_text


def _read_media(told: Raw) -> list[_Message]:
    try:
        return _messages.decode(told)
    except msgspec.ValidationError as wrong:
        member = (_param(str(wrong)) or "").removeprefix("messages")
        raise InvalidRequest(_explain(str(wrong)), param=f"messages{member}") from None


def _input_tokens_max(facts: _Facts, fields: Mapping[str, Raw], messages: int) -> int | None:
    """A bound no byte-level tokenizer exceeds: a token is at least one byte of UTF-8, and JSON is never shorter."""
    if facts.modalities and facts.modalities != ["text"]:
        return None
    total = _OVERHEAD_TOKENS + len(memoryview(fields["messages"])) + messages * _OVERHEAD_TOKENS_MESSAGE
    total += sum(len(memoryview(raw)) for name, raw in fields.items() if name not in _NOT_PROMPT)
    return total + (_OVERHEAD_TOKENS_TOOLS if "tools" in fields or "functions" in fields else 0)


def _param(reason: str) -> str | None:
    """The path in msgspec's message, without its root: `$.metadata[...]` is `metadata[]`; of messages it is `$[0]`."""
    path = reason.rpartition(" - at `$")[2].rstrip("`").replace("[...]", "[]") if " - at `$" in reason else ""
    if "missing required field" in reason:
        path += "." + reason.split("`")[1]
    return path.removeprefix(".") or None


def _explain(reason: str) -> str:
    """Msgspec says what was expected and what it got, never the value itself."""
    return reason.replace("`$.", "`").replace("`$[", "`messages[").replace(" - at `", " in `") + "."
