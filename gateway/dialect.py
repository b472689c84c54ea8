"""OpenAI's wire as callers speak it: a body and headers in, a `ModelRequest` or a 400 that names the field.

It reads the few facts the gate needs and keeps every other member as the bytes it was. Inbound only: what callers
are told is doors.py's, what providers are asked and answer is router/openai.py's.
"""

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from gateway.body import Opened, open_body, read_facts, wrong_member
from gateway.errors import InvalidRequest
from gateway.hints import read_hints
from kernel import ModelRequest, Operation

CHOICES_MAX = 128
MESSAGES_MAX = 20_000
_PARTS_MAX = 20_000
_TOO_MANY = f"messages must hold 1 to {MESSAGES_MAX} messages and at most {_PARTS_MAX} parts together."
MODEL_CHARACTERS_MAX = 256
_PROMPTS_BYTES_MAX = 1024 * 1024
_AN_OBJECT = re.compile(rb'[^"{]*+(?:"(?:[^"\\]++|\\.)*+"[^"{]*+)*+\{', re.DOTALL)
_COMPLETION_TOKENS = 16  # what OpenAI takes where a completion says nothing; a chat has all that the model can
# What would make an answer cost more than its hold, or let caller text be a program.
_NOT_OFFERED = MappingProxyType(
    {
        "web_search_options": "its fees per call cannot be priced",
        "prediction": "rejected predictions cost more than the answer's ceiling",
        "best_of": "use n, which is paid for",
        "chat_template": "templates belong to the model",
        "prompt_embeds": "they are prompts beside those that are counted",
        "kv_transfer_params": "they name what others keep at the server",
        "ec_transfer_params": "they name what others keep at the server",
    }
)
_TIERS = frozenset({"auto", "default"})
# What providers add to a prompt by themselves: role marks and instructions for tools. More is the model's to declare.
_OVERHEAD_TOKENS = 8
_OVERHEAD_TOKENS_MESSAGE = 8
_OVERHEAD_TOKENS_TOOLS = 1024
_NOT_PROMPT = frozenset({"model", "stream", "stream_options", "metadata", "user", "store", "penstock"})
# Hints are ours; content is not kept by providers either.
_NOT_SENT = frozenset({"penstock", "store"})


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


class StreamOptions(Struct):
    """What a stream tells beside the answer."""

    include_usage: bool = False


