"""What is asked on Gemini's wire: content, the count of its tokens, embeddings.

As every server made of protocol buffers it takes snake_case for camelCase.
"""

import base64
import binascii
import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal

import msgspec

from tests.sim.ask import Ask, Tool, chosen, compose, decoded, known, script_in
from tests.sim.embedding import DIMENSIONS, DIMENSIONS_MAX, EmbeddingAsk
from tests.sim.refusal import Refusal, unreadable
from tests.sim.script import Script
from tests.sim.tokens import Prompt, prompt_of

_SNAKE = re.compile("_([a-z])")
# Under these names stands what the caller made up: values, or members whose names are the caller's own.
_VALUES = frozenset({"args", "response", "const", "default", "example"})
_NAMED = frozenset({"properties", "$defs"})


class _Blob(msgspec.Struct, rename="camel"):
    mime_type: str
    data: str


class _File(msgspec.Struct, rename="camel"):
    file_uri: str
    mime_type: str = ""


class _Part(msgspec.Struct, rename="camel"):
    text: str | None = None
    inline_data: _Blob | None = None
    file_data: _File | None = None
    function_response: dict[str, Any] | None = None

    def is_a(self, kind: str) -> bool:
        medium = self.inline_data or self.file_data
        return medium is not None and medium.mime_type.startswith(f"{kind}/")


class _Content(msgspec.Struct):
    parts: list[_Part] = []
    role: Literal["user", "model", "function"] = "user"

    @property
    def text(self) -> str:
        return "".join(part.text or "" for part in self.parts)


class _Function(msgspec.Struct, rename="camel"):
    name: str
    parameters: dict[str, Any] | None = None
    parameters_json_schema: dict[str, Any] | None = None


class _Tools(msgspec.Struct, rename="camel"):
    function_declarations: list[_Function] = []


class _Calling(msgspec.Struct, rename="camel"):
    mode: str = "AUTO"
    allowed_function_names: list[str] = []


class _ToolConfig(msgspec.Struct, rename="camel"):
    function_calling_config: _Calling = msgspec.field(default_factory=_Calling)


class _Thinking(msgspec.Struct, rename="camel"):
    include_thoughts: bool = False


class _Generation(msgspec.Struct, rename="camel"):
    max_output_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None
    candidate_count: Annotated[int, msgspec.Meta(ge=1, le=8)] = 1
    response_mime_type: str = ""
    response_schema: dict[str, Any] | None = None
    response_json_schema: dict[str, Any] | None = None
    thinking_config: _Thinking = msgspec.field(default_factory=_Thinking)

    @property
    def schema(self) -> dict[str, Any] | None:
        plain = {"const": {"ok": True}} if self.response_mime_type == "application/json" else None
        return self.response_schema or self.response_json_schema or plain


class _Generate(msgspec.Struct, rename="camel"):
    contents: Annotated[list[_Content], msgspec.Meta(min_length=1)]
    system_instruction: _Content = msgspec.field(default_factory=_Content)
    tools: list[_Tools] = []
    tool_config: _ToolConfig = msgspec.field(default_factory=_ToolConfig)
    generation_config: _Generation = msgspec.field(default_factory=_Generation)


class _Embed(msgspec.Struct, rename="camel"):
    content: _Content
    output_dimensionality: Annotated[int, msgspec.Meta(ge=1, le=DIMENSIONS_MAX)] = DIMENSIONS


def _camel(value: Any) -> Any:
    """The value with its members' names in camelCase, but for those that the caller made up."""
    if isinstance(value, list):
        return [_camel(each) for each in value]
    if not isinstance(value, dict):
        return value
    return {_SNAKE.sub(lambda found: found[1].upper(), name): _member(name, it) for name, it in value.items()}


def _member(name: str, value: Any) -> Any:
    if name in _VALUES:
        return value
    if name in _NAMED and isinstance(value, dict):
        return {own: _camel(inner) for own, inner in value.items()}
    return _camel(value)


def _read(body: bytes, *, inside: str = "") -> dict[str, Any]:
    """The body's members, or those of the one that holds them. Raises Refusal."""
    members: dict[str, Any] = _camel(decoded(body, dict[str, Any]))
    inner = members.get(inside)
    return inner if isinstance(inner, dict) else members


def _as(kind: Any, members: Any) -> Any:
    try:
        return msgspec.convert(members, kind)
    except msgspec.ValidationError as error:
        raise unreadable(error) from error


def _prompt(contents: Iterable[_Content]) -> Prompt:
    """Whatever file is no recording counts as an image. Raises Refusal for data that is no base64."""
    contents = list(contents)
    parts = [part for content in contents for part in content.parts]
    for part in parts:
        _check(part.inline_data)
    recordings = sum(part.is_a("audio") for part in parts)
    media = sum(bool(part.inline_data or part.file_data) for part in parts)
    return prompt_of((content.text for content in contents), images=media - recordings, recordings=recordings)


def _check(blob: _Blob | None) -> None:
    try:
        # Both alphabets are taken.
        base64.b64decode((blob.data if blob else "").translate({45: 43, 95: 47}), validate=True)
    except binascii.Error as error:
        raise Refusal(400, f"Invalid value at 'inline_data.data' (TYPE_BYTES): {error}", "invalid_value") from error


def _script(contents: list[_Content]) -> Script:
    said = (content.text for content in reversed(contents) if content.role == "user")
    return script_in(next(filter(None, said), ""))


def read_generate(body: bytes, model: str, *, stream: bool = False) -> Ask:
    """Content to generate. Raises Refusal."""
    asked: _Generate = _as(_Generate, _read(body))
    wanted = asked.generation_config
    return compose(
        model,
        _prompt([asked.system_instruction, *asked.contents]),
        _script(asked.contents),
        ceiling=wanted.max_output_tokens,
        tool=_tool_to_call(asked),
        schema=wanted.schema,
        stream=stream,
        choices=wanted.candidate_count,
        thinking=wanted.thinking_config.include_thoughts,
    )


def read_count(body: bytes, model: str) -> Ask:
    """Content whose tokens are to be counted. Raises Refusal."""
    asked: _Generate = _as(_Generate, _read(body, inside="generateContentRequest"))
    return Ask(known(model), _prompt([asked.system_instruction, *asked.contents]), _script(asked.contents))


def read_embed(body: bytes, model: str) -> EmbeddingAsk:
    """One content to embed. Raises Refusal."""
    return _embedding(model, [_as(_Embed, _read(body))])


def read_embeds(body: bytes, model: str) -> EmbeddingAsk:
    """Many contents to embed. Raises Refusal."""
    return _embedding(model, _as(Annotated[list[_Embed], msgspec.Meta(min_length=1)], _read(body).get("requests")))


def _embedding(model: str, asked: list[_Embed]) -> EmbeddingAsk:
    contents = [each.content for each in asked]
    return EmbeddingAsk(
        model=known(model),
        prompt=_prompt(contents),
        script=_script(contents),
        texts=tuple(content.text.encode() for content in contents),
        dimensions=asked[0].output_dimensionality,
    )


def _tool_to_call(asked: _Generate) -> Tool | None:
    """None after a function has answered, or where the caller forbids it."""
    functions = [function for tools in asked.tools for function in tools.function_declarations]
    calling = asked.tool_config.function_calling_config
    answered = any(part.function_response for part in asked.contents[-1].parts)
    if not functions or answered or calling.mode == "NONE":
        return None
    tools = [Tool(each.name, each.parameters or each.parameters_json_schema or {}) for each in functions]
    return chosen(tools, next(iter(calling.allowed_function_names), None))
