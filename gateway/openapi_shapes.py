"""What goes in and out at the doors, as types that the OpenAPI document is made of. Nothing is read or written by them.

What comes in builds on the types that the doors read by. What goes out is what providers say, handed on as it came:
told here is what every one of them says.
"""

from datetime import datetime
from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType, field

from gateway.dialect import CHOICES_MAX, MESSAGES_MAX, MODEL_CHARACTERS_MAX
from gateway.dialect import Facts as ChatFacts
from gateway.hints import LATENCY_MS_MAX, TAG_CHARACTERS_MAX, TAGS_MAX
from gateway.messages import HEADER_CHARACTERS_MAX, OWN_TOOLS
from gateway.messages import Facts as MessageFacts

Object = dict[str, Any]
States = dict[str, str]
Usd = Annotated[str, Meta(pattern=r"^-?[0-9]+\.[0-9]{9}$")]
Word = Annotated[str, Meta(min_length=1, max_length=128)]
HeaderWord = Annotated[str, Meta(pattern=r"^\S(.{0,126}\S)?$")]
HeaderText = Annotated[str, Meta(pattern=f"^[ -~]{{0,{HEADER_CHARACTERS_MAX}}}$")]
DataClassWord = Literal["public", "internal", "confidential", "restricted"]
Milliseconds = Annotated[int, Meta(ge=1, le=LATENCY_MS_MAX)]
ModelName = Annotated[str, Meta(min_length=1, max_length=MODEL_CHARACTERS_MAX)]
Ceiling = Annotated[int, Meta(ge=1)]
Choices = Annotated[int, Meta(ge=1, le=CHOICES_MAX)]
Tag = Annotated[str, Meta(max_length=TAG_CHARACTERS_MAX)]

# Errors


class ErrorDetail(Struct):
    """OpenAI's, all four members always there."""

    message: str
    type: str
    param: str | None
    code: str | None


class Error(Struct):
    """Why nothing came of a request."""

    error: ErrorDetail


class MessagesErrorDetail(Struct):
    """Anthropic's, with our code and the member at fault."""

    type: str
    message: str
    code: str
    param: str | None


class MessagesError(Struct):
    """Why nothing came of a request, in Anthropic's wire."""

    type: Literal["error"]
    error: MessagesErrorDetail
    request_id: str


# What callers send


class HintHeaders(Struct):
    """Hints beside any body; `metadata` may hold them too, by the names that they have in `penstock`."""

    use_case: HeaderWord | UnsetType = field(default=UNSET, name="x-use-case")
    data_class: DataClassWord | UnsetType = field(default=UNSET, name="x-data-class")
    task_type: HeaderWord | UnsetType = field(default=UNSET, name="x-task-type")
    max_latency_ms: Milliseconds | UnsetType = field(default=UNSET, name="x-max-latency-ms")
    quality_level: HeaderWord | UnsetType = field(default=UNSET, name="x-quality-level")


class MessageHeaders(HintHeaders):
    """Hints, and what is Anthropic's."""

    anthropic_version: HeaderText | UnsetType = field(default=UNSET, name="anthropic-version")
    anthropic_beta: HeaderText | UnsetType = field(default=UNSET, name="anthropic-beta")


class PenstockHints(Struct, forbid_unknown_fields=True):
    """Hints in a body; a header goes before them."""

    use_case: Word | None = None
    data_class: DataClassWord | UnsetType = UNSET
    task_type: Word | None = None
    max_latency_ms: Milliseconds | UnsetType = UNSET
    quality_level: Word | None = None
    tags: Annotated[list[Tag], Meta(max_length=TAGS_MAX)] | UnsetType = UNSET


class Told(Struct):
    """A message of any role; parts of any kind."""

    role: str
    content: str | list[Object] | None = None


class OpenAIRequest(ChatFacts, kw_only=True):
    """What OpenAI's doors have in common. Members that are not named are handed on as they came."""

    model: ModelName
    n: Choices | None = None
    max_tokens: Ceiling | None = None
    max_completion_tokens: Ceiling | None = None
    service_tier: Literal["auto", "default"] | None = None
    penstock: PenstockHints | UnsetType = UNSET  # type: ignore[assignment]  # the door reads it into a dict first


