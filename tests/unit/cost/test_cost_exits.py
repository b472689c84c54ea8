"""Turns that are given up on their way in: whatever becomes of their hold, it does not stay open."""

import asyncio
import sqlite3

import pytest

from tests.fakes.ledgers import HELD, TARGET, Firm, budget, soon

TEN = budget("dept", "sales", 10 * HELD)


async def test_a_caller_who_leaves_before_its_hold_is_decided_leaves_nothing_open(books) -> None:
    async with Firm(books, [TEN]).opened() as firm:
        await firm.answer()
        rival = sqlite3.connect(books.url.database)
        rival.execute("BEGIN IMMEDIATE")
        turn = firm.turn()
        entering = asyncio.create_task(_enter(turn))
        await soon()
        while firm.ledger.waiting:
            await soon()
        entering.cancel()
        with pytest.raises(asyncio.CancelledError):
            await entering
        rival.rollback()
        rival.close()
        async with asyncio.timeout(5):
            await turn.settled()
        assert await firm.entries(turn.id) == [(0, "hold", HELD, False), (1, "void", 0, False)]
        assert await firm.open_holds() == firm.ledger.open_holds == 0
        assert firm.trail.events(turn.id) == ["turn.admitted", "turn.ended"]


async def _enter(turn) -> None:
    async with turn, turn.attempt(TARGET):
        raise AssertionError("nothing may be sent")


async def test_a_turn_that_asked_nobody_ends_in_peace_though_its_record_cannot_be_queued(books) -> None:
    async with Firm(books, [TEN]).opened() as firm:
        firm.ledger._committer.close()
        async with firm.turn() as turn:
            pass
        await turn.settled()
        assert firm.trail.events(turn.id) == []
