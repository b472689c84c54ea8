"""Whether documents of different capabilities name each other rightly: a limit on a misspelt app limits nobody."""

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


def check_references(documents: Iterable[Document]) -> None:
    """Raises InvalidDeclaration naming every field that refers to something that is not declared."""
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
    if faults:
        raise InvalidDeclaration("\n".join(faults))


def _references(document: Document) -> Iterator[tuple[str, str, str]]:
    """Field, kind and name of each thing that the document names."""
    for field, kind in _NAMED.get(document.kind, {}).items():
        value = document.body[field]
        yield from ((field, kind, name) for name in ([value] if isinstance(value, str) else value))
    if document.kind == "budget" and document.body["scope"] != "key":  # keys are rows, known to the store alone
        yield "of", document.body["scope"], document.body["of"]