class ChatRequest(OpenAIRequest, kw_only=True):
    """A question to a model."""

    messages: Annotated[list[Told], Meta(min_length=1, max_length=MESSAGES_MAX)]


class CompletionRequest(OpenAIRequest, kw_only=True):
    """A text to go on with: one, several, or their tokens."""

    prompt: str | list[str | int | list[int]]


class EmbeddingRequest(OpenAIRequest, kw_only=True):
    """Texts to embed: one, several, or their tokens."""

    input: str | list[str | int | list[int]]
    stream: Literal[False] | None = None


class MessageTold(Struct):
    """A message in Anthropic's wire."""

    role: str
    content: str | list[Object]


class OwnTool(Struct):
    """A tool that the caller carries out; what runs at the provider has fees that cannot be priced."""

    type: Annotated[str, Meta(pattern=f"^(custom$|{'|'.join(OWN_TOOLS)})")] | None = None


class CountRequest(MessageFacts, kw_only=True):
    """A question how long a message would be."""

    model: ModelName
    messages: Annotated[list[MessageTold], Meta(min_length=1, max_length=MESSAGES_MAX)]
    tools: list[OwnTool] | None = None
    penstock: PenstockHints | UnsetType = UNSET  # type: ignore[assignment]  # the door reads it into a dict first
    stream: Literal[False] | None = None


class MessageRequest(CountRequest, kw_only=True):
    """A question to a model in Anthropic's wire."""

    max_tokens: Ceiling
    stream: bool | None = None  # type: ignore[assignment]


# What callers are told


class Event(Struct):
    """One of the server-sent events of a stream; one whose data is an error ends what could not be finished.

    data: a `chat.completion.chunk` or another wire's like, as JSON; last of all `[DONE]` in OpenAI's.
    """

    data: str
    event: str | UnsetType = UNSET


class Health(Struct):
    """The process answers."""

    status: Literal["ok"]


class Model(Struct):
    """A name that may be asked for."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(Struct):
    """The names that may be asked for."""

    object: Literal["list"]
    data: list[Model]


class AttemptTold(Struct):
    """One target's try: its hold, how it ended, and what it cost in the end."""

    attempt: int
    target: str
    provider: str
    price_id: str | None
    held_nano_usd: int
    state: Literal["pending", "posted", "voided"]
    cost_nano_usd: int
    tokens: dict[str, int]
    estimated: bool
    provider_request_id: str | None


class RequestTold(Struct):
    """What happened to a request, without its content."""

    id: str
    object: Literal["request"]
    at: datetime
    app: str | None
    department: str | None
    outcome: str
    milliseconds: dict[str, float]
    attempts: list[AttemptTold]
    cost_usd: Usd


class ChatUsage(Struct):
    """OpenAI's count of tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatChoice(Struct):
    """One of the answers that were asked for."""

    index: int
    message: Object
    finish_reason: str | None


class ChatCompletion(Struct):
    """A whole answer."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: ChatUsage | None = None


class CompletionChoice(Struct):
    """One of the texts that were asked for."""

    index: int
    text: str
    finish_reason: str | None


class Completion(Struct):
    """A whole text."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: ChatUsage | None = None


class Embedding(Struct):
    """One text's place; as base64 where that was asked for."""

    index: int
    object: Literal["embedding"]
    embedding: list[float] | str


class EmbeddingUsage(Struct):
    """OpenAI's count of tokens, of which none came out."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(Struct):
    """The places of all texts."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage | None = None


class MessageUsage(Struct):
    """Anthropic's count of tokens: what was read from a cache is beside it."""

    input_tokens: int
    output_tokens: int


class Message(Struct):
    """A whole answer in Anthropic's wire."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[Object]
    stop_reason: str | None
    usage: MessageUsage


class TokenCount(Struct):
    """How long the message would be."""

    input_tokens: int
