"""How a vendor's SDK judges the simulator: named checks, strict shapes, and what each call used by its own account.

The checks run in an environment that holds the SDKs and nothing of ours, so nothing of ours is imported here.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pydantic

E = TypeVar("E", bound=Exception)

PIXEL = "iVBORw0KGgo="
PARAMETERS = {
    "type": "object",
    "properties": {"place": {"type": "string"}, "hour": {"type": "integer"}},
    "required": ["place", "hour"],
}


class Checks:
    """The methods named check_* are the checks. used: components by the request's id, for the invoice to be held to."""

    sdk: str

    def __init__(self, url: str, key: str) -> None:
        self.url, self.key = url, key
        self.used: dict[str, dict[str, int]] = {}

    def run(self, only: str) -> Iterator[dict[str, Any]]:
        """The verdict of each check, in the order in which they are written."""
        for name in (name for name in vars(type(self)) if name.startswith("check_") and only in name):
            started, verdict, reason = time.perf_counter(), "pass", ""
            try:
                getattr(self, name)()
            except Exception as error:  # noqa: BLE001 - whatever went wrong is the finding
                verdict, reason = "fail", f"{type(error).__name__}: {error}"
            seconds = round(time.perf_counter() - started, 3)
            yield {"name": name.removeprefix("check_"), "verdict": verdict, "reason": reason, "seconds": seconds}


def scripted(**script: Any) -> str:
    """The message that makes the simulator follow the script."""
    return "sim: " + json.dumps(script)


def strict(kind: Any, data: str | bytes) -> Any:
    """The JSON as the SDK's own type, with no member of a wrong type and none that the type does not know."""
    read = pydantic.TypeAdapter(kind).validate_json(data, strict=True)
    unknown = sorted(_unknown(read, "$"))
    assert not unknown, f"{kind.__name__ if isinstance(kind, type) else 'the type'} knows no {unknown}"
    return read


def _unknown(value: object, place: str) -> Iterator[str]:
    if isinstance(value, list):
        for index, each in enumerate(value):
            yield from _unknown(each, f"{place}[{index}]")
    elif isinstance(value, pydantic.BaseModel):
        yield from (f"{place}.{name}" for name in value.model_extra or ())
        for name in type(value).model_fields:
            yield from _unknown(getattr(value, name), f"{place}.{name}")


def raised(expected: type[E], attempt: Callable[[], object]) -> E:
    """The error that the attempt must end in, of exactly this class; any other passes through."""
    try:
        attempt()
    except expected as error:
        if type(error) is expected:
            return error
        raise
    raise AssertionError(f"no {expected.__name__}")


def data_of(lines: Iterator[str]) -> list[str]:
    """The data of a stream's events, but for OpenAI's last word."""
    said = (line.removeprefix("data: ") for line in lines if line.startswith("data: "))
    return [data for data in said if data != "[DONE]"]


def main(checks: type[Checks]) -> int:
    """Run them; 1 when one failed."""
    parser = argparse.ArgumentParser(description=checks.__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--key", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default="", help="checks whose name contains this")
    given = parser.parse_args()
    suite = checks(given.url, given.key)
    results = []
    for result in suite.run(given.only):
        results.append(result)
        print(f"{result['verdict']:6}{result['name']} {result['reason']}".rstrip())
    given.out.write_text(json.dumps({"sdk": suite.sdk, "checks": results, "used": suite.used}, indent=2) + "\n")
    return int(any(result["verdict"] == "fail" for result in results))
