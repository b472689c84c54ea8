"""The clients that are tried: where each comes from, which script tries it, and how that is run."""

import asyncio
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tests.clients.environment import CACHE, clients_node, clients_python

SCRIPTS = Path(__file__).parent
_SECONDS_MAX = 180


@dataclass(frozen=True, slots=True)
class Client:
    """One client. slug: for names of apps and files. wire: whose door it takes. lock: of its Python environment."""

    slug: str
    script: str
    wire: Literal["openai", "anthropic"]
    lock: str = "clients.lock"


@dataclass(frozen=True, slots=True)
class Row:
    """What one case of one client found."""

    client: str
    version: str
    case: str
    ok: bool
    detail: str = ""


OPENAI = Client("openai-python", "openai_cases.py", "openai")
ANTHROPIC = Client("anthropic-python", "anthropic_cases.py", "anthropic")
CLIENTS = (
    OPENAI,
    Client("openai-npm", "openai_cases.mjs", "openai", "clients-node.lock"),
    Client("langchain-openai", "langchain_cases.py", "openai", "clients-langchain.lock"),
    Client("pydantic-ai", "pydantic_ai_cases.py", "openai", "clients-pydantic-ai.lock"),
    Client("openai-agents", "agents_cases.py", "openai", "clients-agents.lock"),
    ANTHROPIC,
    Client("anthropic-npm", "anthropic_cases.mjs", "anthropic", "clients-node.lock"),
)


def command(client: Client, locks: Path, cache: Path = CACHE) -> list[str]:
    """What runs the client's script, once its environment is there; making that needs the package index.

    Raises CalledProcessError, and FileNotFoundError for a lock that was not made.
    """
    if client.script.endswith(".mjs"):
        node, folder = clients_node(locks / client.lock, cache)
        return [str(node), str(folder / client.script)]
    return [str(clients_python(locks / client.lock, cache)), str(SCRIPTS / client.script)]


async def run(client: Client, run_by: list[str], told: dict[str, Any], workdir: Path) -> list[Row]:
    """The rows of its script, told that; a script that ends otherwise than it should adds one that says so."""
    file = workdir / f"{client.slug}.json"
    file.write_text(json.dumps(told))
    # Nothing of ours may tell the client anything: no key, no proxy, no address.
    environment = {"PATH": os.defpath, "HOME": str(workdir), "NO_COLOR": "1"}
    running = await asyncio.create_subprocess_exec(
        *run_by,
        str(file),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=workdir,
        env=environment,
    )
    try:
        async with asyncio.timeout(_SECONDS_MAX):
            out, err = await running.communicate()
    except TimeoutError:
        running.kill()
        out, err = await running.communicate()
    rows = [Row(**json.loads(line)) for line in out.splitlines() if line.startswith(b'{"client"')]
    failed = any(not row.ok for row in rows)
    if running.returncode != int(failed) or not rows:
        last = err.decode(errors="replace").strip().splitlines()[-1:]
        rows.append(Row(client.slug, rows[0].version if rows else "", "runs to its end", ok=False, detail=str(last)))
    return rows
