"""How the cases of a Python client are told, run and reported: one JSON line per case, whatever the client.

It runs in the client's own environment, so it imports nothing but the standard library. What a case found is decided
by the case; what became of it in the gateway's books is looked up by whoever started this.
"""

import asyncio
import inspect
import json
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

E = TypeVar("E", bound=BaseException)
MARK = "check_"
# One pixel.
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


class NotRun(Exception):
    """The server's state that this case needs was not named."""


def raised(expected: type[E], attempt: Callable[[], object], *, tries: int = 1) -> E:
    """The error of this family that one of so many tries must end in; any other passes through."""
    for _ in range(tries):
        try:
            attempt()
        except expected as error:
            return error
    raise AssertionError(f"no {expected.__name__}")


async def raised_by(expected: type[E], attempt: Callable[[], Awaitable[object]], *, tries: int = 1) -> E:
    """As `raised`, within a loop that runs."""
    for _ in range(tries):
        try:
            await attempt()
        except expected as error:
            return error
    raise AssertionError(f"no {expected.__name__}")


def run(check: Callable[[], object]) -> dict[str, Any]:
    """The check's verdict: pass, fail or not run, with the reason."""
    started = time.perf_counter()
    verdict, reason = "pass", ""
    try:
        result = check()
        if inspect.iscoroutine(result):
            asyncio.run(result)
    except NotRun as missing:
        verdict, reason = "not run", str(missing)
    except Exception as error:  # noqa: BLE001  # whatever went wrong is the finding
        verdict, reason = "fail", f"{type(error).__name__}: {error}"
    name = check.__name__.removeprefix(MARK)
    return {"name": name, "verdict": verdict, "reason": reason, "seconds": round(time.perf_counter() - started, 3)}


def checks_of(suite: type) -> list[str]:
    """The names of the methods check_*, inherited ones first, in the order in which they are written."""
    return list(dict.fromkeys(name for each in reversed(suite.__mro__) for name in vars(each) if name.startswith(MARK)))


def main(suite: type, client: str, version: str) -> int:
    """Run the suite on what the JSON file named on the command line tells, and print a line per case.

    `only` in it names the cases to run; empty means all. 1 when one failed.
    """
    given = SimpleNamespace(**json.loads(Path(sys.argv[1]).read_text()))
    cases, failed = suite(given), 0
    for name in checks_of(suite):
        if given.only and name.removeprefix(MARK) not in given.only:
            continue
        cases.calm()
        found = run(getattr(cases, name))
        if found["verdict"] == "not run":
            continue
        ok = found["verdict"] == "pass"
        line = {"client": client, "version": version, "case": found["name"], "ok": ok, "detail": found["reason"]}
        print(json.dumps(line), flush=True)
        failed += not ok
    return int(failed > 0)
