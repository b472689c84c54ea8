"""The two vendors' own SDKs for Python, unmodified, as somebody has them who changes a base URL and a key.

All clients and all cases: `make prove ONLY=wide.clients`.
"""

import asyncio
from pathlib import Path

import pytest

from tests.clients.clients import ANTHROPIC, OPENAI, Client, command
from tests.clients.compatibility import EVERYWHERE, TOLD
from tests.clients.flaky import Flaky
from tests.clients.world import World
from tests.prove.server import ROOT, Gateway, Simulator


@pytest.mark.timeout(300)  # the first time, the SDKs are installed
@pytest.mark.parametrize("client", [OPENAI, ANTHROPIC], ids=lambda client: client.slug)
async def test_an_unmodified_sdk_finds_everything_as_it_should_be(
    client: Client, gateway: Gateway, simulator: Simulator, tmp_path: Path
) -> None:
    run_by = await asyncio.to_thread(command, client, ROOT / "requirements", ROOT / ".cache/clients")
    async with Flaky(simulator.url) as flaky:
        world = World(gateway, simulator, flaky)
        await world.open()
        rows = await world.try_out(client, run_by, tmp_path, only=TOLD)
        rows.append(await world.try_sandbox(client, run_by, tmp_path))
    assert [row for row in rows if not row.ok] == []
    assert {row.case for row in rows} >= EVERYWHERE
