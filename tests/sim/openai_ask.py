"""What is asked on OpenAI's wire: chat completions, text completions and embeddings. Azure is asked the same."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec

from tests.sim.ask import Ask, Tool, chosen, compose, decoded, known, script_in
from tests.sim.embedding import DIMENSIONS, DIMENSIONS_MAX, EmbeddingAsk
from tests.sim.refusal import Refusal
from tests.sim.tokens import Prompt, count, prompt_of

# What OpenAI gives a text completion that names no ceiling.
COMPLETION_TOKENS = 16

Positive = Annotated[int, msgspec.Meta(ge=1)]
Choices = Annotated[int, msgspec.Meta(ge=1, le=128)]


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

    def parts(self, kind: str) -> int:
        return sum(part.type == kind for part in self.content) if isinstance(self.content, list) else 0


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _Function(msgspec.Struct):
    name: str
    parameters: dict[str, Any] | None = None


class _Tool(msgspec.Struct):
    function: _Function
    type: Literal["function"] = "function"


class _Generation(msgspec.Struct, kw_only=True):
    """What chat and text completions have in common."""

    model: str | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    n: Choices | None = None
    max_tokens: Positive | None = None

    def how(self) -> dict[str, Any]:
        """How it is to be said. Raises Refusal."""
        if self.stream_options and not self.stream:
            message = "stream_options is only allowed when stream is true."
            raise Refusal(400, message, "invalid_value", "stream_options")
        include_usage = bool(self.stream_options and self.stream_options.include_usage)
        return {"stream": bool(self.stream), "include_usage": include_usage}


class _Chat(_Generation, kw_only=True):
    messages: Annotated[list[_Message], msgspec.Meta(min_length=1)]
    max_completion_tokens: Positive | None = None
    tools: list[_Tool] | None = None
    tool_choice: str | dict[str, Any] | None = None
    response_format: dict[str, Any] | None = None


class _Completion(_Generation, kw_only=True):
    prompt: str | list[str | int | list[int]]
    best_of: Annotated[int, msgspec.Meta(ge=1, le=20)] | None = None
    echo: Literal[False] | None = None


class _Embedding(msgspec.Struct):
    input: str | Annotated[list[str | int | list[int]], msgspec.Meta(min_length=1, max_length=2048)]
    model: str | None = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, msgspec.Meta(ge=1, le=DIMENSIONS_MAX)] = DIMENSIONS


def read_chat(body: bytes, model: str = "") -> Ask:
    """A chat completion, for the model in the path if there is one. Raises Refusal."""
    asked = decoded(body, _Chat)
    last_user = next((message.text for message in reversed(asked.messages) if message.role == "user"), "")
    prompt = prompt_of(
        (message.text for message in asked.messages),
        images=sum(message.parts("image_url") for message in asked.messages),
        recordings=sum(message.parts("input_audio") for message in asked.messages),
    )
    return compose(
        model or _named(asked.model),
        prompt,
        script_in(last_user),
        ceiling=asked.max_completion_tokens or asked.max_tokens,
        tool=_tool_to_call(asked),
        schema=_schema(asked.response_format or {}),
        choices=asked.n or 1,
        **asked.how(),
    )


def _named(model: str | None) -> str:
    if model is None:
        raise Refusal(400, "you must provide a model parameter", None, "model")
    return model


def _tool_to_call(asked: _Chat) -> Tool | None:
    """None after a tool has answered or where the caller forbids it."""
    if not asked.tools or asked.tool_choice == "none" or asked.messages[-1].role == "tool":
        return None
    tools = [Tool(tool.function.name, tool.function.parameters or {}) for tool in asked.tools]
    named = asked.tool_choice if isinstance(asked.tool_choice, dict) else {}
    return chosen(tools, named.get("function", {}).get("name"))


def _schema(wanted: dict[str, Any]) -> dict[str, Any] | None:
    if wanted.get("type") == "json_schema":
        schema: dict[str, Any] = wanted.get("json_schema", {}).get("schema", {})
        return schema
    return {"const": {"ok": True}} if wanted.get("type") == "json_object" else None


def _texts(given: str | list[str | int | list[int]]) -> list[str | list[int]]:
    """The texts of a prompt or an input; a bare list of token ids is one. Raises Refusal for a mixture."""
    if isinstance(given, str):
        return [given]
    texts = [each for each in given if not isinstance(each, int)]
    ids = [each for each in given if isinstance(each, int)]
    if not texts:
        return [ids]
    if not ids and len({type(text) for text in texts}) == 1:
        return texts
    raise Refusal(400, "Texts, token ids and lists of them do not mix.", "invalid_value", "input")


def _prompt(texts: list[str | list[int]]) -> Prompt:
    return Prompt(sum(count(text) if isinstance(text, str) else len(text) for text in texts))


def _last(texts: list[str | list[int]]) -> str:
    return texts[-1] if texts and isinstance(texts[-1], str) else ""


@dataclass(frozen=True, slots=True)
class CompletionAsk(Ask):
    """Text completions: all choices are generated and billed, those of `shown` are told, prompt by prompt."""

    shown: tuple[int, ...] = ()


def read_completion(body: bytes, model: str = "") -> CompletionAsk:
    """A text completion. Raises Refusal."""
    asked = decoded(body, _Completion)
    texts, told = _texts(asked.prompt), asked.n or 1
    made = asked.best_of or told
    if made < told or (made > told and asked.stream):
        raise Refusal(400, "best_of must be at least n, and n when streaming.", "invalid_value", "best_of")
    made_in_all = range(made * len(texts))
    ask = compose(
        model or _named(asked.model),
        _prompt(texts),
        script_in(_last(texts)),
        ceiling=asked.max_tokens or COMPLETION_TOKENS,
        choices=len(made_in_all),
        **asked.how(),
    )
    shown = tuple(choice for choice in made_in_all if choice % made < told)
    return CompletionAsk(**_members(ask), shown=shown)


def read_embedding(body: bytes, model: str = "") -> EmbeddingAsk:
    """An embedding of one or many texts. Raises Refusal."""
    asked = decoded(body, _Embedding)
    texts = _texts(asked.input)
    if not all(texts):
        raise Refusal(400, "input cannot be an empty string.", "invalid_value", "input")
    return EmbeddingAsk(
        model=known(model or _named(asked.model)),
        prompt=_prompt(texts),
        script=script_in(_last(texts)),
        texts=tuple(text.encode() if isinstance(text, str) else msgspec.json.encode(text) for text in texts),
        dimensions=asked.dimensions,
        base64=asked.encoding_format == "base64",
    )


def _members(ask: Ask) -> dict[str, Any]:
    return {name: getattr(ask, name) for name in Ask.__dataclass_fields__}
