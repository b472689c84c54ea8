"""A large company for proofs of speed: its rows are made by the database itself, because an API would take days.

The small company is the same without them: the apps and keys that are asked with, declared like anybody's.
"""

import asyncio
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import asyncpg

from tests.chaos.postgres import plain
from tests.prove.server import Gateway

Store = Path | str

CALLERS = 64
_DEPARTMENTS = 100
_DAYS = 28
_COMPANY = """
departments: [{{name: fast}}]
use_cases: [{{name: measuring, purpose: Measuring what a request costs}}]
providers:
  - {{name: mock, dialect: openai, base_url: "http://127.0.0.1:{port}/v1", credential: mock}}
  - {{name: tool, dialect: openai, base_url: "http://127.0.0.1:{port}/tool/v1", credential: mock}}
models:
  - {{name: mock-model, provider: mock, output_tokens_max: 256, context_tokens: 8388608}}
  - {{name: tool-model, provider: tool, output_tokens_max: 256, context_tokens: 8388608}}
prices:
  - {{name: tool-model, model: tool-model, usd_per_million_tokens: {{input: "1", output: "4"}}}}
  - {{name: mock-model, model: mock-model, usd_per_million_tokens: {{input: "1", cached_input: "0.5", output: "4"}}}}
policies:
  - name: fast-mock
    models: [mock-model, tool-model]
    departments: [fast]
    use_cases: [measuring]
    data_class: restricted
budgets:
  - {{name: fast-month, scope: department, of: fast, period: month, limit_usd: "10000000"}}
apps:
"""
_APP = "  - {{name: fast-app-{number}, department: fast, use_cases: [measuring], {limits}}}\n"
_LIMITS = "requests_per_minute: 100000000, tokens_per_minute: 1000000000, concurrent: 100000"


@dataclass(frozen=True, slots=True)
class Size:
    """How much of everything a company has beside those who ask."""

    keys: int
    apps: int
    policies: int
    entries: int


async def found(gateway: Gateway, provider_port: int) -> list[str]:
    """Declare those who ask: so many apps of one department, with a key each. Returns the keys."""
    await gateway.put_credential("mock", "sk-mock")
    apps = "".join(_APP.format(number=number, limits=_LIMITS) for number in range(CALLERS))
    await gateway.apply(_COMPANY.format(port=provider_port) + apps)
    return [await gateway.create_key(name="fast-key", app=f"fast-app-{number}") for number in range(CALLERS)]


async def enlarge(store: Store, size: Size) -> None:
    """Make a company large whose gateway does not run. store: the file of SQLite, or PostgreSQL's URL."""
    if isinstance(store, Path):
        await asyncio.to_thread(_enlarge_sqlite, store, size)
        return
    connection = await asyncpg.connect(plain(store))
    try:
        await connection.execute(
            "SET synchronous_commit = off; SET maintenance_work_mem = '512MB'; SET work_mem = '256MB'"
        )
        for statement in _statements(size, _POSTGRES):
            await connection.execute(statement, timeout=1500)
        await connection.execute("CHECKPOINT")
    finally:
        await connection.close()


def _enlarge_sqlite(path: Path, size: Size) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for setting in ("synchronous=OFF", "cache_size=-1048576", "temp_store=MEMORY"):
            connection.execute(f"PRAGMA {setting}")
        connection.execute("BEGIN IMMEDIATE")
        for statement in _statements(size, _SQLITE):
            connection.execute(statement)
        connection.execute("COMMIT")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


@dataclass(frozen=True, slots=True)
class _Dialect:
    """How one database counts, pads, rolls dice and writes an instant; `{of}` is the number to write."""

    series: str
    digits: str
    dice: str
    bytes32: str
    instant: str
    true: str
    analyze: str


_SQLITE = _Dialect(
    series="(WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s LIMIT {count}) SELECT n FROM s)",
    digits="printf('%0{width}d', {of})",
    dice="lower(hex(randomblob(12)))",
    bytes32="randomblob(32)",
    instant="(strftime('%Y-%m-%d %H:%M:%f', {of}, 'unixepoch') || '000')",
    true="1",
    analyze="PRAGMA optimize",
)
_POSTGRES = _Dialect(
    series="(SELECT generate_series(1, {count}) AS n)",
    digits="lpad(({of})::text, {width}, '0')",
    dice="substr(md5(random()::text), 1, 24)",
    bytes32="sha256(random()::text::bytea)",
    instant="to_timestamp({of})",
    true="true",
    analyze="ANALYZE",
)
_UNTIL = {"sqlite": "CAST(strftime('%s', 'now') AS INTEGER)", "postgres": "floor(extract(epoch FROM now()))"}


