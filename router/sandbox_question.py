"""What the sandbox is asked, whichever wire it comes in: one question, and how the sandbox is told to behave."""

import asyncio
import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from kernel import Operation
from router import anthropic, openai
from router.dispatch import Dispatch
from router.errors import UpstreamRefused
from router.openai import UNREADABLE

TOKEN = re.compile(r"\w{1,4}|\s{1,4}|[^\w\s]")
_DIRECTIVE = "sandbox:"
_PIECES_BETWEEN_TURNS = 8192
_Count = Annotated[int, Meta(ge=0, le=1_000_000)]


class Directive(Struct, forbid_unknown_fields=True):
    """What a message may tell the sandbox.

    tokens: length of the answer, within the request's limit. text: the answer itself. first_ms: before the first
    event. delay_ms: between events. fail: how to fail, before the answer or after fail_after of its pieces.
    """

    tokens: _Count | None = None
    text: Annotated[str, Meta(max_length=100_000)] | None = None
    first_ms: _Count = 0
    delay_ms: _Count = 0
    fail: Literal["400", "429", "500", "cut", "hang"] | None = None
    fail_after: _Count = 0


class _Part(Struct):
    text: str = ""
    type: str = "text"


class _Message(Struct):
    role: str
    content: str | list[_Part] | None = None

    def texts(self) -> Iterator[str]:
        """The text in it, part by part."""
        yield from [self.content] if isinstance(self.content, str) else [part.text for part in self.content or []]


class Function(Struct):
    """What can be called."""

    name: str
    parameters: object = None


class _Tool(Struct):
    function: Function


class _SchemaOf(Struct):
    schema: object = None


class _Format(Struct):
    type: str = "text"
    json_schema: _SchemaOf | None = None


class Question(Struct):
    """A chat request as the sandbox reads it; requests in other wires are brought into this form."""

    messages: Annotated[list[_Message], Meta(min_length=1)]
    max_tokens: _Count | None = None
    max_completion_tokens: _Count | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    tools: list[_Tool] | None = None
    tool_choice: str | _Tool | None = None
    response_format: _Format | None = None

    @property
    def limit(self) -> int:
        """Tokens an answer may have; a question that has none, where none is given."""
        return (self.max_completion_tokens if self.max_tokens is None else self.max_tokens) or 0

    def called(self) -> Function | None:
        """The function to call, if one is wanted."""
        last = self.messages[-1]
        functions = [tool.function for tool in self.tools or []]
        has_result = isinstance(last.content, list) and any(part.type == "tool_result" for part in last.content)
        if last.role == "tool" or has_result or self.tool_choice == "none":
            return None
        if isinstance(self.tool_choice, _Tool):
            functions = [each for each in functions if each.name == self.tool_choice.function.name]
        elif self.tool_choice != "required" and last.role != "user":
            return None
        return functions[0] if functions else None

    def directive(self) -> Directive:
        """How the last user told the sandbox to behave. Raises msgspec's errors."""
        said = next((message for message in reversed(self.messages) if message.role == "user"), None)
        text = "".join(said.texts()).strip() if said else ""
        if not text.startswith(_DIRECTIVE):
            return Directive()
        return msgspec.json.decode(text.removeprefix(_DIRECTIVE).strip(), type=Directive)

    async def count(self) -> int:
        """Tokens of all messages' text; a long prompt is counted in turns with everybody else's work."""
        count = 0
        for message in self.messages:
            for text in message.texts():
                for _ in TOKEN.finditer(text):
                    count += 1
                    if count % _PIECES_BETWEEN_TURNS == 0:
                        await asyncio.sleep(0)
        return count


class _MessageTool(Struct):
    name: str
    input_schema: object = None


class _Choice(Struct):
    type: Literal["auto", "any", "tool", "none"]
    name: str = ""


class _OutputConfig(Struct):
    format: _SchemaOf | None = None


class _MessageRequest(Struct):
    messages: Annotated[list[_Message], Meta(min_length=1)]
    max_tokens: _Count | None = None
    system: str | list[_Part] | None = None
    tools: list[_MessageTool] | None = None
    tool_choice: _Choice | None = None
    output_config: _OutputConfig | None = None


class _CompletionRequest(Struct):
    prompt: str | list[Any]
    max_tokens: _Count | None = None
    n: int | None = None


class _EmbeddingRequest(Struct):
    input: str | list[Any]
    dimensions: Annotated[int, Meta(ge=1, le=4096)] | None = None
    encoding_format: Literal["float", "base64"] = "float"


def read_question(dispatch: Dispatch) -> Question:
    """What is asked, from the bytes that a provider would get. Raises UpstreamRefused."""
    request, target = dispatch.request, dispatch.target
    try:
        match request.operation:
            case Operation.MESSAGES | Operation.COUNT_TOKENS:
                return _of_messages(
                    msgspec.json.decode(anthropic.encode(request, target, dispatch.provider), type=_MessageRequest)
                )
            case Operation.COMPLETIONS:
                asked = msgspec.json.decode(openai.encode(request, target, dispatch.provider), type=_CompletionRequest)
                message = _Message("user", "".join(texts(asked.prompt)))
                return Question([message], max_tokens=asked.max_tokens, n=request.choices)
            case Operation.EMBEDDINGS:
                return Question([_Message("user", [_Part(each) for each in inputs(dispatch)[0]])])
            case Operation.CHAT:
                return msgspec.json.decode(openai.encode(request, target, dispatch.provider), type=Question)
    except UNREADABLE as error:
        raise UpstreamRefused(f"The sandbox cannot read the request: {error}.") from error


def inputs(dispatch: Dispatch) -> tuple[list[str], int, str]:
    """What is to be embedded, in how many dimensions, and in which encoding. Raises msgspec's errors."""
    body = openai.encode(dispatch.request, dispatch.target, dispatch.provider)
    asked = msgspec.json.decode(body, type=_EmbeddingRequest)
    return texts(asked.input), asked.dimensions or 8, asked.encoding_format


def texts(told: str | list[Any]) -> list[str]:
    """Each text of a prompt or an input; of tokens, which the sandbox cannot read, their numbers."""
    if isinstance(told, str):
        return [told]
    if told and isinstance(told[0], int):
        return [" ".join(map(str, told))]
    return [
        each if isinstance(each, str) else " ".join(map(str, each if isinstance(each, list) else [each]))
        for each in told
    ]


def _of_messages(asked: _MessageRequest) -> Question:
    system = [] if asked.system is None else [_Message("system", asked.system)]
    tools = [_Tool(Function(tool.name, tool.input_schema)) for tool in asked.tools or ()]
    chosen, choice = asked.tool_choice, None
    if chosen is not None:
        named = _Tool(Function(chosen.name)) if chosen.type == "tool" else None
        choice = named or {"any": "required", "none": "none"}.get(chosen.type)
    wanted = asked.output_config.format if asked.output_config else None
    return Question(
        [*system, *asked.messages],
        max_tokens=asked.max_tokens,
        tools=tools,
        tool_choice=choice,
        response_format=None if wanted is None else _Format("json_schema", wanted),
    )
