"""Anthropic's wire as callers speak it: a body and headers in, a `ModelRequest` or a 400 that names the field.

As dialect.py for OpenAI's: the facts that the gate needs are read, the rest stays the bytes that it was.
"""

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from gateway.body import Opened, open_body, read_facts, wrong_member
from gateway.dialect import require_model
from gateway.errors import InvalidRequest
from gateway.hints import read_hints
from kernel import ModelRequest, Operation

MESSAGES_MAX = 20_000
_PARTS_MAX = 20_000
_TOO_MANY = f"messages must hold 1 to {MESSAGES_MAX} messages and at most {_PARTS_MAX} blocks together."
_OBJECTS_MAX = 100_000
_VERSION = "2023-06-01"
_HANDED_ON = ("anthropic-version", "anthropic-beta")
HEADER_CHARACTERS_MAX = 2048
# What the provider bills beside tokens, or at other rates than those that are declared.
_NOT_OFFERED = {
    "mcp_servers": "what servers do for the provider cannot be priced",
    "container": "its time cannot be priced",
    "inference_geo": "it changes the price",
    "speed": "it changes the price",
}
# Tools that the caller carries out; all others run at the provider, for a fee.
OWN_TOOLS = ("custom", "bash_", "text_editor_", "computer_", "memory_")
_OVERHEAD_TOKENS = 8
_OVERHEAD_TOKENS_MESSAGE = 8
_OVERHEAD_TOKENS_TOOLS = 1024
_NOT_PROMPT = frozenset({"model", "max_tokens", "stream", "metadata", "penstock", "service_tier"})


class _Text(Struct, tag="text"):
    """A block that is certainly text. Of this and the others nothing but their kind is made into objects."""


class _Thinking(Struct, tag="thinking"):
    pass


class _Redacted(Struct, tag="redacted_thinking"):
    pass


class _ToolUse(Struct, tag="tool_use"):
    pass


class _ToolResult(Struct, tag="tool_result"):
    """What a tool gave back may hold pictures, and is text only if it says so."""

    content: str | list[_Text] | None = None


class _TextMessage(Struct):
    role: str
    content: str | list[_Text | _Thinking | _Redacted | _ToolUse | _ToolResult]


class _Block(Struct):
    """A block of any kind."""


class _Message(Struct):
    role: str
    content: str | list[_Block]


class _Tool(Struct):
    type: str | None = None


class Facts(Struct):
    """The members that the gate reads, with their types; but for its messages."""

    model: str
    max_tokens: int | None = None
    stream: bool | None = None
    metadata: dict[str, str | None] | None = None
    penstock: dict[str, Any] | UnsetType = UNSET
    tools: list[_Tool] | None = None


_FACTS = frozenset(Facts.__struct_fields__)
_facts = msgspec.json.Decoder(Facts)
_texts = msgspec.json.Decoder(list[_TextMessage])
_messages = msgspec.json.Decoder(list[_Message])


def read_message(body: bytes, headers: Mapping[str, str]) -> ModelRequest:
    """The request for a message in `body`. Raises InvalidRequest naming the field at fault, or UnsupportedEncoding.

    headers: names in lower case.
    """
    opened = open_body(body, headers)
    facts, bound = _read(opened)
    if facts.max_tokens is None or facts.max_tokens < 1:
        raise InvalidRequest("max_tokens must be a whole number of at least 1.", param="max_tokens")
    return _request(opened, facts, Operation.MESSAGES, bound)


def read_count(body: bytes, headers: Mapping[str, str]) -> ModelRequest:
    """The question how many tokens a message would have; raises and takes as `read_message` does. It costs nothing."""
    opened = open_body(body, headers)
    facts, _ = _read(opened)
    if facts.stream:
        raise InvalidRequest("stream is not offered: a count comes at once.", param="stream")
    return _request(opened, facts, Operation.COUNT_TOKENS, 0).limited(0)


def _read(opened: Opened) -> tuple[Facts, int | None]:
    """The facts, and a bound on the prompt's tokens as OpenAI's doors have it; None where not all is text."""
    fields = opened.fields
    told = fields.get("messages")
    if told is None:
        raise InvalidRequest("messages is missing; send a list of messages.", param="messages")
    if opened.size > _OBJECTS_MAX and bytes(told).count(b"{") > _OBJECTS_MAX:
        raise InvalidRequest(_TOO_MANY, param="messages")
    facts = read_facts(fields, _facts, _FACTS)
    require_model(facts.model)
    for name in _NOT_OFFERED.keys() & fields.keys():
        raise InvalidRequest(f"{name} is not offered: {_NOT_OFFERED[name]}.", param=name)
    for number, tool in enumerate(facts.tools or ()):
        if tool.type is not None and not tool.type.startswith(OWN_TOOLS):
            raise InvalidRequest(
                f"tools[{number}] runs at the provider, whose fees per call cannot be priced; use tools of your own.",
                param=f"tools[{number}].type",
            )
    count, is_text = _read_messages(told)
    bound = _OVERHEAD_TOKENS + count * _OVERHEAD_TOKENS_MESSAGE
    bound += sum(len(memoryview(raw)) for name, raw in fields.items() if name not in _NOT_PROMPT)
    bound += _OVERHEAD_TOKENS_TOOLS if facts.tools else 0
    return facts, bound if is_text else None


def _request(opened: Opened, facts: Facts, operation: Operation, input_tokens_max: int | None) -> ModelRequest:
    fields, headers = opened.fields, opened.headers
    hints = read_hints(headers, facts.metadata, facts.penstock)
    fields.pop("penstock", None)
    if "service_tier" in fields:
        fields["service_tier"] = Raw(b'"standard_only"')  # another tier has another price
    return ModelRequest(
        model=facts.model,
        fields=fields,
        stream=bool(facts.stream),
        include_usage=True,
        input_tokens_max=input_tokens_max,
        output_tokens_max=facts.max_tokens,
        hints=hints,
        size=opened.size,
        operation=operation,
        headers={"anthropic-version": _VERSION, **_handed_on(headers)},
    )


def _handed_on(headers: Mapping[str, str]) -> dict[str, str]:
    told = {name: headers[name] for name in _HANDED_ON if name in headers}
    for name, value in told.items():
        if len(value) > HEADER_CHARACTERS_MAX or not (value.isascii() and value.isprintable()):
            raise InvalidRequest(f"The header {name} must be printable ASCII of at most {HEADER_CHARACTERS_MAX} bytes.")
    return told


def _read_messages(told: Raw) -> tuple[int, bool]:
    """How many messages there are, and whether all of them are certainly text. Raises InvalidRequest."""
    is_text = True
    try:
        messages: list[_TextMessage] | list[_Message] = _texts.decode(told)
    except msgspec.ValidationError:
        is_text = False
        try:
            messages = _messages.decode(told)
        except msgspec.ValidationError as wrong:
            raise wrong_member(wrong, "messages") from None
    blocks = sum(len(message.content) for message in messages if isinstance(message.content, list))
    if not 0 < len(messages) <= MESSAGES_MAX or blocks > _PARTS_MAX:
        raise InvalidRequest(_TOO_MANY, param="messages")
    return len(messages), is_text
