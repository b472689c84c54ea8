"""The first start, done half, twice, or after somebody else's."""

import json
from pathlib import Path

from gateway.settings import Settings
from gateway.wiring import Platform, build, first_start
from governance import Declaration, NewKey
from kernel import Role


async def started(tmp_path: Path) -> tuple[Platform, Path | None]:
    platform = build(Settings(data_dir=tmp_path))
    return platform, await first_start(platform)


async def test_a_first_start_that_was_killed_half_way_is_done_again(tmp_path: Path) -> None:
    platform, path = await started(tmp_path)
    assert path is not None
    path.unlink()
    kept = await platform.keys.listing()
    async with platform.engine.begin() as connection:
        await connection.exec_driver_sql("DELETE FROM keys WHERE id = ?", (kept[-1].id,))
    await platform.dispose()
    platform, path = await started(tmp_path)
    assert path is not None
    assert platform.keys.identify(json.loads(path.read_text())["app_key"]).app == "demo-app"
    await platform.dispose()


async def test_a_quickstart_that_was_removed_is_not_made_anew(tmp_path: Path) -> None:
    platform, path = await started(tmp_path)
    assert path is not None
    path.unlink()
    await platform.dispose()
    platform, path = await started(tmp_path)
    assert path is None
    assert len(await platform.keys.listing()) == 4
    await platform.dispose()


async def test_a_store_that_somebody_else_began_gets_no_demo(tmp_path: Path) -> None:
    platform = build(Settings(data_dir=tmp_path, demo=False))
    await first_start(platform)
    await platform.register.apply([Declaration("department", "mine", {})], by="me")
    await platform.keys.create(NewKey(name="ops", roles=frozenset({Role.PLATFORM_ADMIN})), by="me")
    await platform.dispose()
    platform, path = await started(tmp_path)
    assert path is None
    assert len(await platform.keys.listing()) == 1
    await platform.dispose()
