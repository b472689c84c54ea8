"""One request as it crosses the floors: raw bytes plus the few facts we read from them."""

from collections.abc import Iterator, Mapping
from enum import StrEnum

from msgspec import Raw, Struct, structs

from kernel.caller import DataClass


class Component(StrEnum):
    """The disjoint parts a provider bills. They sum to the provider's totals."""

    INPUT = "input"
    CACHED_INPUT = "cached_input"
    CACHE_WRITE = "cache_write"
    CACHE_WRITE_1H = "cache_write_1h"
    AUDIO_INPUT = "audio_input"
    IMAGE_INPUT = "image_input"
    OUTPUT = "output"
    REASONING = "reasoning"
    AUDIO_OUTPUT = "audio_output"

    __hash__ = str.__hash__  # Enum's own is written in Python, and every turn looks dozens of them up

    @property
    def is_output(self) -> bool:
        """Whether the model produced these tokens."""
        return self in _OUTPUTS


_OUTPUTS = frozenset({Component.OUTPUT, Component.REASONING, Component.AUDIO_OUTPUT})


class Usage(Struct, frozen=True):
    """Tokens by disjoint component, as the provider reported them."""

    tokens: Mapping[Component, int]

    @property
    def input_tokens(self) -> int:
        """All tokens that went in, cached or not."""
        return sum(count for part, count in self.tokens.items() if not part.is_output)

    @property
    def output_tokens(self) -> int:
        """All tokens that came out, reasoning included."""
        return sum(count for part, count in self.tokens.items() if part.is_output)

    @property
    def total_tokens(self) -> int:
        """All tokens."""
        return sum(self.tokens.values())


class Hints(Struct, frozen=True):
    """What the caller said about its request, beside the request itself."""

    use_case: str | None = None
    data_class: DataClass | None = None
    task_type: str | None = None
    max_latency_ms: int | None = None
    quality_level: str | None = None
    tags: tuple[str, ...] = ()


NO_HINTS = Hints()


class Operation(StrEnum):
    """What is asked of a model: whose wire the request and its answer are in, and which of its doors it takes."""

    CHAT = "chat"
    MESSAGES = "messages"
    COUNT_TOKENS = "count_tokens"
    COMPLETIONS = "completions"
    EMBEDDINGS = "embeddings"

    __hash__ = str.__hash__


class ModelRequest(Struct, frozen=True):
    """A request for a model, whose unknown fields stay the bytes they were.

    fields: top-level members as raw JSON, hints removed. model: the name as the caller wrote it.
    input_tokens_max: sound upper bound of prompt tokens (UTF-8 bytes); None where content is not text, so that
    only the target's context bounds it. output_tokens_max: what the caller asked for or, after `limited`, what was
    paid for; per choice; 0 for what has no answer of its own. choices: how many answers were asked for. size: of the
    body that it came in, in bytes. headers: what the caller's own say to the provider, names in lower case.
    """

    model: str
    fields: Mapping[str, Raw]
    stream: bool = False
    include_usage: bool = False
    choices: int = 1
    input_tokens_max: int | None = 0
    output_tokens_max: int | None = None
    hints: Hints = NO_HINTS
    size: int = 0
    operation: Operation = Operation.CHAT
    headers: Mapping[str, str] = {}

    def limited(self, output_tokens_max: int) -> "ModelRequest":
        """The request with a ceiling on its answer, because no more than that is set aside."""
        return structs.replace(self, output_tokens_max=output_tokens_max)


class ModelReply(Struct, frozen=True):
    """A whole answer: the body to hand on, what it used (None: the provider did not say) and the provider's id."""

    body: bytes
    usage: Usage | None
    provider_request_id: str | None = None


class Chunk(Struct, frozen=True, gc=False):
    """One server-sent event of a streamed answer.

    data: the JSON of the event. usage: set where this event carries it. content: whether the caller is
    given something by it, after which no other target may answer. usage_only: an event that exists only to
    carry usage, kept from callers who did not ask for it. final: its usage is the last word, since everything that
    it counts has come; any other usage is a running count. more: another event came with this one and follows at once.
    event: the event's name, on wires that name them.
    """

    data: bytes
    usage: Usage | None = None
    content: bool = True
    usage_only: bool = False
    provider_request_id: str | None = None
    final: bool = False
    more: bool = False
    event: str = ""


class Target(Struct, frozen=True, cache_hash=True):
    """A model on a provider, as the plan names it.

    name: the name callers, policies, prices and books use. context_tokens bounds prompt and answer together.
    output_tokens_max: ceiling of one answer. unpriced: may be used without a price, marked so in the books.
    hidden: unknown to departments that no policy lets in. prompt_overhead_tokens: what the provider's own template
    adds to every prompt, beyond a few tokens per message.
    """

    name: str
    provider: str
    upstream_model: str
    context_tokens: int
    output_tokens_max: int
    unpriced: bool = False
    hidden: bool = False
    prompt_overhead_tokens: int = 0


class Plan(Struct, frozen=True):
    """Targets in the order in which they will be tried, the name that led to them, and in words how it did."""

    requested: str
    targets: tuple[Target, ...]
    why: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Target]:
        """The targets, first choice first."""
        return iter(self.targets)
