"""What is hostile and quick, said to the server as it runs, on both loops; the proof `fast.hostile` says the rest."""

from collections import Counter

import pytest

from tests.hostile.crowds import damaged
from tests.hostile.documents import documents
from tests.hostile.framing import framings
from tests.hostile.heads import heads
from tests.hostile.site import Site, say_all, site
from tests.prove.books import open_holds, read_attempts

CASES = [*heads(), *framings(), *documents()]


@pytest.fixture(params=["uvloop", "asyncio"])
async def attacked(request: pytest.FixtureRequest, tmp_path):
    async with site(tmp_path, loop=request.param) as made:
        yield made


async def test_hostile_bytes_are_refused_clearly_and_reach_nobody(attacked: Site) -> None:
    quick = [each for each in CASES if each.quick]
    broken = list(damaged(150, seed=7))
    wrong = await say_all(attacked, quick)
    wrong |= await say_all(attacked, broken, first=4000, is_damaged=True)
    wrong |= await attacked.smuggled()
    assert not wrong, "\n".join(f"{name}: {fault}" for name, fault in wrong.items())
    seen, _ = await attacked.provider.seen()
    attempts = read_attempts(attacked.gateway.data_dir)
    assert sum(each.state == "post" for each in attempts.values()) == sum(seen.values())
    assert not open_holds(attacked.gateway.data_dir)
    assert "Traceback" not in attacked.gateway.logs


def test_no_two_cases_have_one_name() -> None:
    assert not [name for name, count in Counter(each.name for each in CASES).items() if count > 1]
    assert all(each.why or each.must.answers for each in CASES)
