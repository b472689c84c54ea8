"""Every object, built once and by hand, in the order of who needs whom.

The only file that enters other folders' rooms.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from random import SystemRandom
from types import TracebackType
from typing import NamedTuple, Self

from prometheus_client import CollectorRegistry
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

import cost.api
import gateway.models_api
import governance.api
from cost import KINDS as COST_KINDS
from cost import BudgetMetrics, Ledger, LedgerMetrics, LedgerSettings, Period, Reconciliation, Spend
from cost.sql import SqlLedgerStore
from cost.sql_reports import SqlReports
from gateway.chat import Chat
from gateway.control import caller_of, create_control
from gateway.demo import DEMO_KEYS, FIRST_START, declare_demo, write_quickstart
from gateway.edge import Edge, EdgeLimits, TurnLog
from gateway.history import History
from gateway.metrics import Metrics
from gateway.openapi import describe
from gateway.overload import Admission
from gateway.ownership import ServingLock
from gateway.references import check_references
from gateway.replicas import Replicas
from gateway.schema import migrate, require_durable
from gateway.secrets import read_secrets
from gateway.settings import Settings
from gateway.snapshot import Feed, Snapshot, View
from gateway.telemetry import Telemetry, otlp
from gateway.translator import TranslatorBeside, TranslatorChild
from gateway.trials import Trials, Unjudged
from governance import KINDS as GOVERNANCE_KINDS
from governance import (
    AuditReader,
    AuditTrail,
    Credentials,
    Guard,
    Keys,
    Limits,
    MemoryCounters,
    Policy,
    Register,
    TrailMetrics,
    Vault,
)
from governance.sql import SqlStore
from governance.sql_audit import DriverChains, SqlChains, SqlTrail
from kernel import Clock, Component, Document, ModelRequest, SystemClock, Target, Usage, new_id
from kernel.db import make_engine, reading
from router import KINDS as ROUTER_KINDS
from router import (
    Health,
    HealthMetrics,
    Lookout,
    Pages,
    Router,
    ServerMetrics,
    Translator,
    TranslatorMetrics,
    Upstreams,
    UpstreamSettings,
    prompt_tokens,
)

_READY_SECONDS = 1.0
# The committer, the lease, the sweep and two budgets that are being opened; reports never make any of them wait.
_LEDGER_CONNECTIONS = 5
_ADMINISTRATION_IDLE_SECONDS = 30.0  # checking much that is declared takes long, under a lock that no turn needs
_LIKELY_OUTPUT_TOKENS = 1000  # of an answer without a limit, the same for every target that is compared


class _Engines(NamedTuple):
    """The store's connections by who uses them, so that reports make neither a commit nor a change wait."""

    ledger: AsyncEngine
    reports: AsyncEngine
    administration: AsyncEngine

    @classmethod
    def of(cls, settings: Settings) -> "_Engines":
        url, seconds = settings.store_url, settings.store_seconds
        return cls(
            ledger=make_engine(url, timeout_seconds=seconds, pool_size=_LEDGER_CONNECTIONS),
            reports=make_engine(url, timeout_seconds=seconds),
            administration=make_engine(url, timeout_seconds=seconds, idle_seconds=_ADMINISTRATION_IDLE_SECONDS),
        )


