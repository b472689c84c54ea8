"""What the upstream contract is shown on: a provider that follows a script, and upstreams that talk to it."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable

import pytest
import uvloop

from router import Upstreams, UpstreamSettings
from tests.fakes.routing import Sent, catalogue, upstreams_of
from tests.fakes.scripted_upstream import ScriptedUpstream
from tests.fakes.upstream_subjects import CARRIERS, PATIENT, SECRET, Subject

LOOPS = {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}


def pytest_asyncio_loop_factories(item: pytest.Item) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Upstreams are shown on the loop that serves, unless another is asked for; everything else on Python's own."""
    is_upstream = item.path.name.startswith("test_upstream_")
    wanted = os.environ.get("PENSTOCK_TEST_LOOP", "uvloop") if is_upstream else "asyncio"
    return {wanted: LOOPS[wanted]}


@pytest.fixture
async def server() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream() as made:
        yield made


@pytest.fixture
def secrets() -> dict[str, str]:
    """The credentials that are open, by name."""
    return {"key": SECRET}


@pytest.fixture
async def make_over(
    server: ScriptedUpstream, secrets: dict[str, str], clock
) -> AsyncIterator[Callable[..., Upstreams]]:
    opened: list[Upstreams] = []

    def made(carrier: str, settings: UpstreamSettings | None = None, **provider: object) -> Upstreams:
        declared = {"dialect": "openai", "base_url": server.url, "credential": "key", **PATIENT, **provider}
        settings = settings or UpstreamSettings()
        known = catalogue(**declared)
        upstreams = upstreams_of(known, secrets.get, clock, settings, carrier=CARRIERS[carrier](settings))
        opened.append(upstreams)
        return upstreams

    yield made
    for upstreams in opened:
        await upstreams.close()


@pytest.fixture(params=CARRIERS)
def make(request: pytest.FixtureRequest, make_over: Callable[..., Upstreams]) -> Callable[..., Upstreams]:
    """Makes upstreams over each of the carriers: of settings and of what differs in the provider's declaration."""
    return lambda *given, **provider: make_over(request.param, *given, **provider)


@pytest.fixture(params=["sandbox", *CARRIERS])
def subject(request: pytest.FixtureRequest, make_over: Callable[..., Upstreams], server: ScriptedUpstream) -> Subject:
    return Subject(request.param, make_over, server, Sent())
