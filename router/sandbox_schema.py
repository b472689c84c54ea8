"""The smallest value that fits a JSON schema, for answers that must be JSON. It validates nothing.

Known: const, enum, type, properties, required, items, the bounds of numbers, strings and arrays, the combinators and
local references. Patterns are not followed. What is made is bounded, however the schema refers to itself.
"""

from collections.abc import Mapping

_VALUES_MAX = 1000
_DEPTH_MAX = 16
_REPEATS_MAX = 100
_FORMATS = (
    ("date-time", "2026-01-01T00:00:00Z"),
    ("date", "2026-01-01"),
    ("time", "00:00:00Z"),
    ("email", "sandbox@example.com"),
    ("uri", "https://example.com"),
    ("uuid", "00000000-0000-4000-8000-000000000000"),
)


def smallest_instance(schema: object) -> object:
    """A JSON value for the schema; null where it says nothing or is too deep."""
    return _Maker(schema).make(schema, 0)


class _Maker:
    def __init__(self, root: object) -> None:
        self._root = root
        self._left = _VALUES_MAX

    def make(self, schema: object, depth: int) -> object:
        self._left -= 1
        if not isinstance(schema, dict) or depth > _DEPTH_MAX or self._left < 0:
            return None
        if "$ref" in schema:
            return self.make(self._resolve(schema["$ref"]), depth + 1)
        for fixed in ("const", "default"):
            if fixed in schema:
                return schema[fixed]
        for choice in ("enum", "anyOf", "oneOf"):
            options = schema.get(choice)
            if isinstance(options, list) and options:
                return options[0] if choice == "enum" else self.make(options[0], depth + 1)
        parts = schema.get("allOf")
        if isinstance(parts, list) and parts:
            return self._merged([self.make(part, depth + 1) for part in parts])
        return self._typed(schema, depth)

    def _typed(self, schema: Mapping[str, object], depth: int) -> object:
        kind = schema.get("type", "object" if "properties" in schema else None)
        match kind[0] if isinstance(kind, list) and kind else kind:
            case "object":
                return self._object(schema, depth)
            case "array":
                count = min(_whole(schema.get("minItems")), _REPEATS_MAX)
                return [self.make(schema.get("items"), depth + 1) for _ in range(count)]
            case "string":
                known = next((text for name, text in _FORMATS if name == schema.get("format")), "")
                return known or "x" * min(_whole(schema.get("minLength")), _REPEATS_MAX)
            case "integer" | "number":
                return _number(schema)
            case "boolean":
                return False
            case _:
                return None

    def _object(self, schema: Mapping[str, object], depth: int) -> dict[str, object]:
        properties, required = schema.get("properties"), schema.get("required")
        known = properties if isinstance(properties, dict) else {}
        names = required if isinstance(required, list) else []
        return {name: self.make(known.get(name), depth + 1) for name in names if isinstance(name, str)}

    def _resolve(self, reference: object) -> object:
        found = self._root
        for part in str(reference).removeprefix("#").split("/")[1:]:
            found = found.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(found, dict) else None
        return found

    @staticmethod
    def _merged(parts: list[object]) -> object:
        objects = [part for part in parts if isinstance(part, dict)]
        return {name: value for part in objects for name, value in part.items()} if objects else parts[0]


def _number(schema: Mapping[str, object]) -> int | float:
    least, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    most = schema.get("maximum")
    if isinstance(above, int | float) and not isinstance(above, bool):
        return above + 1
    if isinstance(least, int | float) and not isinstance(least, bool):
        return least
    return min(0, most) if isinstance(most, int | float) and not isinstance(most, bool) else 0


def _whole(value: object) -> int:
    return max(0, value) if isinstance(value, int) and not isinstance(value, bool) else 0