@dataclass(frozen=True, slots=True)
class Platform:
    """Everything a process has. `async with` opens it for serving; commands use its parts without opening it.

    engine: for what is declared, and for whoever else asks; engines: all of them.
    """

    settings: Settings
    engine: AsyncEngine
    engines: tuple[AsyncEngine, ...]
    snapshot: Snapshot
    feed: Feed
    register: Register
    keys: Keys
    credentials: Credentials
    trail: AuditReader
    ledger: Ledger
    spend: Spend
    budgets: BudgetMetrics
    reconciliation: Reconciliation
    health: Health
    lookout: Lookout
    router: Router
    upstreams: Upstreams
    translator: TranslatorBeside | TranslatorChild
    edge: Edge
    admission: Admission
    replicas: Replicas | None
    serving: ServingLock | None
    _opened: AsyncExitStack

    async def __aenter__(self) -> Self:
        """Read what is declared, start the ledger. Closes what it opened if a later step fails."""
        async with AsyncExitStack() as opening:
            opening.push_async_callback(self.dispose)
            self.edge.chat.guard.prepare()
            if self.serving is not None:
                await self.serving.take()
                opening.push_async_callback(self.serving.release)
            await self.feed.start()
            opening.push_async_callback(self.feed.close)
            self.edge.telemetry.start()
            opening.push_async_callback(self.edge.telemetry.close)  # after the ledger, whose last closings are told
            await self.ledger.start()
            opening.push_async_callback(self.ledger.close)
            if self.replicas is not None:  # after the ledger has this process's lease, so that it is counted
                opening.push_async_callback(self.replicas.close)
                await self.replicas.start(self.feed.hurry)
            opening.push_async_callback(self.translator.close)
            opening.push_async_callback(self.upstreams.close)
            self.lookout.start(self.health.open_calls)
            opening.push_async_callback(self.lookout.close)
            self._opened.push_async_callback(opening.pop_all().aclose)
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        """Close in reverse: upstreams, then the ledger, whose queue is drained first, then the store."""
        await self._opened.aclose()

    async def dispose(self) -> None:
        """Let go of the store, where the platform was not opened."""
        for engine in self.engines:
            await engine.dispose()


def _silently(_logger: str, _message: str, _facts: Mapping[str, object]) -> None:
    """The log of a platform that nobody serves."""


def build(settings: Settings, log: TurnLog = _silently) -> Platform:
    """Construct everything; nothing is opened, started or read but the secrets. Raises SecretsUnusable.

    log: takes one line per turn.
    """
    clock, registry = SystemClock(), CollectorRegistry()
    secrets, process = read_secrets(settings), new_id("proc")
    engines, seconds = _Engines.of(settings), settings.store_seconds
    engine, snapshot = engines.administration, Snapshot()

    replicas = _replicas(settings, engine, clock=clock, registry=registry)
    store = _store(engine, replicas, clock=clock, process=process, seconds=seconds)
    register = Register(store, {**GOVERNANCE_KINDS, **ROUTER_KINDS, **COST_KINDS}, clock=clock, check=_check)
    keys = Keys(store, secrets.pepper, directory=snapshot.directory, clock=clock)
    credentials = Credentials(store, Vault(secrets.master_key))
    trail = AuditReader(SqlTrail(engines.reports, timeout_seconds=seconds))
    policy = Policy(snapshot.rules, snapshot.directory, clock=clock)
    counters = replicas.counters if replicas else MemoryCounters(clock)
    serving = _serving_lock(settings, engine)
    may_serve = serving.require if serving else lambda: None  # a folder is its owner's for as long as that lives
    limits = Limits(snapshot.directory, keys.allowance_of, counters=counters, clock=clock, may_serve=may_serve)

    ledger, moved = _ledger(settings, engines, snapshot, clock=clock, registry=registry, process=process)
    reports = SqlReports(engines.reports)
    spend = Spend(reports, book=snapshot.book, clock=clock)
    budgets = BudgetMetrics(registry, reports, moved=moved, book=snapshot.book, clock=clock)
    reconciliation = Reconciliation(reports, book=snapshot.book, record=register.record, clock=clock, process=process)
    health, lookout = _health(snapshot, credentials, clock=clock, registry=registry)
    router = _router(snapshot, health, clock)
    translator = _translator(settings, clock, registry)
    upstreams = _upstreams(snapshot, credentials, health=health, clock=clock, translator=translator.address)
    poll_seconds = settings.changes_poll_seconds
    feed = Feed(snapshot=snapshot, register=register, keys=keys, credentials=credentials, poll_seconds=poll_seconds)
    administration = governance.api.routes(
        register, keys, credentials=credentials, audit=trail, caller_of=caller_of, changed=feed.catch_up
    )
    guard, history = Guard(snapshot.directory, clock=clock), History(ledger, trail)
    chat = Chat(router=router, policy=policy, guard=guard, limits=limits, ledger=ledger, upstreams=upstreams)
    unjudged = Unjudged(snapshot.rules, snapshot.directory, clock=clock)
    trials = Trials(chat, unjudged, catalogue=snapshot.catalogue, history=history, clock=clock)
    money = cost.api.routes(spend, reconciliation, caller_of)
    control = create_control([administration, money, gateway.models_api.routes(trials, caller_of)])
    metrics = Metrics(registry)
    mark = settings.busy_round_seconds
    admission = Admission(clock=clock, waiting=lambda: ledger.waiting, round_seconds_max=mark, metrics=metrics)
    edge = Edge(
        chat=chat,
        keys=keys,
        policy=policy,
        catalogue=snapshot.catalogue,
        ledger=ledger,
        history=history,
        metrics=metrics,
        telemetry=_telemetry(settings, snapshot, metrics, clock=clock, process=process),
        control=control,
        describe=lambda rows: describe(rows, control.openapi()),
        ready=_readiness(engine, ledger, replicas, serving),
        clock=clock,
        limits=_edge_limits(settings),
        log=log,
    )
    feed.on_revoked = edge.end_turns_of
    return Platform(
        settings, engine, engines, snapshot, feed, register, keys, credentials,
        trail, ledger, spend, budgets, reconciliation, health, lookout,
        router, upstreams, translator, edge, admission, replicas, serving, AsyncExitStack(),
    )  # fmt: skip


