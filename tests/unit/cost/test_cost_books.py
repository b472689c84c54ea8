"""Whatever happens in whatever order, the books stay within each budget in force and equal the sum of their lines."""

import asyncio
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cost import BudgetExhausted, BudgetHeld
from kernel import StoreUnavailable
from kernel.db import Base, make_engine
from tests.conftest import StillClock
from tests.fakes.ledgers import HELD, TARGET, Fault, FaultyStore, Firm, budget, used

LIMIT = 4 * HELD
ACTS = st.lists(
    st.tuples(
        st.sampled_from(
            "hold hold hold post void estimate replay sweep lose forget declare withdraw".split()  # noqa: SIM905
        ),
        st.integers(0, 3),
    ),
    max_size=25,
)


class _Story:
    """Two processes, one budget, and turns that are opened and closed as the story says."""

    def __init__(self, firms: list[Firm], faults: list[Fault], clock: StillClock) -> None:
        self.firms, self.faults, self.clock = firms, faults, clock
        self.open: list[tuple] = []
        self.closed: list[tuple] = []
        self.versions = 0
        self.late: int | None = None

    async def hold(self, n: int) -> None:
        firm = self.firms[n % 2]
        turn = await firm.turn().__aenter__()
        try:
            self.open.append((firm, turn, await turn.attempt(TARGET).__aenter__()))
        except (BudgetHeld, BudgetExhausted, StoreUnavailable) as refusal:
            await turn.__aexit__(type(refusal), refusal, None)
            await turn.settled()

    async def end(self, n: int, *, sent: bool, usage=None) -> None:
        if self.open:
            firm, turn, attempt = self.open.pop(n % len(self.open))
            if sent:
                attempt.sent()
            attempt.use(usage)
            await attempt.__aexit__(None, None, None)
            await turn.__aexit__(None, None, None)
            await turn.settled()
            self.closed.append((firm, attempt))

    def declare(self, *, late: bool) -> None:
        """Declare a second budget, or withdraw it; the register would give it these versions."""
        self.versions += late is not (self.late is not None)
        self.late = (self.late or self.versions) if late else None
        documents = [budget("late", "mail", LIMIT, "app", since=self.late)] if self.late else []
        for firm in self.firms:
            firm.declare(budget("dept", "sales", LIMIT), *documents)

    async def act(self, act: str, n: int) -> None:
        if act == "hold":
            await self.hold(n)
        elif act in {"post", "void", "estimate"}:
            await self.end(n, sent=act != "void", usage=used(10 * n, 9 * n) if act == "post" else None)
        elif act == "replay" and self.closed:
            firm, attempt = self.closed[n % len(self.closed)]
            await firm.ledger._committer.submit([attempt._closing]).done
        elif act in {"declare", "withdraw"}:
            self.declare(late=act == "declare")
        elif act == "sweep":
            await self.firms[1].store.end_lease(self.firms[1].process)
            self.clock.advance(20)
            await self.firms[0].ledger._beat()
            self.clock.advance(15)
            await self.firms[0].store.beat(self.firms[0].process)
            await self.firms[0].ledger.sweep()
        elif act in {"lose", "forget"}:
            self.faults[n % 2].before = self.faults[n % 2].after = 0
            setattr(self.faults[n % 2], "before" if act == "lose" else "after", 1)

    async def check(self) -> None:
        firm = self.firms[0]
        posted, held = await firm.balance("dept")
        assert posted + held <= LIMIT
        assert posted == await _sum(firm, "SELECT sum(amount_nano_usd) FROM entries WHERE step >= 1")
        assert held == await _sum(firm, "SELECT sum(amount_nano_usd) FROM open_holds")
        unclosed = (
            "SELECT sum(amount_nano_usd) FROM entries h WHERE step = 0 AND NOT EXISTS "
            "(SELECT 1 FROM entries c WHERE c.turn_id = h.turn_id AND c.attempt = h.attempt AND c.step = 1)"
        )
        assert held == await _sum(firm, unclosed)
        if self.late is not None and await firm.rows(
            f"SELECT 1 FROM budget_periods WHERE budget_id = 'late@{self.late}'"
        ):
            assert await firm.balance("late", self.late) == (posted, held)


async def _sum(firm: Firm, sql: str) -> int:
    return (await firm.rows(sql))[0][0] or 0


async def _tell(acts: list[tuple[str, int]], folder: Path) -> None:
    engine = make_engine(f"sqlite+aiosqlite:///{folder}/books.db")
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    clock, faults = StillClock(), [Fault(), Fault()]
    firms = [Firm(engine, [budget("dept", "sales", LIMIT)], clock=clock) for _ in range(2)]
    for firm, fault in zip(firms, faults, strict=True):
        firm.store = FaultyStore(firm.store, fault)
    async with firms[0].opened(), firms[1].opened():
        story = _Story(firms, faults, clock)
        for act, n in acts:
            await story.act(act, n)
            await story.check()
        story.declare(late=True)
        await story.hold(0)
        await story.check()
        while story.open:
            await story.end(0, sent=True)
        await story.check()
        assert (await firms[0].balance("dept"))[1] == 0
    await engine.dispose()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(ACTS)
def test_posted_and_held_never_pass_the_limit_and_equal_the_entries(acts: list[tuple[str, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(_tell(acts, Path(folder)))
