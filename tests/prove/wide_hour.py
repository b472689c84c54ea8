"""Proof of docs/guides/first-hour.md: its blocks, as they stand and one after the other, in one shell."""

import asyncio
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.clients.environment import clients_python
from tests.prove.books import open_holds, read_attempts
from tests.prove.proofs import Bench, NotRun, Outcome, proof

GUIDE = Path("docs/guides/first-hour.md")
PORTS = (8000, 8080)
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_MARK = "~~~ block"
_SHELL_SECONDS = 180
# A namespace of its own has no address at all until its loopback is up.
_LOOPBACK_UP = (
    "import fcntl, os, socket, struct, sys; "
    "fcntl.ioctl(socket.socket(), 0x8914, struct.pack('16sh22x', b'lo', 0x41)); "
    "os.execvp(sys.argv[1], sys.argv[1:])"
)


class Busy(Exception):
    """The guide's ports are in use, and there is no network of one's own to be had here."""


@dataclass(frozen=True, slots=True)
class Block:
    """What is to be typed, in `sh` or `python`, and what will be seen then. section: the number of its heading."""

    section: int
    language: str
    text: str
    seen: str = ""


@dataclass(frozen=True, slots=True)
class Told:
    """How it went: the exit status, and what each block printed, as far as it came."""

    status: int
    printed: tuple[str, ...]


def blocks_of(page: str) -> list[Block]:
    """The blocks of the guide in their order; a `text` block is what the one before it prints."""
    found: list[Block] = []
    for number, section in enumerate(page.split("\n## ")):
        for language, text in _FENCE.findall(section):
            if language == "text":
                last = found.pop()
                found.append(Block(last.section, last.language, last.text, text))
            else:
                found.append(Block(number, language, text))
    return found


def unseen(block: Block, printed: str) -> list[str]:
    """The lines that the guide shows and the block did not print in that order; `...` stands for anything."""
    lines = iter([" ".join(line.split()) for line in printed.splitlines()])
    return [wanted for wanted in block.seen.splitlines() if not any(_fits(wanted, line) for line in lines)]


def _fits(wanted: str, line: str) -> bool:
    parts = [re.escape(" ".join(part.split())) for part in wanted.split("...")]
    return re.fullmatch(r"\s*" + r".*?".join(parts) + r"\s*", line) is not None


def network() -> list[str]:
    """What to put before a command so that the guide's ports are its own; nothing where ours are free. Raises Busy."""
    alone = ["unshare", "--net", *([] if os.geteuid() == 0 else ["--map-root-user"])]
    if shutil.which("unshare") and subprocess.run([*alone, "true"], capture_output=True, check=False).returncode == 0:
        return [*alone, sys.executable, "-I", "-c", _LOOPBACK_UP]
    for port in PORTS:
        with socket.socket() as asking:
            if asking.connect_ex(("127.0.0.1", port)) == 0:
                raise Busy(f"the guide's port {port} is in use here")
    return []


async def follow(
    blocks: Sequence[Block], folder: Path, *, paths: Iterable[Path], sdk: Path, environment: Mapping[str, str]
) -> Told:
    """Type the blocks into one shell in the folder. paths: where commands are found first; sdk: a Python that has it.

    Whatever a block leaves running is ended. Raises TimeoutError, and Busy.
    """
    script = folder.with_name(f"{folder.name}.sh")
    script.write_text("".join(f"{_typed(block, sdk)}echo; echo '{_MARK}'\n" for block in blocks))
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PENSTOCK_", "OPENAI_"))}
    path = os.pathsep.join([*map(str, paths), inherited["PATH"]])
    shell = await asyncio.create_subprocess_exec(
        *network(),
        *("bash", "-euo", "pipefail", str(script)),
        cwd=folder,
        env={**inherited, **environment, "PATH": path, "NO_PROXY": "*"},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(_SHELL_SECONDS):
            said, _ = await shell.communicate()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(shell.pid, signal.SIGKILL)
    return Told(await shell.wait(), tuple(said.decode(errors="replace").split(f"\n{_MARK}\n")))


def _typed(block: Block, sdk: Path) -> str:
    return block.text if block.language == "sh" else f"'{sdk}' - <<'PYTHON'\n{block.text}PYTHON\n"


def wrong(blocks: Sequence[Block], told: Told) -> list[str]:
    """What did not go as the guide says, in words; nothing where everything did."""
    if told.status or len(told.printed) <= len(blocks):
        failed = blocks[min(len(told.printed), len(blocks)) - 1]
        return [f"section {failed.section} ended with status {told.status}: {told.printed[-1][-600:]}"]
    return [
        f"section {block.section} does not print {line!r}: {printed[-600:]}"
        for block, printed in zip(blocks, told.printed, strict=False)
        for line in unseen(block, printed)
    ]


@proof(
    "wide.hour",
    what="docs/guides/first-hour.md in a copy of the tree and an empty folder: every block, as it stands, in one shell",
    must="every command works as it stands and prints what the guide shows",
    seconds_max=600,
)
async def hour(bench: Bench) -> Outcome:
    """`make install` is done before as well, because the shell has a network of its own that leads nowhere."""
    missing = [tool for tool in ("git", "make", "bash", "curl") if shutil.which(tool) is None]
    if missing:
        raise NotRun(f"the guide needs {', '.join(missing)}")
    tree, began = bench.workdir / "penstock", time.monotonic()
    await asyncio.to_thread(_copy_tree, bench.root, tree)
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PENSTOCK_", "MAKE", "PYTHON"))}
    with (bench.workdir / "install.log").open("wb") as log:
        making = await asyncio.create_subprocess_exec("make", "install", cwd=tree, env=clean, stdout=log, stderr=log)
        if await making.wait():
            raise AssertionError(f"make install ended with status {making.returncode}; see install.log")
    bench.figure("install, minutes", round((time.monotonic() - began) / 60, 2))
    sdk = await asyncio.to_thread(
        clients_python, bench.root / "requirements/clients.lock", bench.root / ".cache/clients"
    )
    blocks, began = blocks_of((tree / GUIDE).read_text()), time.monotonic()
    try:
        told = await follow(blocks, tree, paths=(), sdk=sdk, environment={"PYTHONPATH": ""})
    except Busy as busy:
        raise NotRun(str(busy)) from busy
    for line in (found := wrong(blocks, told)):
        bench.note(line)
    bench.figure("blocks", len(blocks))
    bench.figure("typed in minutes", round((time.monotonic() - began) / 60, 2))
    company = bench.workdir / "company/penstock-data"
    posted = [attempt for attempt in read_attempts(company).values() if attempt.state == "post"]
    bench.figure("turns in the books", len(posted))
    bench.figure("open holds", open_holds(company))
    return Outcome(not found and len(posted) > 0 and open_holds(company) == 0)


def _copy_tree(root: Path, to: Path) -> None:
    """What version control has or would take, as it stands now; of what is installed or built, nothing."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=root, capture_output=True, check=True).stdout.decode()
    for name in filter(None, listed.split("\0")):
        if (source := root / name).is_file():  # what was removed is still listed
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, to / name)