def _check(documents: Iterable[Document]) -> None:
    """Refuse a set of documents that do not fit each other, before it is written."""
    check_references(documents)
    View.of(documents)


def _store(engine: AsyncEngine, replicas: Replicas | None, *, clock: Clock, process: str, seconds: float) -> SqlStore:
    """Where keys, credentials and documents are, with a trail of its own for what administrators do."""
    trail = AuditTrail(SqlChains(), f"admin-{process}", clock=clock)
    committed = replicas.bulletin.publish if replicas else None
    return SqlStore(engine, trail, clock=clock, committed=committed, timeout_seconds=seconds)


def _ledger(
    settings: Settings,
    engines: _Engines,
    snapshot: Snapshot,
    *,
    clock: Clock,
    registry: CollectorRegistry,
    process: str,
) -> tuple[Ledger, set[Period]]:
    """The ledger, and the periods that it has moved."""
    metrics, seconds = LedgerMetrics(registry), settings.store_seconds
    trail = AuditTrail(DriverChains(), f"turns-{process}", clock=clock)
    TrailMetrics(registry, lambda: trail.records)
    ledger = Ledger(
        SqlLedgerStore(engines.ledger, clock, metrics=metrics, reads=engines.reports, timeout_seconds=seconds),
        book=snapshot.book,
        audit=trail,
        clock=clock,
        process=process,
        settings=LedgerSettings(sole=settings.embedded, commit_timeout_seconds=seconds),
    )
    metrics.watch(ledger)
    return ledger, metrics.moved


def _telemetry(settings: Settings, snapshot: Snapshot, metrics: Metrics, *, clock: Clock, process: str) -> Telemetry:
    """Traces of turns, where a collector is configured; it is looked for when the platform is opened."""
    endpoint, headers = settings.otlp_endpoint, settings.otlp_header_fields
    return Telemetry(
        None if endpoint is None else lambda: otlp(endpoint, headers, process=process, told=metrics.traced),
        ratio=settings.trace_sample_ratio,
        catalogue=snapshot.catalogue,
        clock=clock,
        dice=SystemRandom(),
    )


def _edge_limits(settings: Settings) -> EdgeLimits:
    return EdgeLimits(
        settings.body_bytes_max,
        settings.body_seconds,
        settings.store_seconds / 4,  # a request may wait for its predecessor's books and then for its own
        settings.budget_exhausted_status,
        settings.metrics_token.get_secret_value() if settings.metrics_token else None,
    )


def _replicas(settings: Settings, engine: AsyncEngine, *, clock: Clock, registry: CollectorRegistry) -> Replicas | None:
    """What joins this process to others, where Redis is configured."""
    if settings.redis_url is None:
        return None
    url, lease_seconds = settings.redis_url.get_secret_value(), LedgerSettings().lease_seconds
    return Replicas(engine, url, clock=clock, registry=registry, lease_seconds=lease_seconds)