def _statements(size: Size, dialect: _Dialect) -> list[str]:
    """What makes the rows, and what looks at them afterwards; indexes that arrive out of order are made last."""
    index = "CREATE INDEX ix_entries_provider_request_id ON entries (provider_request_id)"
    return [
        _departments(dialect),
        _apps(size, dialect),
        _policies(size, dialect),
        _keys(size, dialect),
        "DROP INDEX ix_entries_provider_request_id",
        _entries(size, dialect),
        index,
        dialect.analyze,
    ]


def _copies(dialect: _Dialect, *, kind: str, of: str, count: int, name: str, replaced: str, by: str) -> str:
    """So many documents like one that is declared, each with a name and a department of its own."""
    return (
        "INSERT INTO documents (kind, name, version, body, author, at, since) "
        f"SELECT d.kind, {name}, 1, replace(d.body, '\"{replaced}\"', '\"' || {by} || '\"'), d.author, d.at, 1 "
        f"FROM documents d, {dialect.series.format(count=count)} AS x WHERE d.kind = '{kind}' AND d.name = '{of}'"
    )


def _named(dialect: _Dialect, prefix: str, of: str = "n", width: int = 6) -> str:
    return f"('{prefix}' || {dialect.digits.format(width=width, of=of)})"


def _departments(dialect: _Dialect) -> str:
    name = _named(dialect, "department-", "n - 1")
    return _copies(dialect, kind="department", of="fast", count=_DEPARTMENTS, name=name, replaced="-", by="'-'")


def _apps(size: Size, dialect: _Dialect) -> str:
    name, by = _named(dialect, "app-", "n - 1"), _named(dialect, "department-", f"n % {_DEPARTMENTS}")
    return _copies(dialect, kind="app", of="fast-app-0", count=size.apps, name=name, replaced="fast", by=by)


def _policies(size: Size, dialect: _Dialect) -> str:
    name, by = _named(dialect, "policy-"), _named(dialect, "department-", f"n % {_DEPARTMENTS}")
    return _copies(dialect, kind="policy", of="fast-mock", count=size.policies, name=name, replaced="fast", by=by)


def _keys(size: Size, dialect: _Dialect) -> str:
    return (
        "INSERT INTO keys (id, digest, name, app, roles, created_at, created_by) "
        f"SELECT {_named(dialect, 'key_', width=26)}, {dialect.bytes32}, {_named(dialect, 'key-')}, "
        f"{_named(dialect, 'app-', f'n % {size.apps}')}, '', {dialect.instant.format(of='1760000000 + n')}, "
        f"'key_{'0' * 26}' FROM {dialect.series.format(count=size.keys)} AS x"
    )


def _entries(size: Size, dialect: _Dialect) -> str:
    """Each turn holds and posts; one in a hundred is an estimate that nobody has confirmed."""
    now = _UNTIL["sqlite" if dialect is _SQLITE else "postgres"]
    turns = size.entries // 2
    at = dialect.instant.format(of=f"{now} - {_DAYS * 86400.0} * (1 - n * 1.0 / {turns + 1})")
    held, posted = '{"input":512,"output":1024}', '{"input":217,"output":48}'
    columns = (
        "turn_id, attempt, step, kind, at, held_at, amount_nano_usd, estimated, target, provider, upstream_model, "
        'price_id, department, app, key_id, "user", use_case, data_class, process, budgets, tokens, input_tokens, '
        "output_tokens, cost, rates, provider_request_id, reason"
    )
    return (
        f"INSERT INTO entries ({columns}) SELECT {_named(dialect, 'turn_', width=26)}, 1, step, "
        f"CASE step WHEN 0 THEN 'hold' ELSE 'post' END, at, at, "
        f"CASE step WHEN 0 THEN 4608000 ELSE 217000 + n % 1000 * 1000 END, step = 1 AND n % 100 = 0, "
        "'mock-model', 'mock', 'mock-model', 'mock-model@1', "
        f"{_named(dialect, 'department-', f'n % {_DEPARTMENTS}')}, {_named(dialect, 'app-', f'n % {size.apps}')}, "
        f"{_named(dialect, 'key_', f'n % {size.keys} + 1', width=26)}, NULL, 'measuring', 'internal', "
        f"'proc_{'0' * 26}', '[[\"fast-month@1\",\"2026-01\"]]', "
        f"CASE step WHEN 0 THEN '{{}}' ELSE '{posted}' END, CASE step WHEN 0 THEN 0 ELSE 217 END, "
        f"CASE step WHEN 0 THEN 0 ELSE 48 END, CASE step WHEN 0 THEN '{held}' ELSE '{posted}' END, "
        'CASE step WHEN 0 THEN \'{"input":1000000,"cached_input":500000,"output":4000000}\' END, '
        f"CASE step WHEN 1 THEN 'chatcmpl-' || {dialect.dice} END, NULL "
        f"FROM (SELECT n, {at} AS at FROM {dialect.series.format(count=turns)} AS x) AS t, "
        "(SELECT 0 AS step UNION ALL SELECT 1) AS steps ORDER BY n, step"
    )
