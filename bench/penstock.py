"""Ours, with everything on: keys, policy, limits, budgets, holds, the ledger, the trail, metrics.

It is founded in a first life, which is not timed; the second finds its store as any later start does.
"""

import asyncio
import json
import secrets
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, closing
from pathlib import Path
from statistics import median
from typing import Any

import asyncpg

from bench.asking import Address, chat, first_answer, get
from bench.cores import on_core
from bench.gateways import FIRST_ANSWER_SECONDS, Place, Running
from bench.processes import Failed
from tests.chaos.postgres import PostgresServer, plain
from tests.chaos.redis import RedisServer
from tests.prove.proofs import NotRun
from tests.prove.server import Gateway, Refused, StartFailed

_COMPANY = """
departments: [{{name: bench}}]
use_cases: [{{name: measuring, purpose: Measuring what a request costs}}]
apps:
  - name: bench-app
    department: bench
    use_cases: [measuring]
    requests_per_minute: 100000000
    tokens_per_minute: 1000000000
    concurrent: 100000
providers:
  - {{name: mock, dialect: openai, base_url: "http://127.0.0.1:{mock_port}/v1", credential: mock}}
models:
  - {{name: mock-model, provider: mock, output_tokens_max: 256, context_tokens: 8192}}
prices:
  - {{name: mock-model, model: mock-model, usd_per_million_tokens: {{input: "1", cached_input: "0.5", output: "4"}}}}
policies:
  - name: bench-mock
    models: [mock-model]
    departments: [bench]
    use_cases: [measuring]
    data_class: internal
budgets:
  - {{name: bench-month, scope: department, of: bench, period: month, limit_usd: "1000000"}}
  - {{name: bench-app-month, scope: app, of: bench-app, period: month, limit_usd: "1000000"}}
"""
_PACE_SECONDS = 0.05
_ROW = "x" * 300


@asynccontextmanager
async def on_sqlite(place: Place) -> AsyncIterator[Running]:
    """One process with its store in a file."""

    async def commit_ms(times: int) -> float:
        with on_core(place.cores.gateway):
            return await _sqlite_commit_ms(place.folder / "yardstick.db", times)

    async with _running(place, {}, commit_ms) as running:
        yield running


@asynccontextmanager
async def on_postgres(place: Place) -> AsyncIterator[Running]:
    """One process of what may be many: PostgreSQL holds the state, Redis the limits; both on the core beside."""
    async with AsyncExitStack() as stack:
        try:
            postgres = await stack.enter_async_context(PostgresServer(place.folder))
            redis = await stack.enter_async_context(RedisServer(place.folder))
        except (NotRun, StartFailed) as error:
            raise Failed(str(error)) from error
        settings = {
            "PENSTOCK_DATABASE_URL": postgres.url,
            "PENSTOCK_REDIS_URL": redis.url,
            "PENSTOCK_KEY_PEPPER": secrets.token_hex(32),
            "PENSTOCK_MASTER_KEY": secrets.token_hex(32),
            "PENSTOCK_DEMO": "true",
        }

        async def commit_ms(times: int) -> float:
            with on_core(place.cores.gateway):
                return await _postgres_commit_ms(plain(postgres.url), times)

        yield await stack.enter_async_context(_running(place, settings, commit_ms))


@asynccontextmanager
async def _running(
    place: Place, settings: dict[str, str], commit_ms: Callable[[int], Awaitable[float]]
) -> AsyncIterator[Running]:
    (place.folder / "data").mkdir()
    gateway = Gateway(place.folder, environment=settings)
    try:
        async with gateway:
            await gateway.put_credential("mock", "sk-mock")
            await gateway.apply(_COMPANY.format(mock_port=place.mock_port))
            key = await gateway.create_key(name="bench-key", app="bench-app")
        address = Address(gateway.port, headers=(f"Authorization: Bearer {key}",))
        began = time.monotonic()
        async with AsyncExitStack() as stack:
            with on_core(place.cores.gateway):
                await stack.enter_async_context(gateway)
            await first_answer(address, seconds=FIRST_ANSWER_SECONDS)
            yield Running(
                address,
                gateway.process.pid,
                time.monotonic() - began,
                explain=lambda: explain(address),
                commit_ms=commit_ms,
            )
    except (Refused, StartFailed, TimeoutError) as error:
        raise Failed.with_log(str(error), place.folder / "gateway.log") from error


async def explain(address: Address) -> dict[str, Any]:
    """Make a turn and fetch what its books and its trail tell of it, once it is settled. Raises Failed."""
    turn_id = (await chat(address)).headers["x-request-id"]
    told: dict[str, Any] = {}
    for _ in range(200):
        answer = await get(address.port, f"/v1/requests/{turn_id}", *address.headers)
        told = json.loads(answer.body)
        if told.get("outcome") == "answered":
            return told
        await asyncio.sleep(0.01)
    raise Failed(f"turn {turn_id} was not settled; it is told as {json.dumps(told)[:300]}")


def unseen(told: Mapping[str, Any]) -> list[str]:
    """The checks that a turn's own account does not show to have been on."""
    attempts = told.get("attempts") or [{}]
    ruled = told.get("policy", {}).get("targets") or [{}]
    limited = told.get("limits") or {}
    shown = {
        "key": bool(told.get("key")),
        "policy": bool(ruled[0].get("policy")),
        "limits": bool(limited),
        "hold": bool(attempts[0].get("held_nano_usd")),
        "ledger": attempts[0].get("state") == "posted" and bool(attempts[0].get("price_id")),
        "trail": told.get("outcome") == "answered",
        "content scan": "scan" in told,
    }
    return [check for check, there in shown.items() if not there]


async def _sqlite_commit_ms(path: Path, times: int) -> float:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for setting in ("journal_mode=WAL", "synchronous=FULL"):
            connection.execute(f"PRAGMA {setting}").fetchall()
        connection.execute("CREATE TABLE IF NOT EXISTS yardstick (id INTEGER PRIMARY KEY, body TEXT)")

        async def commit() -> None:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("INSERT INTO yardstick (body) VALUES (?)", (_ROW,))
            connection.execute("COMMIT")

        return await _median_ms(commit, times)


async def _postgres_commit_ms(url: str, times: int) -> float:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("CREATE TABLE IF NOT EXISTS yardstick (id BIGSERIAL PRIMARY KEY, body TEXT)")
        insert = await connection.prepare("INSERT INTO yardstick (body) VALUES ($1)")

        async def commit() -> None:
            await insert.fetch(_ROW)

        return await _median_ms(commit, times)
    finally:
        await connection.close()


async def _median_ms(commit: Callable[[], Awaitable[None]], times: int) -> float:
    """At the pace of the requests that are measured against it: what rests in between is as cold as for them."""
    taken = []
    for _ in range(times):
        await asyncio.sleep(_PACE_SECONDS)
        began = time.perf_counter()
        await commit()
        taken.append((time.perf_counter() - began) * 1e3)
    return median(taken)
