"""The smallest value that a JSON schema allows, for tools and structured answers. It checks nothing."""

from typing import Any

from tests.sim.refusal import Refusal


def instance(schema: dict[str, Any]) -> Any:
    """A minimal value that satisfies a plain JSON schema: required members, first choices, local references."""
    return _instance(schema, schema, 0)


def _instance(schema: dict[str, Any], root: dict[str, Any], depth: int) -> Any:
    if depth > 32:
        raise Refusal(400, "The schema is nested too deeply.", "invalid_schema")
    if "$ref" in schema:
        return _instance(_resolve(str(schema["$ref"]), root), root, depth + 1)
    for key in ("const", "default"):
        if key in schema:
            return schema[key]
    if schema.get("enum"):
        return schema["enum"][0]
    for key in ("anyOf", "oneOf", "allOf"):
        if schema.get(key):
            return _instance(schema[key][0], root, depth + 1)
    kind = schema.get("type", "object")
    return _of_type((kind[0] if isinstance(kind, list) else kind).lower(), schema, root, depth)  # Gemini shouts


def _of_type(kind: str, schema: dict[str, Any], root: dict[str, Any], depth: int) -> Any:
    if kind == "object":
        properties = schema.get("properties", {})
        return {name: _instance(properties.get(name, {}), root, depth + 1) for name in schema.get("required", ())}
    if kind == "array":
        return [_instance(schema.get("items", {}), root, depth + 1) for _ in range(schema.get("minItems", 0))]
    if kind == "string":
        return "x" * max(1, schema.get("minLength", 1))
    plain: dict[str, object] = {
        "integer": schema.get("minimum", 1),
        "number": schema.get("minimum", 1),
        "boolean": True,
    }
    return plain.get(kind)


def _resolve(reference: str, root: dict[str, Any]) -> dict[str, Any]:
    found: Any = root
    for step in reference.removeprefix("#").strip("/").split("/"):
        found = found.get(step, {}) if step else found
    return found if isinstance(found, dict) else {}
