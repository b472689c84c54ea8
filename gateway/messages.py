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
from gateway.hints import HINTS, read_hints
from kernel import ModelRequest, Operation

MESSAGES_MAX = 20_000
_PARTS_MAX = 20_000
_TOO_MANY = f"messages must hold 1 to {MESSAGES_MAX} messages and at most {_PARTS_MAX} blocks together."
_TOOLS_MAX = 2_000
_VERSION = "2023-06-01"
_HANDED_ON = ("anthropic-version", "anthropic-beta")
HEADER_CHARACTERS_MAX = 2048
# What the provider bills beside tokens, or at other rates than those that are declared.
_NOT_OFFERED = {
    "mcp_servers": "what servers do for the provider cannot be priced",
    "container": "its time cannot be priced",
    "inference_geo": "it changes the price",
    "speed": "it changes the price",
    "fallbacks": "other models have other prices",
    "fallback_credit_token": "it changes the price",
    "billing_policy": "the books would show what others pay for",
    "thread": "what the provider keeps of a conversation cannot be bounded; send all of it",
    "compaction": "its tokens are billed beside the answer's",
}
# Tools that the caller carries out; all others run at the provider, for a fee.
_CUSTOM_TOOL = "custom"
_CLEARING = "clear_"
OWN_TOOLS = ("bash_", "text_editor_", "computer_", "memory_")
_OVERHEAD_TOKENS = 8
_OVERHEAD_TOKENS_MESSAGE = 8
_OVERHEAD_TOKENS_TOOLS = 1024
_OVERHEAD_TOKENS_OWN_TOOL = 4096  # a kind that the provider describes to the model at length; a toolset is a dozen
_OVERHEAD_TOKENS_FORMAT = 1024
_FORMATS = frozenset({"output_config", "output_format"})
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


class _Edit(Struct):
    type: str


class _Edits(Struct):
    edits: list[_Edit] | None = None


class Facts(Struct):
    """The members that the gate reads, with their types; but for what may be long."""

    model: str
    max_tokens: int | None = None
    stream: bool | None = None
    metadata: dict[str, str | None] | None = None
    penstock: dict[str, Any] | UnsetType = UNSET


_FACTS = frozenset(Facts.__struct_fields__)
_facts = msgspec.json.Decoder(Facts)
_texts = msgspec.json.Decoder(list[_TextMessage])
_messages = msgspec.json.Decoder(list[_Message])
_tools = msgspec.json.Decoder(list[_Tool] | None)
_system = msgspec.json.Decoder(str | list[_Text] | None)
_edits = msgspec.json.Decoder(_Edits | None)
_NOTHING = Raw(b"null")


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
    for name in ("messages", "system", "tools"):
        if opened.holds_too_much(name):
            raise InvalidRequest(f"{name} holds too many objects; send fewer.", param=name)
    facts = read_facts(fields, _facts, _FACTS)
    require_model(facts.model)
    for name in _NOT_OFFERED.keys() & fields.keys():
        raise InvalidRequest(f"{name} is not offered: {_NOT_OFFERED[name]}.", param=name)
    _require_own_context(fields.get("context_management", _NOTHING))
    bound = _OVERHEAD_TOKENS + _tools_overhead(fields.get("tools", _NOTHING))
    count, is_text = _read_messages(told)
    bound += count * _OVERHEAD_TOKENS_MESSAGE
    bound += sum(len(memoryview(raw)) for name, raw in fields.items() if name not in _NOT_PROMPT)
    bound += 0 if _FORMATS.isdisjoint(fields) else _OVERHEAD_TOKENS_FORMAT
    return facts, bound if is_text and _is_text(fields.get("system")) else None


def _tools_overhead(told: Raw) -> int:
    """What the provider adds to the prompt for these tools, in tokens. Raises InvalidRequest for what is not theirs."""
    try:
        tools = _tools.decode(told) or ()
    except msgspec.ValidationError as wrong:
        raise wrong_member(wrong, "tools") from None
    if len(tools) > _TOOLS_MAX:
        raise InvalidRequest(f"tools may hold at most {_TOOLS_MAX} tools.", param="tools")
    described = 0
    for number, tool in enumerate(tools):
        if tool.type is None or tool.type == _CUSTOM_TOOL:
            continue
        if not tool.type.startswith(OWN_TOOLS):
            raise InvalidRequest(
                f"tools[{number}] runs at the provider, whose fees per call cannot be priced; use tools of your own.",
                param=f"tools[{number}].type",
            )
        described += 1
    return (_OVERHEAD_TOKENS_TOOLS if tools else 0) + described * _OVERHEAD_TOKENS_OWN_TOOL


def _require_own_context(told: Raw) -> None:
    """Raise InvalidRequest for edits of the context that do more than to leave things out."""
    try:
        managed = _edits.decode(told)
    except msgspec.ValidationError as wrong:
        raise wrong_member(wrong, "context_management") from None
    for number, edit in enumerate((managed.edits if managed else None) or ()):
        if not edit.type.startswith(_CLEARING):
            raise InvalidRequest(
                f"context_management.edits[{number}] is billed beside the answer; only edits that clear are offered.",
                param=f"context_management.edits[{number}].type",
            )


def _is_text(system: Raw | None) -> bool:
    """Whether a system prompt is certainly text."""
    try:
        _system.decode(_NOTHING if system is None else system)
    except msgspec.ValidationError:
        return False
    return True


def _request(opened: Opened, facts: Facts, operation: Operation, input_tokens_max: int | None) -> ModelRequest:
    fields, headers = opened.fields, opened.headers
    hints = read_hints(headers, facts.metadata, facts.penstock)
    fields.pop("penstock", None)
    if facts.metadata is not None and not HINTS.isdisjoint(facts.metadata):
        # The provider refuses all that it does not know there.
        rest = {name: value for name, value in facts.metadata.items() if name not in HINTS}
        fields["metadata"] = Raw(msgspec.json.encode(rest))
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
