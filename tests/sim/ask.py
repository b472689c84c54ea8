"""What was asked, whoever's words it was asked in, and what the answer will be made of. No answer is made here."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec

from tests.sim.refusal import Refusal, unreadable
from tests.sim.schema import instance
from tests.sim.script import Script, read_script
from tests.sim.tokens import Prompt, cut, words

T = TypeVar("T")

MODELS = ("sim-small", "sim-large", "sim-embed")
OUTPUT_TOKENS_MAX = 16_384
_GREETING = "This is the simulator, not a language model."


@dataclass(frozen=True, slots=True)
class Ask:
    """A request the simulator will answer.

    pieces: the tokens of one choice, already under the ceiling. reasoning, audio: tokens per choice beside them.
    thinking: whether the reasoning is shown. tool: the function to call with the pieces as arguments. cut_short: the
    ceiling, not the answer, ends it.
    """

    model: str = ""
    prompt: Prompt = field(default_factory=Prompt)
    script: Script = field(default_factory=Script)
    stream: bool = False
    include_usage: bool = False
    choices: int = 1
    pieces: tuple[str, ...] = ()
    reasoning: int = 0
    audio: int = 0
    thinking: bool = False
    tool: str | None = None
    cut_short: bool = False


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the answer may call."""

    name: str
    parameters: dict[str, Any]


def decoded(body: bytes, kind: type[T]) -> T:
    """The body as the wire's own structure. Raises Refusal."""
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise unreadable(error) from error


def script_in(text: str) -> Script:
    """The script that the text carries. Raises Refusal for one with a slip."""
    try:
        return read_script(text)
    except msgspec.DecodeError as error:
        raise unreadable(error) from error


def known(model: str) -> str:
    """The model, if there is one of that name. Raises Refusal."""
    if model not in MODELS:
        raise Refusal(404, f"The model `{model}` does not exist.", "model_not_found", "model")
    return model


def chosen(tools: Sequence[Tool], name: str | None = None) -> Tool:
    """The named tool, else the first. Raises Refusal where there is none of that name."""
    found = next((tool for tool in tools if name in (None, tool.name)), None)
    if found is None:
        raise Refusal(400, f"Tool choice {name!r} is not among the tools.", "invalid_value", "tool_choice")
    return found


def compose(
    model: str,
    prompt: Prompt,
    script: Script,
    *,
    ceiling: int | None = None,
    tool: Tool | None = None,
    schema: dict[str, Any] | None = None,
    **more: Any,
) -> Ask:
    """The ask with an answer under the ceiling: a call of the tool, else what the script says, else by the schema."""
    ceiling = OUTPUT_TOKENS_MAX if ceiling is None else min(ceiling, OUTPUT_TOKENS_MAX)
    pieces = _pieces(script, tool, schema)
    reasoning = min(script.reasoning, ceiling)
    audio = min(script.audio_output, ceiling - reasoning)
    return Ask(
        model=known(model),
        prompt=prompt,
        script=script,
        pieces=tuple(pieces[: ceiling - reasoning - audio]),
        reasoning=reasoning,
        audio=audio,
        tool=tool.name if tool else None,
        cut_short=len(pieces) + script.reasoning + script.audio_output > ceiling,
        **more,
    )


def _pieces(script: Script, tool: Tool | None, schema: dict[str, Any] | None) -> list[str]:
    if tool:
        return cut(_json(instance(tool.parameters)))
    if script.text is not None:
        return cut(script.text)
    if script.tokens is not None:
        return words(min(script.tokens, OUTPUT_TOKENS_MAX + 1))
    return cut(_GREETING if schema is None else _json(instance(schema)))


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()
