"""A report as it is told: the same JSON however long it is, and never at the cost of those who only want a turn."""

import asyncio
from datetime import UTC, datetime

import pytest

from cost.api import SpendView, _report, _row_view
from cost.store import SpendRow

SINCE, UNTIL = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 2, 1, tzinfo=UTC)


def _rows(count: int) -> list[SpendRow]:
    return [SpendRow({"app": f'app "{at}"', "user": None}, at, 217, 48, at * 1000, 0) for at in range(count)]


@pytest.mark.parametrize("count", [0, 1, 199, 200, 201, 1_000])
async def test_a_report_written_in_pieces_is_the_one_written_whole(count: int) -> None:
    rows = _rows(count)
    whole = SpendView(since=SINCE, until=UNTIL, rows=[_row_view(row) for row in rows])
    assert SpendView.model_validate_json(await _report(SINCE, UNTIL, rows)) == whole
    assert await _report(SINCE, UNTIL, rows) == whole.model_dump_json()


async def test_others_have_their_turn_while_a_long_report_is_written() -> None:
    turns = 0

    async def take_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    others = asyncio.create_task(take_turns())
    await _report(SINCE, UNTIL, _rows(10_000))
    others.cancel()
    assert turns >= 10_000 // 200
