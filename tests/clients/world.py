"""What every client is pointed at: a gateway with the simulator behind it in both wires, and apps of the client's own.

It also knows what a client cannot: what became of its turns in the gateway's books and on the provider's side.
"""

import asyncio
import json
import sqlite3
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.clients.clients import Client, Row, run
from tests.clients.flaky import Flaky
from tests.prove.company import found_company
from tests.prove.server import Gateway, Simulator
from tests.sim.invoice import Finish, Line

# What can be asked of the sandbox too, which fails in no way that these clients are told to look for.
PLAIN = (
    "chat",
    "stream",
    "stream_usage",
    "tools",
    "tools_streamed",
    "structured",
    "image",
    "embeddings",
    "count_tokens",
)
_SETTLED_SECONDS = 5.0
_WIRES = """
providers:
  - {{name: sim-claude, dialect: anthropic, base_url: "{claude}", credential: sim}}
  - {{name: flaky, dialect: openai, base_url: "{flaky}/v1", credential: sim}}
  - {{name: flaky-claude, dialect: anthropic, base_url: "{flaky}/v1", credential: sim}}
models:
  - {{name: sim-embedding, provider: sim, upstream_model: sim-embed}}
  - {{name: openai-flaky, provider: flaky, upstream_model: sim-small, output_tokens_max: 256}}
  - {{name: openai-shut, provider: sim, upstream_model: sim-small}}
  - {{name: openai-secret, provider: sim, upstream_model: sim-small, hidden: true}}
  - {{name: claude, provider: sim-claude, upstream_model: sim-small, output_tokens_max: 256}}
  - {{name: anthropic-flaky, provider: flaky-claude, upstream_model: sim-small, output_tokens_max: 256}}
  - {{name: anthropic-shut, provider: sim-claude, upstream_model: sim-small}}
  - {{name: anthropic-secret, provider: sim-claude, upstream_model: sim-small, hidden: true}}
policies:
  - name: clients
    models: [sim-embedding, openai-flaky, claude, anthropic-flaky, sandbox]
    departments: [proof]
    use_cases: [proving]
    data_class: internal
prices:
"""
_PRICED = ("sim-embedding", "claude", *(f"{wire}-{end}" for wire in ("openai", "anthropic")
           for end in ("flaky", "shut", "secret")))  # fmt: skip
_RATES = '{{input: "1", cache_write: "1", cache_write_1h: "1", output: "4"}}'
_PRICE = f"  - {{{{name: {{0}}, model: {{0}}, usd_per_million_tokens: {_RATES}}}}}\n"
_APPS = """
apps:
  - {{name: {slug}, department: proof, use_cases: [proving]}}
  - {{name: {slug}-limited, department: proof, use_cases: [proving], requests_per_minute: 1}}
  - {{name: {slug}-broke, department: proof, use_cases: [proving]}}
  - {{name: {slug}-retry, department: proof, use_cases: [proving]}}
  - {{name: {slug}-still, department: proof, use_cases: [proving]}}
  - {{name: {slug}-timeout, department: proof, use_cases: [proving]}}
  - {{name: {slug}-cancel, department: proof, use_cases: [proving]}}
budgets: [{{name: {slug}-broke, scope: app, of: {slug}-broke, period: day, limit_usd: "0"}}]
"""
_CLOSINGS = """
SELECT turn_id || '/' || attempt, kind, estimated, provider_request_id FROM entries
WHERE step = 1 AND turn_id IN (SELECT turn_id FROM audit WHERE app = ? AND event = 'turn.admitted')
"""
_KEYS = ("limited", "broke", "retry", "still", "timeout", "cancel")
_SAID = {
    "failing_message": {"status": 500},
    "cut_message": {"tokens": 20, "error_at": 5},
    "slow_message": {"first_ms": 5000},
    "long_message": {"tokens": 200, "pace_ms": 20},
    # A proxy in front of a provider says so while the model may be at work: whoever asks again may pay twice.
    "perhaps_billed_message": {"status": 504},
}


@dataclass(frozen=True, slots=True)
class _Closing:
    """The entry that closed an attempt."""

    reference: str
    kind: str
    estimated: int
    provider_request_id: str | None

    def is_for(self, line: Line) -> bool:
        """Whether the provider's line is about this attempt, under our name for it or, where it keeps none, its own."""
        return line.client_request_id == self.reference or line.provider_request_id == self.provider_request_id


