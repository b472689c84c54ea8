"""docs/guides/first-hour.md is typed as it stands, from its second section on: what the first installs is there."""

import asyncio
import shutil
import sys
from pathlib import Path

import pytest

from tests.clients.environment import clients_python
from tests.prove.server import ROOT
from tests.prove.wide_hour import GUIDE, Block, Busy, blocks_of, follow, unseen, wrong

PAGE = (ROOT / GUIDE).read_text()


@pytest.mark.timeout(300)  # the first time, the SDK is installed
@pytest.mark.skipif(not (shutil.which("bash") and shutil.which("curl")), reason="the guide needs bash and curl")
async def test_the_first_hour_goes_as_it_is_written(tmp_path: Path) -> None:
    folder = tmp_path / "company"
    folder.mkdir()
    sdk = await asyncio.to_thread(clients_python, ROOT / "requirements/clients.lock", ROOT / ".cache/clients")
    blocks = [block for block in blocks_of(PAGE) if block.section > 1]
    try:
        told = await follow(
            blocks, folder, paths=[Path(sys.executable).parent], sdk=sdk, environment={"PYTHONPATH": str(ROOT)}
        )
    except Busy as busy:
        pytest.skip(str(busy))
    assert wrong(blocks, told) == []


def test_the_guide_installs_first_and_declares_two_departments_and_three_apps() -> None:
    blocks = blocks_of(PAGE)
    assert [block.section for block in blocks if "make install" in block.text] == [1]
    assert {block.language for block in blocks} == {"sh", "python"}
    [declared] = [block.text for block in blocks if "departments:" in block.text]
    assert declared.count("title:") == 2
    assert declared.count("use_cases: [") >= 3


@pytest.mark.parametrize(
    ("seen", "printed", "missed"),
    [
        ("a  b\n", "x\na b\n", []),
        ("id ...\nlast\n", "id 7\nbetween\nlast\n", []),
        ("...", "", ["..."]),
        ("first\nsecond\n", "second\nfirst\n", ["second"]),
        ("403\n", "1403\n", ["403"]),
    ],
)
def test_what_the_guide_shows_must_be_printed_in_that_order(seen: str, printed: str, missed: list[str]) -> None:
    assert unseen(Block(1, "sh", "", seen), printed) == missed
