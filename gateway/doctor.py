"""Checks everything a process depends on and names the cure of what is wrong. Reads only."""

import asyncio
import sys
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.ownership import AlreadyServed, sole_owner
from gateway.schema import NotDurable, SchemaNewer, pending, require_durable
from gateway.secrets import SecretsUnusable, read_secrets
from gateway.settings import Settings
from governance import find_fault
from kernel.db import make_engine, reading

_CONNECT_SECONDS = 5


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing checked; `cure` says what to do unless all is well."""

    what: str
    state: Literal["ok", "note", "wrong"]
    found: str
    cure: str = ""


async def diagnose(settings: Settings) -> list[Finding]:
    """Every dependency in the order in which a start needs it."""
    findings = [Finding("python", "ok", sys.version.split()[0])]
    if settings.embedded and not settings.store_file.exists():
        missing = f"there is no store at {settings.store_file}"
        return [*findings, Finding("store", "note", missing, "penstock serve makes one; or set PENSTOCK_DATA_DIR")]
    findings.append(_secrets(settings))
    if settings.embedded:
        findings.append(_folder(settings))
    engine = make_engine(settings.store_url, timeout_seconds=_CONNECT_SECONDS)
    try:
        findings.extend(await _store(engine))
    finally:
        await engine.dispose()
    if settings.redis_url is not None:
        findings.append(await _redis(settings.redis_url.get_secret_value()))
    findings.append(await _port(settings))
    return findings


def _secrets(settings: Settings) -> Finding:
    try:
        read_secrets(settings)
    except SecretsUnusable as wrong:
        return Finding("secrets", "wrong", str(wrong), "set PENSTOCK_KEY_PEPPER and PENSTOCK_MASTER_KEY")
    return Finding("secrets", "ok", "pepper and master key are usable")


def _folder(settings: Settings) -> Finding:
    try:
        with sole_owner(settings.data_dir):
            return Finding("data folder", "ok", f"{settings.data_dir} is writable and not being served")
    except AlreadyServed:
        return Finding("data folder", "ok", f"{settings.data_dir} is being served")
    except OSError as wrong:
        return Finding("data folder", "wrong", wrong.strerror or "", "set PENSTOCK_DATA_DIR to a writable folder")


async def _store(engine: AsyncEngine) -> list[Finding]:
    name = engine.dialect.name
    try:
        async with reading(engine).connect() as connection:
            await connection.execute(text("SELECT 1"))
        await require_durable(engine)
        waiting = await pending(engine)
    except NotDurable as unsafe:
        found, _, cure = str(unsafe).partition(": ")
        return [Finding("store", "wrong", found, cure)]
    except SchemaNewer as newer:
        return [Finding("store", "wrong", str(newer), "start the newer release")]
    except (SQLAlchemyError, OSError, TimeoutError) as lost:
        return [Finding("store", "wrong", type(lost).__name__, "check PENSTOCK_DATABASE_URL and that the server runs")]
    schema = (
        Finding("schema", "note", "behind this release", "run penstock migrate")
        if waiting
        else Finding("schema", "ok", "current")
    )
    return [Finding("store", "ok", name), schema]


async def _redis(url: str) -> Finding:
    fault = await find_fault(url)
    if fault is None:
        return Finding("redis", "ok", "answers")
    cure = "check PENSTOCK_REDIS_URL and that the server runs; until then each process keeps to its share of limits"
    return Finding("redis", "wrong", fault, cure)


async def _port(settings: Settings) -> Finding:
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(settings.host, settings.port), 1)
    except (OSError, TimeoutError):
        return Finding("port", "ok", f"{settings.host}:{settings.port} is free")
    writer.close()
    return Finding(
        "port", "note", f"{settings.host}:{settings.port} is in use", "fine if that is Penstock; else set PENSTOCK_PORT"
    )