class World:
    """The gateway and what is behind it; `open` declares what there is before the first client comes."""

    def __init__(self, gateway: Gateway, simulator: Simulator, flaky: Flaky) -> None:
        self._gateway = gateway
        self._simulator = simulator
        self._flaky = flaky

    async def open(self) -> None:
        """Declare both wires to the simulator, models that are shut or hidden, and a provider that fails at first."""
        declared = _WIRES.format(claude=self._simulator.base_url, flaky=self._flaky.url)
        declared += "".join(_PRICE.format(name) for name in _PRICED)
        await found_company(self._gateway, self._simulator)
        await self._gateway.apply(declared)

    async def try_out(self, client: Client, run_by: list[str], workdir: Path, *, only: Iterable[str] = ()) -> list[Row]:
        """The client's rows, with apps of its own, and the books' word on those that are about more than an answer."""
        told = await self._told(client) | {"only": list(only)}
        rows = await run(client, run_by, told, workdir)
        return [await self._seen(client, row) for row in rows]

    async def try_sandbox(self, client: Client, run_by: list[str], workdir: Path) -> Row:
        """Whether the sandbox answers what is plain as it should. `try_out` comes first, and declares the apps."""
        told = {**await self._addresses(client), "only": list(PLAIN), "model": "sandbox", "embedding_model": "sandbox"}
        return _together(await run(client, run_by, told, workdir), "sandbox")

    async def try_simulator(self, client: Client, run_by: list[str], workdir: Path) -> Row:
        """Whether the simulator itself is as the vendor's client expects its vendor, where this is plain."""
        told = {
            "base_url": self._simulator.base_url,
            "root_url": self._simulator.url,
            "api_key": self._simulator.key,
            "model": "sim-small",
            "embedding_model": "sim-embed",
            "only": list(PLAIN),
        }
        return _together(await run(client, run_by, told, workdir), "simulator")

    async def _addresses(self, client: Client) -> dict[str, Any]:
        return {
            "base_url": f"{self._gateway.url}/v1",
            "root_url": self._gateway.url,
            "api_key": await self._gateway.create_key(name=client.slug, app=client.slug),
        }

    async def _told(self, client: Client) -> dict[str, Any]:
        await self._gateway.apply(_APPS.format(slug=client.slug))
        keys = {
            f"{end}_key": await self._gateway.create_key(name=f"{client.slug}-{end}", app=f"{client.slug}-{end}")
            for end in _KEYS
        }
        return {
            **await self._addresses(client),
            **keys,
            **{name: f"sim: {json.dumps(script)}" for name, script in _SAID.items()},
            "wrong_key": "sk-wrong",
            "model": "sim-small" if client.wire == "openai" else "claude",
            "embedding_model": "sim-embedding",
            "missing_model": "no-such-model",
            "forbidden_model": f"{client.wire}-shut",
            "hidden_model": f"{client.wire}-secret",
            "flaky_model": f"{client.wire}-flaky",
            "once_message": f"Good morning from {client.slug}.",
        }

    async def _seen(self, client: Client, row: Row) -> Row:
        """The row, if what the books say agrees with it."""
        looks: dict[str, tuple[str, Callable[[str], str]]] = {
            "error_402": ("broke", self._refused_once),
            "retry": ("retry", self._retried),
            "no_retry": ("still", self._not_retried),
            "timeout": ("timeout", self._hung_up),
            "cancel": ("cancel", self._hung_up),
        }
        if row.case not in looks or not row.ok:
            return row
        end, look = looks[row.case]
        wrong = await _until_right(lambda: asyncio.to_thread(look, f"{client.slug}-{end}"))
        return replace(row, ok=not wrong, detail=wrong)

    def _refused_once(self, app: str) -> str:
        found = self._read("SELECT count(*) FROM audit WHERE app = ? AND event = 'turn.refused'", app)[0][0]
        return "" if found == 1 else f"asked {found} times"

    def _retried(self, app: str) -> str:
        kinds = sorted(closing.kind for closing in self._closings(app))
        return "" if kinds == ["post", "void"] else f"the books have {kinds} instead of two turns, one of them void"

    def _not_retried(self, app: str) -> str:
        found = self._closings(app)
        return "" if len(found) == 1 else f"the books have {len(found)} turns instead of one"

    def _hung_up(self, app: str) -> str:
        found = self._closings(app)
        if [(closing.kind, closing.estimated) for closing in found] != [("post", 1)]:
            return f"not posted as an estimate: {found}"
        ends = [line.finish for line in self._simulator.invoice() if found[0].is_for(line)]
        return "" if ends == [Finish.CANCELLED] else f"the provider saw {ends}"

    def _closings(self, app: str) -> list[_Closing]:
        """How the books closed each attempt of the app's turns."""
        return [_Closing(*row) for row in self._read(_CLOSINGS, app)]

    def _read(self, statement: str, app: str) -> list[tuple]:
        connection = sqlite3.connect(f"file:{self._gateway.data_dir / 'penstock.db'}?mode=ro", uri=True, timeout=10)
        try:
            return connection.execute(statement, (app,)).fetchall()
        finally:
            connection.close()


def _together(rows: list[Row], case: str) -> Row:
    failed = [f"{row.case}: {row.detail}" for row in rows if not row.ok]
    return replace(rows[0], case=case, ok=not failed, detail="; ".join(failed))


async def _until_right(look: Callable[[], Awaitable[str]]) -> str:
    """What is wrong in the end: books are closed a moment after an answer, and a provider learns late who left."""
    until = time.monotonic() + _SETTLED_SECONDS
    while (wrong := await look()) and time.monotonic() < until:
        await asyncio.sleep(0.1)
    return wrong