class Facts(Struct):
    """The members that the gate reads, with their types; but for what may be long."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
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


_FACTS = frozenset(Facts.__struct_fields__)
_facts = msgspec.json.Decoder(Facts)
_texts = msgspec.json.Decoder(list[_TextMessage])
_messages = msgspec.json.Decoder(list[_Message])
_prompts = msgspec.json.Decoder(list[Raw])


def read_chat(body: bytes, headers: Mapping[str, str]) -> ModelRequest:
    """The chat request in `body`. Raises InvalidRequest naming the first field at fault, or UnsupportedEncoding.

    headers: names in lower case.
    """
    opened = open_body(body, headers)
    fields = opened.fields
    told = _required(fields, "messages", "a list of messages")
    facts = _checked(fields)
    if opened.holds_too_much("messages"):
        raise InvalidRequest(_TOO_MANY, param="messages")
    count, is_text = _read_messages(told)
    bound = _input_tokens_max(fields) + count * _OVERHEAD_TOKENS_MESSAGE
    is_text = is_text and not (facts.modalities and facts.modalities != ["text"])
    return _request(opened, facts, Operation.CHAT, bound if is_text else None)


def read_completion(body: bytes, headers: Mapping[str, str]) -> ModelRequest:
    """The request for a completion in `body`; raises and takes as `read_chat` does."""
    opened = open_body(body, headers)
    fields = opened.fields
    told = _required(fields, "prompt", "a text")
    facts = _checked(fields)
    prompts = _count_prompts(bytes(told))
    if prompts > CHOICES_MAX:
        raise InvalidRequest(f"prompt must hold 1 to {CHOICES_MAX} prompts.", param="prompt")
    request = _request(opened, facts, Operation.COMPLETIONS, _input_tokens_max(fields))
    limit = _COMPLETION_TOKENS if request.output_tokens_max is None else request.output_tokens_max
    return msgspec.structs.replace(request, choices=request.choices * prompts, output_tokens_max=limit)


def read_embedding(body: bytes, headers: Mapping[str, str]) -> ModelRequest:
    """The request for embeddings in `body`; raises and takes as `read_chat` does."""
    opened = open_body(body, headers)
    fields = opened.fields
    if bytes(_required(fields, "input", "a text or a list of texts"))[:1] not in {b'"', b"["}:
        raise InvalidRequest("input must be a text, a list of texts, or tokens.", param="input")
    # vLLM takes conversations there, or beside it, whose pictures no number of bytes bounds.
    fields.pop("messages", None)
    if _AN_OBJECT.match(fields["input"]) is not None:
        raise InvalidRequest("input must hold texts or tokens, and nothing else.", param="input")
    facts = _checked(fields)
    if facts.stream:
        raise InvalidRequest("stream is not offered: embeddings come at once.", param="stream")
    request = _request(opened, facts, Operation.EMBEDDINGS, _input_tokens_max(fields))
    return request.limited(0)


def _request(opened: Opened, facts: Facts, operation: Operation, input_tokens_max: int | None) -> ModelRequest:
    fields = opened.fields
    for name in _NOT_OFFERED.keys() & fields.keys():
        raise InvalidRequest(f"{name} is not offered: {_NOT_OFFERED[name]}.", param=name)
    hints = read_hints(opened.headers, facts.metadata, facts.penstock)
    fields = {name: raw for name, raw in fields.items() if name not in _NOT_SENT}
    if facts.service_tier is not None:
        fields["service_tier"] = Raw(b'"default"')  # another tier has another price
    return ModelRequest(
        model=facts.model,
        fields=fields,
        stream=bool(facts.stream),
        include_usage=facts.stream_options is not None and facts.stream_options.include_usage,
        choices=1 if facts.n is None else facts.n,
        input_tokens_max=input_tokens_max,
        output_tokens_max=facts.max_tokens if facts.max_completion_tokens is None else facts.max_completion_tokens,
        hints=hints,
        size=opened.size,
        operation=operation,
    )


def _required(fields: Mapping[str, Raw], name: str, what: str) -> Raw:
    told = fields.get(name)
    if told is None:
        raise InvalidRequest(f"{name} is missing; send {what}.", param=name)
    return told


def _checked(fields: Mapping[str, Raw]) -> Facts:
    facts = read_facts(fields, _facts, _FACTS)
    require_model(facts.model)
    if facts.n is not None and not 1 <= facts.n <= CHOICES_MAX:
        raise InvalidRequest(f"n must be between 1 and {CHOICES_MAX}.", param="n")
    if facts.service_tier is not None and facts.service_tier not in _TIERS:
        raise InvalidRequest("service_tier must be auto or default; other tiers have no price.", param="service_tier")
    for name in ("max_tokens", "max_completion_tokens"):
        ceiling = getattr(facts, name)
        if ceiling is not None and ceiling < 1:
            raise InvalidRequest(f"{name} must be at least 1.", param=name)
    return facts


def require_model(name: str) -> None:
    """Raise InvalidRequest for what no model could be called."""
    if not 0 < len(name) <= MODEL_CHARACTERS_MAX:
        raise InvalidRequest(
            f"model must have 1 to {MODEL_CHARACTERS_MAX} characters; name a model or an alias.", param="model"
        )


def _count_prompts(told: bytes) -> int:
    """Of how many prompts a completion's `prompt` consists: texts or lists of tokens. Raises InvalidRequest."""
    if told[:1] == b'"':
        return 1
    if told[:1] != b"[":
        raise InvalidRequest("prompt must be a text, a list of texts, or tokens.", param="prompt")
    if told[1:].lstrip()[:1] not in {b'"', b"["}:
        return 1  # one prompt's tokens
    if len(told) > _PROMPTS_BYTES_MAX:
        raise InvalidRequest(f"A list of prompts may hold at most {_PROMPTS_BYTES_MAX} bytes.", param="prompt")
    return len(_prompts.decode(told))


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
    if not 0 < len(messages) <= MESSAGES_MAX or parts > _PARTS_MAX:
        raise InvalidRequest(_TOO_MANY, param="messages")
    return len(messages), is_text


def _read_media(told: Raw) -> list[_Message]:
    try:
        return _messages.decode(told)
    except msgspec.ValidationError as wrong:
        raise wrong_member(wrong, "messages") from None


def _input_tokens_max(fields: Mapping[str, Raw]) -> int:
    """A bound no byte-level tokenizer exceeds: a token is at least one byte of UTF-8, and JSON is never shorter."""
    total = _OVERHEAD_TOKENS + sum(len(memoryview(raw)) for name, raw in fields.items() if name not in _NOT_PROMPT)
    return total + (_OVERHEAD_TOKENS_TOOLS if "tools" in fields or "functions" in fields else 0)
