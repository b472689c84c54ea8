"""Whether documents of different capabilities fit each other: a limit on a misspelt app limits nobody."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType

from kernel import Document, InvalidDeclaration

# kind -> field -> what it names. `*` stands for all and names nothing.
_NAMED: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "price": {"model": "model"},
        "policy": {"models": "model", "departments": "department", "use_cases": "use_case"},
        "grant": {"app": "app", "model": "model", "use_case": "use_case"},
    }
)

# Writing to the cache costs more there than any other token that goes in, and callers decide about it.
_CACHE_WRITES = ("cache_write", "cache_write_1h")
_BILLS_CACHE_WRITES = "anthropic"


def check_references(documents: Iterable[Document]) -> None:
    """Raises InvalidDeclaration naming every field that refers to something that is not declared.

    Also every price that would let callers spend more than is held: a rate that is missing counts as another one.
    """
    known: dict[str, set[str]] = defaultdict(set)
    documents = list(documents)
    for document in documents:
        known[document.kind].add(document.name)
    faults = [
        f"{document.kind} '{document.name}': {field} names {kind} '{name[:128]}', which is not declared; declare it"
        for document in documents
        for field, kind, name in _references(document)
        if name != "*" and name not in known[kind]
    ]
    faults += _without_cache_writes(documents)
    if faults:
        raise InvalidDeclaration("\n".join(faults))


def _without_cache_writes(documents: Iterable[Document]) -> Iterator[str]:
    bodies = {(each.kind, each.name): each.body for each in documents}
    for document in documents:
        if document.kind != "price":
            continue
        model = bodies.get(("model", document.body["model"]), {})
        provider = bodies.get(("provider", model.get("provider", "")), {})
        rates = document.body["usd_per_million_tokens"]
        missing = [part for part in _CACHE_WRITES if part not in rates]
        if missing and _BILLS_CACHE_WRITES in {provider.get("dialect"), provider.get("translate_as")}:
            yield (
                f"price '{document.name}': usd_per_million_tokens has no {' and no '.join(missing)}, which this "
                "provider bills above input (1.25 and 2 times, at Anthropic); say what they cost"
            )


def _references(document: Document) -> Iterator[tuple[str, str, str]]:
    """Field, kind and name of each thing that the document names."""
    for field, kind in _NAMED.get(document.kind, {}).items():
        value = document.body[field]
        yield from ((field, kind, name) for name in ([value] if isinstance(value, str) else value))
    if document.kind == "budget" and document.body["scope"] != "key":  # keys are rows, known to the store alone
        yield "of", document.body["scope"], document.body["of"]
