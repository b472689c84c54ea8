"""What was asked, read from a request body, or the refusal it earns. No answer is made here."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec

from tests.sim.script import Script, read_script
from tests.sim.tokens import count, cut, words

MODELS = ("sim-small", "sim-large")
OUTPUT_TOKENS_MAX = 16_384
_GREETING = "This is the simulator, not a language model."


@dataclass(eq=False)
class Refusal(Exception):
    """An error answer in OpenAI's shape. It is not billed."""

    status: int
    message: str
    kind: str = "invalid_request_error"
    code: str | None = None
    param: str | None = None
    retry_after_seconds: float | None = None

    def body(self) -> bytes:
        """The four keys OpenAI promises."""
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return msgspec.json.encode({"error": error})


@dataclass(frozen=True, slots=True)
class Ask:
    """A request the simulator will answer.

    pieces: the tokens of one choice, already under the ceiling. reasoning: tokens per choice beside them. tool: the
    function to call with the pieces as arguments. cut_short: the ceiling, not the answer, ends it.
    """

    model: str
    stream: bool
    include_usage: bool
    choices: int
    prompt_tokens: int
    pieces: tuple[str, ...]
    reasoning: int
    cut_short: bool
    tool: str | None
    script: Script


class _Part(msgspec.Struct):
    type: str
    text: str | None = None


class _Message(msgspec.Struct):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[_Part] | None = None

    @property
    def text(self) -> str:
        if isinstance(self.content, list):
            return "".join(part.text or "" for part in self.content)
        return self.content or ""


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _Function(msgspec.Struct):
    name: str
    parameters: dict[str, Any] | None = None


class _Tool(msgspec.Struct):
    function: _Function
    type: Literal["function"] = "function"


class _Body(msgspec.Struct):
    model: str
    messages: Annotated[list[_Message], msgspec.Meta(min_length=1)]
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    n: Annotated[int, msgspec.Meta(ge=1, le=128)] | None = None
    max_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None
    max_completion_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None
    tools: list[_Tool] | None = None
    tool_choice: str | dict[str, Any] | None = None
    response_format: dict[str, Any] | None = None


_DECODER = msgspec.json.Decoder(_Body)


def read_ask(body: bytes) -> Ask:
    """The request in `body`. Raises Refusal: 400 for a bad body, 404 for an unknown model, or what its script says."""
    try:
        asked = _DECODER.decode(body)
        last_user = next((message.text for message in reversed(asked.messages) if message.role == "user"), "")
        script = read_script(last_user)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _bad(str(error)) from error
    if asked.model not in MODELS:
        raise Refusal(404, f"The model `{asked.model}` does not exist.", code="model_not_found", param="model")
    if asked.stream_options and not asked.stream:
        raise Refusal(400, "stream_options is only allowed when stream is true.", param="stream_options")
    ceiling = min(asked.max_completion_tokens or asked.max_tokens or OUTPUT_TOKENS_MAX, OUTPUT_TOKENS_MAX)
    tool = _tool_to_call(asked)
    pieces = _pieces(asked, script, tool)
    reasoning = min(script.reasoning, ceiling)
    return Ask(
        model=asked.model,
        stream=bool(asked.stream),
        include_usage=bool(asked.stream_options and asked.stream_options.include_usage),
        choices=asked.n or 1,
        prompt_tokens=sum(count(message.text) for message in asked.messages),
        pieces=tuple(pieces[: ceiling - reasoning]),
        reasoning=reasoning,
        cut_short=len(pieces) + reasoning > ceiling,
        tool=tool.name if tool else None,
        script=script,
    )


def scripted_refusal(script: Script) -> Refusal | None:
    """The error status the script wishes for, in the words a provider would use."""
    status = script.status
    if status is None:
        return None
    kind, code = "server_error", None
    if status == 429:
        kind, code = "requests", "rate_limit_exceeded"
    elif status < 500:
        kind = "invalid_request_error"
    return Refusal(status, f"The script asked for {status}.", kind, code, retry_after_seconds=script.retry_after)


def _bad(message: str) -> Refusal:
    """msgspec ends its message with the place: `... - at `$.messages[0].role``."""
    place = message.rpartition("`$")[2].strip("`.") if "`$" in message else ""
    return Refusal(400, f"The request is not valid: {message}", code="invalid_value", param=place or None)


def _tool_to_call(asked: _Body) -> _Function | None:
    """The named tool, else the first; none after a tool has answered or where the caller forbids it."""
    if not asked.tools or asked.tool_choice == "none" or asked.messages[-1].role == "tool":
        return None
    if isinstance(asked.tool_choice, dict):
        named = asked.tool_choice.get("function", {}).get("name")
        found = next((tool.function for tool in asked.tools if tool.function.name == named), None)
        if found is None:
            raise Refusal(400, f"Tool choice {named!r} is not among the tools.", param="tool_choice")
        return found
    return asked.tools[0].function


def _pieces(asked: _Body, script: Script, tool: _Function | None) -> list[str]:
    if tool:
        return cut(_json(instance(tool.parameters or {})))
    if script.text is not None:
        return cut(script.text)
    if script.tokens is not None:
        return words(min(script.tokens, OUTPUT_TOKENS_MAX + 1))
    wanted = asked.response_format or {}
    if wanted.get("type") == "json_schema":
        return cut(_json(instance(wanted.get("json_schema", {}).get("schema", {}))))
    return cut('{"ok":true}' if wanted.get("type") == "json_object" else _GREETING)


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def instance(schema: dict[str, Any]) -> Any:
    """A minimal value that satisfies a plain JSON schema: required members, first choices, local references."""
    return _instance(schema, schema, 0)


def _instance(schema: dict[str, Any], root: dict[str, Any], depth: int) -> Any:
    if depth > 32:
        raise Refusal(400, "The schema is nested too deeply.", param="response_format")
    if "$ref" in schema:
        return _instance(_resolve(str(schema["$ref"]), root), root, depth + 1)
    for key in ("const", "default"):
        if key in schema:
            return schema[key]
    if schema.get("enum"):
        return schema["enum"][0]
    for key in ("anyOf", "oneOf", "allOf"):
        if schema.get(key):
            return _instance(schema[key][0], root, depth + 1)
    kind = schema.get("type", "object")
    return _of_type(kind[0] if isinstance(kind, list) else kind, schema, root, depth)


def _of_type(kind: str, schema: dict[str, Any], root: dict[str, Any], depth: int) -> Any:
    if kind == "object":
        properties = schema.get("properties", {})
        return {name: _instance(properties.get(name, {}), root, depth + 1) for name in schema.get("required", ())}
    if kind == "array":
        return [_instance(schema.get("items", {}), root, depth + 1) for _ in range(schema.get("minItems", 0))]
    if kind == "string":
        return "x" * max(1, schema.get("minLength", 1))
    plain: dict[str, object] = {
        "integer": schema.get("minimum", 1),
        "number": schema.get("minimum", 1),
        "boolean": True,
    }
    return plain.get(kind)


def _resolve(reference: str, root: dict[str, Any]) -> dict[str, Any]:
    found: Any = root
    for step in reference.removeprefix("#").strip("/").split("/"):
        found = found.get(step, {}) if step else found
    return found if isinstance(found, dict) else {}
