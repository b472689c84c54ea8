"""What is asked on Anthropic's wire: messages, and the count of their tokens."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec

from tests.sim.ask import Ask, Tool, chosen, compose, decoded, known, script_in
from tests.sim.script import Script
from tests.sim.tokens import Prompt, prompt_of


class _Source(msgspec.Struct):
    type: Literal["base64", "url", "file", "text", "content"]
    data: str | None = None
    media_type: str | None = None


class _Block(msgspec.Struct):
    """Any block of a message. What stands in a tool's result counts as if it stood there itself."""

    type: str
    text: str | None = None
    source: _Source | None = None
    content: "str | list[_Block] | None" = None

    @property
    def inner(self) -> "list[_Block]":
        return _blocks(self.content) if self.type == "tool_result" else []


class _Message(msgspec.Struct):
    role: Literal["user", "assistant"]
    content: str | list[_Block]


class _Tool(msgspec.Struct):
    name: str
    input_schema: dict[str, Any] | None = None
    type: str | None = None


class _ToolChoice(msgspec.Struct):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None


class _Thinking(msgspec.Struct):
    type: Literal["enabled", "adaptive", "disabled"]
    budget_tokens: Annotated[int, msgspec.Meta(ge=1024)] | None = None


class _Format(msgspec.Struct):
    type: Literal["json_schema"]
    schema: dict[str, Any]


class _OutputConfig(msgspec.Struct):
    format: _Format | None = None


class _Count(msgspec.Struct, kw_only=True):
    model: str
    messages: Annotated[list[_Message], msgspec.Meta(min_length=1)]
    system: str | list[_Block] | None = None
    tools: list[_Tool] | None = None
    tool_choice: _ToolChoice | None = None
    thinking: _Thinking | None = None
    output_config: _OutputConfig | None = None


class _Create(_Count, kw_only=True):
    max_tokens: Annotated[int, msgspec.Meta(ge=0)]
    stream: bool | None = None


def _blocks(content: "str | list[_Block] | None") -> list[_Block]:
    return content if isinstance(content, list) else [_Block("text", content)] if content else []


def _all_blocks(asked: _Count) -> Iterator[_Block]:
    for content in (asked.system, *(message.content for message in asked.messages)):
        for block in _blocks(content):
            yield block
            yield from block.inner


def _prompt(asked: _Count) -> Prompt:
    blocks = list(_all_blocks(asked))
    return prompt_of((block.text or "" for block in blocks), images=sum(block.type == "image" for block in blocks))


def _script(asked: _Count) -> Script:
    """That of the last message in which a user says something; a tool's result is nothing that a user says."""
    users = (message for message in reversed(asked.messages) if message.role == "user")
    said = ("".join(block.text or "" for block in _blocks(message.content)) for message in users)
    return script_in(next(filter(None, said), ""))


def read_message(body: bytes, _model: str = "") -> Ask:
    """A message. Raises Refusal."""
    asked = decoded(body, _Create)
    wanted = asked.output_config.format if asked.output_config else None
    return compose(
        asked.model,
        _prompt(asked),
        _script(asked),
        ceiling=asked.max_tokens,
        tool=_tool_to_call(asked),
        schema=wanted.schema if wanted else None,
        stream=bool(asked.stream),
        thinking=asked.thinking is not None and asked.thinking.type != "disabled",
    )


def read_count(body: bytes, _model: str = "") -> Ask:
    """A request to count what a message would send. Raises Refusal."""
    asked = decoded(body, _Count)
    return Ask(known(asked.model), _prompt(asked), _script(asked))


def _tool_to_call(asked: _Count) -> Tool | None:
    """A tool of the caller's own: none after one has answered, or where the caller forbids it."""
    tools = [Tool(tool.name, tool.input_schema or {}) for tool in asked.tools or () if tool.type in (None, "custom")]
    choice = asked.tool_choice or _ToolChoice("auto")
    answered = any(block.type == "tool_result" for block in _blocks(asked.messages[-1].content))
    if not tools or answered or choice.type == "none":
        return None
    return chosen(tools, choice.name)