def _serving_lock(settings: Settings, engine: AsyncEngine) -> ServingLock | None:
    """What keeps a second process without Redis from the same PostgreSQL; SQLite's folder has a lock of its own."""
    if settings.embedded:
        return None
    return ServingLock(engine, shared=settings.redis_url is not None, timeout_seconds=settings.store_seconds)


def _health(
    snapshot: Snapshot, credentials: Credentials, *, clock: Clock, registry: CollectorRegistry
) -> tuple[Health, Lookout]:
    """The targets' health, and the lookout for those servers that say themselves how they are."""
    lookout = Lookout(snapshot.catalogue, Pages(credentials.get).fetch, dice=SystemRandom())
    health = Health(snapshot.catalogue, dice=SystemRandom(), clock=clock, seen=lookout.of)
    HealthMetrics(registry, health)
    ServerMetrics(registry, lookout.readings)
    return health, lookout


def _router(snapshot: Snapshot, health: Health, clock: Clock) -> Router:
    """The router, with prices, which it does not know itself: what a request would probably cost on each target."""

    def cost_of(target: Target, request: ModelRequest) -> int | None:
        price = snapshot.book().price(target.name, clock.now())
        output_tokens = request.output_tokens_max or _LIKELY_OUTPUT_TOKENS
        usage = {Component.INPUT: prompt_tokens(request), Component.OUTPUT: output_tokens * request.choices}
        return price.cost(Usage(usage)).nano_usd if price else None

    return Router(snapshot.catalogue, health, cost_of=cost_of, dice=SystemRandom())


def _upstreams(
    snapshot: Snapshot, credentials: Credentials, *, health: Health, clock: Clock, translator: Translator
) -> Upstreams:
    return Upstreams(
        snapshot.catalogue,
        credentials.get,
        health=health,
        clock=clock,
        settings=UpstreamSettings(),
        translator=translator,
    )


def _translator(settings: Settings, clock: Clock, registry: CollectorRegistry) -> TranslatorBeside | TranslatorChild:
    translator = _translator_of(settings, clock)
    TranslatorMetrics(registry, lambda: translator.state)
    return translator


def _translator_of(settings: Settings, clock: Clock) -> TranslatorBeside | TranslatorChild:
    if settings.translator_url is None or settings.translator_token is None:
        return TranslatorChild(settings.translator_python, clock=clock)
    return TranslatorBeside(settings.translator_url, settings.translator_token.get_secret_value())


def _readiness(
    engine: AsyncEngine, ledger: Ledger, replicas: Replicas | None, serving: ServingLock | None
) -> Callable[[], Awaitable[dict[str, str]]]:
    async def ready() -> dict[str, str]:
        others = {"redis": replicas.state} if replicas else {}
        if serving is not None and not serving.is_held:
            others["serving"] = "not allowed"
        try:
            async with asyncio.timeout(_READY_SECONDS), reading(engine).connect() as connection:
                await connection.execute(text("SELECT 1"))
        except (SQLAlchemyError, OSError, TimeoutError):
            return {"store": "unreachable"} | others
        return {"store": "ok" if ledger.is_writing else "not writable"} | others

    return ready


async def first_start(platform: Platform) -> Path | None:
    """Migrate, and where nobody has declared anything yet, declare the demo. Returns quickstart.json, if there is one.

    A first start that was killed half way is done again by the next one.
    """
    settings = platform.settings
    await require_durable(platform.engine)
    await migrate(platform.engine)
    path = settings.data_dir / "quickstart.json"
    wanted = settings.embedded if settings.demo is None else settings.demo
    if wanted and not path.exists() and await _is_untouched(platform):
        made = await declare_demo(platform.register, platform.keys, platform.feed.load)
        write_quickstart(path, f"http://{settings.host}:{settings.port}/v1", made)
    return path if path.exists() else None


async def _is_untouched(platform: Platform) -> bool:
    """Whether nobody but an interrupted first start has left anything here."""
    _, documents = await platform.register.load()
    keys = await platform.keys.listing()
    authors = {document.author for document in documents} | {key.created_by for key in keys}
    return authors <= {FIRST_START} and len(keys) < DEMO_KEYS
