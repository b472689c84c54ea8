"""Every object, built once and by hand, in the order of who needs whom.

The only file that enters other folders' rooms.
"""

from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from prometheus_client import CollectorRegistry
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

import cost.api
import governance.api
from cost import KINDS as COST_KINDS
from cost import Ledger, LedgerMetrics, LedgerSettings, Reconciliation, Spend
from cost.sql import SqlLedgerStore
from gateway.chat import Chat
from gateway.control import caller_of, create_control
from gateway.demo import declare_demo, write_quickstart
from gateway.edge import Edge, EdgeLimits
from gateway.history import History
from gateway.metrics import Metrics
from gateway.schema import migrate
from gateway.secrets import read_secrets
from gateway.settings import Settings
from gateway.snapshot import Feed, Snapshot, View
from governance import KINDS as GOVERNANCE_KINDS
from governance import AuditReader, AuditTrail, Credentials, Keys, Limits, Policy, Register, Vault
from governance.sql import SqlStore
from governance.sql_audit import SqlChains, SqlTrail
from kernel import Document, SystemClock, new_id
from kernel.db import make_engine, reading
from router import KINDS as ROUTER_KINDS
from router import Upstreams, UpstreamSettings


@dataclass(frozen=True, slots=True)
class Platform:
    """Everything a process has. `async with` opens it for serving; commands use its parts without opening it."""

    settings: Settings
    engine: AsyncEngine
    snapshot: Snapshot
    feed: Feed
    register: Register
    keys: Keys
    credentials: Credentials
    trail: AuditReader
    ledger: Ledger
    spend: Spend
    reconciliation: Reconciliation
    upstreams: Upstreams
    edge: Edge
    _opened: AsyncExitStack

    async def __aenter__(self) -> Self:
        """Read what is declared, start the ledger. Closes what it opened if a later step fails."""
        async with AsyncExitStack() as opening:
            opening.push_async_callback(self.engine.dispose)
            await self.feed.start()
            opening.push_async_callback(self.feed.close)
            await self.ledger.start()
            opening.push_async_callback(self.ledger.close)
            opening.push_async_callback(self.upstreams.close)
            self._opened.push_async_callback(opening.pop_all().aclose)
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        """Close in reverse: upstreams, then the ledger, whose queue is drained first, then the store."""
        await self._opened.aclose()


def build(settings: Settings) -> Platform:
    """Construct everything; nothing is opened, started or read but the secrets. Raises SecretsUnusable."""
    clock, registry = SystemClock(), CollectorRegistry()
    secrets = read_secrets(settings)
    process = new_id("proc")
    engine = make_engine(settings.store_url)
    snapshot = Snapshot()

    chains = SqlChains()
    store = SqlStore(engine, AuditTrail(chains, f"admin-{process}", clock=clock), clock=clock)
    register = Register(store, {**GOVERNANCE_KINDS, **ROUTER_KINDS, **COST_KINDS}, clock=clock, check=_check)
    keys = Keys(store, secrets.pepper, directory=snapshot.directory, clock=clock)
    credentials = Credentials(store, Vault(secrets.master_key))
    trail = AuditReader(SqlTrail(engine))
    policy = Policy(snapshot.rules, snapshot.directory, clock=clock)
    limits = Limits(snapshot.directory, keys.allowance_of, clock=clock)

    metrics = LedgerMetrics(registry)
    books = SqlLedgerStore(engine, clock, metrics=metrics)
    ledger = Ledger(
        books,
        book=snapshot.book,
        audit=AuditTrail(chains, f"turns-{process}", clock=clock),
        clock=clock,
        process=process,
        settings=LedgerSettings(sole=settings.embedded, commit_timeout_seconds=settings.store_seconds),
    )
    metrics.watch(ledger)
    spend = Spend(books, book=snapshot.book, clock=clock)
    reconciliation = Reconciliation(books, record=register.record, clock=clock, process=process)
    upstreams = Upstreams(snapshot.catalogue, credentials.get, clock, UpstreamSettings())
    feed = Feed(
        snapshot=snapshot,
        register=register,
        keys=keys,
        credentials=credentials,
        poll_seconds=settings.changes_poll_seconds,
    )
    control = create_control(
        [
            governance.api.routes(
                register, keys, credentials=credentials, audit=trail, caller_of=caller_of, changed=feed.catch_up
            ),
            cost.api.routes(spend, reconciliation, caller_of),
        ]
    )
    edge = Edge(
        chat=Chat(catalogue=snapshot.catalogue, policy=policy, limits=limits, ledger=ledger, upstreams=upstreams),
        keys=keys,
        policy=policy,
        catalogue=snapshot.catalogue,
        ledger=ledger,
        history=History(ledger, trail),
        metrics=Metrics(registry),
        control=control,
        ready=_readiness(engine),
        clock=clock,
        limits=EdgeLimits(
            settings.body_bytes_max, settings.body_seconds, settings.store_seconds, settings.budget_exhausted_status
        ),
    )
    return Platform(
        settings, engine, snapshot, feed, register, keys, credentials, trail, ledger, spend, reconciliation,
        upstreams, edge, AsyncExitStack(),
    )  # fmt: skip


def _check(documents: Iterable[Document]) -> None:
    """Refuse a set of documents that do not fit each other, before it is written."""
    View.of(documents)


def _readiness(engine: AsyncEngine) -> Callable[[], Awaitable[dict[str, str]]]:
    async def ready() -> dict[str, str]:
        try:
            async with reading(engine).connect() as connection:
                await connection.execute(text("SELECT 1"))
        except (SQLAlchemyError, OSError, TimeoutError):
            return {"store": "unreachable"}
        return {"store": "ok"}

    return ready


async def first_start(platform: Platform) -> Path | None:
    """Migrate, and on an empty embedded store declare the demo. Returns quickstart.json's path, if there is one."""
    settings = platform.settings
    await migrate(platform.engine)
    path = settings.data_dir / "quickstart.json"
    _, documents = await platform.register.load()
    wanted = settings.embedded if settings.demo is None else settings.demo
    if documents or not wanted:
        return path if path.exists() else None
    made = await declare_demo(platform.register, platform.keys, platform.feed.load)
    write_quickstart(path, f"http://{settings.host}:{settings.port}/v1", made)
    return path
