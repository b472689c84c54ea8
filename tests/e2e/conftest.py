"""Real server processes for stories."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.prove.server import Gateway, Simulator


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    async with Gateway(tmp_path) as running:
        yield running


@pytest.fixture
async def simulator(tmp_path: Path) -> AsyncIterator[Simulator]:
    async with Simulator(tmp_path) as running:
        yield running
