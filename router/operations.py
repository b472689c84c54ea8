"""What may be asked of a provider, by what it speaks: as it comes, or through the translator. Nothing is sent here."""

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from kernel import Operation
from router.catalogue import Provider

_OPENAI = frozenset({Operation.CHAT, Operation.COMPLETIONS, Operation.EMBEDDINGS})
_ANTHROPIC = frozenset({Operation.MESSAGES, Operation.COUNT_TOKENS})
_NATIVE: Mapping[str, frozenset[Operation]] = MappingProxyType(
    {
        "openai": _OPENAI,
        "vllm": _OPENAI | _ANTHROPIC,
        "anthropic": _ANTHROPIC,
        "translated": frozenset(),
        "sandbox": _OPENAI | _ANTHROPIC,
    }
)
_TRANSLATED: Mapping[str, frozenset[Operation]] = MappingProxyType(
    {
        "openai": _ANTHROPIC,
        "anthropic": frozenset({Operation.CHAT}),
        "translated": frozenset({Operation.CHAT, Operation.EMBEDDINGS}) | _ANTHROPIC,
    }
)


def is_native(provider: Provider, operation: Operation) -> bool:
    """Whether the provider's own wire has this."""
    return operation in _NATIVE[provider.dialect]


def offered(provider: Provider) -> frozenset[Operation]:
    """All that can be asked of the provider's models.

    The translator has no way of its own through proxies or past certificates that a provider declares.
    """
    native = _NATIVE[provider.dialect]
    if provider.proxy or provider.ca_certificates or provider.client_certificate:
        return native
    return native | _TRANSLATED.get(provider.dialect, frozenset())


def without(providers: Iterable[Provider]) -> Mapping[Operation, frozenset[str]]:
    """The names of those providers that do not offer it, for each operation."""
    offers = {provider.name: offered(provider) for provider in providers}
    return {each: frozenset(name for name, known in offers.items() if each not in known) for each in Operation}
