"""When the content scan is made ready: before the first request, and for no command that serves nobody."""

from pathlib import Path

from gateway.settings import Settings
from gateway.wiring import build, first_start


async def test_only_a_process_that_serves_compiles_what_is_looked_for(tmp_path: Path) -> None:
    platform = build(Settings(data_dir=tmp_path, demo=False))
    guard = platform.edge.chat.guard
    await first_start(platform)
    assert "_scanner" not in vars(guard)
    async with platform:
        assert "_scanner" in vars(guard)
