"""What callers say beside a request: five hints and tags, as headers, in the body, or in its metadata."""

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from gateway.errors import InvalidRequest
from kernel import NO_HINTS, DataClass, Hints

LATENCY_MS_MAX = 24 * 3600 * 1000
TAGS_MAX = 32
TAG_CHARACTERS_MAX = 128
_HINT_HEADERS = {
    "use_case": "x-use-case",
    "data_class": "x-data-class",
    "task_type": "x-task-type",
    "max_latency_ms": "x-max-latency-ms",
    "quality_level": "x-quality-level",
}
HINTS = frozenset(_HINT_HEADERS)
"""Their names, as members of `penstock` and of `metadata`."""


def read_hints(
    headers: Mapping[str, str], metadata: Mapping[str, str | None] | None, penstock: dict[str, Any] | UnsetType
) -> Hints:
    """What the caller said beside the request: header first, then `penstock` in the body, then `metadata`.

    Of several data classes the highest counts, wherever it was said: a hint raises, none lowers.
    """
    if metadata is None and penstock is UNSET and headers.keys().isdisjoint(_HINT_HEADERS.values()):
        return NO_HINTS
    own = penstock if isinstance(penstock, dict) else {}
    if own.keys() - _HINT_HEADERS.keys() - {"tags"}:
        raise InvalidRequest(
            f"penstock has a member that is not a hint; known are {', '.join([*_HINT_HEADERS, 'tags'])}.",
            param="penstock",
        )
    sources = [
        {name: (metadata or {})[name] for name in _HINT_HEADERS if name in (metadata or {})},
        own,
        {name: headers[header] for name, header in _HINT_HEADERS.items() if header in headers},
    ]
    said = {name: word for source in sources for name, word in source.items()}
    try:
        return Hints(
            use_case=_word(said, "use_case"),
            data_class=_highest(source["data_class"] for source in sources if "data_class" in source),
            task_type=_word(said, "task_type"),
            max_latency_ms=_latency_ms(said["max_latency_ms"]) if "max_latency_ms" in said else None,
            quality_level=_word(said, "quality_level"),
            tags=_tags(said.get("tags", ())),
        )
    except (KeyError, AttributeError):
        raise InvalidRequest(
            "data_class (header X-Data-Class) must be one of public, internal, confidential, restricted.",
            param="data_class",
        ) from None
    except (ValueError, TypeError, OverflowError):
        raise InvalidRequest(
            f"max_latency_ms must be a whole number from 1 to {LATENCY_MS_MAX} and tags a list of at most {TAGS_MAX} "
            f"strings of at most {TAG_CHARACTERS_MAX} characters.",
            param="penstock",
        ) from None


def _latency_ms(said: str | float) -> int:
    latency_ms = int(said)
    if not 1 <= latency_ms <= LATENCY_MS_MAX:
        raise ValueError
    return latency_ms


def _tags(said: object) -> tuple[str, ...]:
    tags = msgspec.convert(said, tuple[str, ...])
    if len(tags) > TAGS_MAX or any(len(tag) > TAG_CHARACTERS_MAX for tag in tags):
        raise ValueError
    return tags


def _highest(words: Iterable[str]) -> DataClass | None:
    """The highest of the classes named; a repeated header comes as a list with commas."""
    return max((DataClass.parse(word.strip()) for said in words for word in said.split(",")), default=None)


def _word(said: Mapping[str, Any], name: str) -> str | None:
    word = said.get(name)
    if word is not None and (not isinstance(word, str) or not 0 < len(word) <= 128):  # noqa: PLR2004 - as in the text
        raise InvalidRequest(f"{name} must be a string of 1 to 128 characters.", param=name)
    return word
