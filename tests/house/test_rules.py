"""The house's rules as ordinary tests: each failure names the file, the line and the cure."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("kernel", "gateway", "router", "cost", "governance", "migrations")
CAPABILITIES = ("router", "cost", "governance")
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))

MODULE_LINES_MAX = 500
FUNCTION_LINES_MAX = 70
BANNED_NAMES = {"utils", "helpers", "common", "misc", "manager", "handler", "processor", "base", "service", "models"}
# Each exception is one line with its reason; the list may only shrink.
ENVIRONMENT_READERS = {"gateway/settings.py", "router/translator.py"}  # the latter is a program of its own
BROAD_EXCEPTS = {
    "gateway/edge.py": "the edge: whatever reaches it is a bug, logged by type, answered 500",
    "gateway/snapshot.py": "a background loop outlives its store",
    "cost/committer.py": "a background loop outlives its store",
    "cost/ledger.py": "a background loop outlives its store",
    "router/translator.py": "the edge of a process of its own: the stream says that it failed",
    "router/translation.py": "litellm's errors are many; each becomes one of the wire's, and is chained",
    "cost/opening.py": "a background task: whoever waits is refused, and the next one asks again",
}
BANNED_CALLS = {
    "datetime.now": "take a kernel.Clock",
    "datetime.utcnow": "take a kernel.Clock",
    "time.time": "take a kernel.Clock",
    "print": "return it, or log it",
    "asyncio.get_event_loop": "asyncio.get_running_loop",
}
CLOCK_HOLDERS = {"kernel/clock.py", "gateway/cli.py"}


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    yield from (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


@pytest.mark.parametrize("path", [*SOURCES, *TESTS], ids=name_of)
def test_modules_and_functions_stay_small(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    assert lines <= MODULE_LINES_MAX, f"{name_of(path)} has {lines} lines: split it by noun"
    if path.parent.name == "versions":
        return  # a migration is a list of statements, read once
    for function in functions(parsed(path)):
        length = (function.end_lineno or function.lineno) - function.lineno + 1
        assert length <= FUNCTION_LINES_MAX, f"{name_of(path)}:{function.lineno} {function.name} has {length} lines"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_names_refuse_something(path: Path) -> None:
    assert path.stem not in BANNED_NAMES, f"{name_of(path)}: name it after a noun of the domain"
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.ClassDef) and node.name != "Base":
            words = {word.lower() for word in re.findall("[A-Z][a-z]*", node.name)}
            assert not words & BANNED_NAMES, f"{name_of(path)}:{node.lineno} class {node.name}"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_nothing_banned_is_called(path: Path) -> None:
    for node in ast.walk(parsed(path)):
        where = f"{name_of(path)}:{getattr(node, 'lineno', 0)}"
        assert not isinstance(node, ast.Global), f"{where} global: hand it over in __init__"
        if isinstance(node, ast.Attribute) and ast.unparse(node) in {"os.environ", "os.getenv"}:
            assert name_of(path) in ENVIRONMENT_READERS, f"{where}: gateway/settings.py alone reads the environment"
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            cure = BANNED_CALLS.get(called)
            assert cure is None or name_of(path) in CLOCK_HOLDERS, f"{where} {called}: {cure}"
        if isinstance(node, ast.ExceptHandler):
            broad = node.type is None or ast.unparse(node.type) in {"Exception", "BaseException"}
            passes_on = isinstance(node.body[-1], ast.Raise) and node.body[-1].exc is None
            assert passes_on or not broad or name_of(path) in BROAD_EXCEPTS, (
                f"{where}: name the exception, or let it reach the edge"
            )


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_modules_hold_no_mutable_values(path: Path) -> None:
    if path.parent.name == "versions":
        return
    for node in parsed(path).body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.List | ast.Dict | ast.Set):
            target = ast.unparse(node.targets[0] if isinstance(node, ast.Assign) else node.target)
            assert target == "__all__" or (target.startswith("_") and target.isupper()), (
                f"{name_of(path)}:{node.lineno} {target}: a tuple, frozenset or MappingProxyType"
            )


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_other_folders_are_entered_by_their_front_door(path: Path) -> None:
    if name_of(path) in {"gateway/wiring.py", "migrations/env.py"}:
        return
    own = path.relative_to(ROOT).parts[0]
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.ImportFrom) and node.module and "." in node.module:
            folder = node.module.split(".")[0]
            entered = folder in CAPABILITIES and folder != own
            assert not entered, f"{name_of(path)}:{node.lineno} import from {folder}, not from {node.module}"


@pytest.mark.parametrize("path", [path for path in SOURCES if path.name in {"api.py", "control.py"}], ids=name_of)
def test_api_files_evaluate_their_annotations(path: Path) -> None:
    # With postponed annotations a locally defined dependency becomes a caller-supplied query parameter.
    assert "from __future__ import annotations" not in path.read_text(), name_of(path)


@pytest.mark.parametrize("folder", CAPABILITIES)
def test_only_edges_know_the_web_and_the_store(folder: str) -> None:
    rooms = {"sql.py", "tables.py", "api.py", "redis.py"}
    for path in (ROOT / folder).glob("*.py"):
        if path.name in rooms or path.name.startswith("sql_"):
            continue
        for node in ast.walk(parsed(path)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                banned = {"fastapi", "redis", "starlette"} | (set() if path.name == "audit.py" else {"sqlalchemy"})
                assert name.split(".")[0] not in banned, f"{name_of(path)}:{node.lineno} imports {name}"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_public_things_say_what_they_promise(path: Path) -> None:
    if path.parent.name == "versions":
        return
    assert ast.get_docstring(parsed(path)), f"{name_of(path)}: say what this file is for and what it does not do"


def test_no_file_names_the_machine_it_was_written_on() -> None:
    odd = re.compile("/" + r"work/|/" + r"root/|/" + "tmp/bash_jobs")
    for path in [*SOURCES, *TESTS, ROOT / "Makefile", *(ROOT / "docs").rglob("*.md"), ROOT / "README.md"]:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            assert not odd.search(line), f"{name_of(path)}:{number} names a path of one machine"


def test_locks_pin_everything_with_hashes() -> None:
    for lock in [*(ROOT / "requirements").glob("*.lock"), *(ROOT / "deploy").rglob("*.lock")]:
        text = lock.read_text()
        assert "+cpu" not in text, f"{lock.name} pins a wheel that only one machine has"
        assert "://" not in text, f"{lock.name} names an index"
        for pin in re.findall(r"^[a-z0-9][^=\s]*==.*$", text, re.MULTILINE):
            assert pin.rstrip().endswith("\\"), f"{lock.name}: {pin} has no hash"
