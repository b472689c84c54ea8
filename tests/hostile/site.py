"""A gateway before a provider that counts, and a key: what hostile cases are said to, and how it takes them."""

import asyncio
import sys
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from tests.hostile.judge import fault_of, fault_of_damaged
from tests.hostile.table import KEY, Case
from tests.hostile.wire import Heard, Repeat, Step, talk
from tests.prove.server import ROOT, Gateway, Process, _Server, free_port

# Shorter than what is served with, so that waiting for them takes no minutes.
PATIENCE = {"PENSTOCK_BODY_SECONDS": "4", "PENSTOCK_IDLE_CONNECTION_SECONDS": "5", "PENSTOCK_SLOW_READER_SECONDS": "4"}
_COMPANY = """
departments: [{{name: proof}}]
use_cases: [{{name: proving, purpose: Proving what is promised}}]
apps: [{{name: proof-app, department: proof, use_cases: [proving]}}]
providers: [{{name: sim, dialect: openai, base_url: "{base_url}", credential: sim}}]
models: [{{name: mock, provider: sim, output_tokens_max: 256, context_tokens: 100000}}]
prices: [{{name: mock, model: mock, usd_per_million_tokens: {{input: "1", output: "4"}}}}]
policies: [{{name: proof, models: [mock], departments: [proof], use_cases: [proving], data_class: internal}}]
"""


class CountingProvider(_Server):
    """The provider's process."""

    def __init__(self, workdir: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._ready = workdir / "provider.ready"
        command = [
            sys.executable,
            "-m",
            "tests.hostile.provider",
            "--port",
            str(self.port),
            "--ready",
            str(self._ready),
        ]
        super().__init__(Process(command, workdir / "provider.log", root=ROOT, environment={}))

    async def seen(self) -> tuple[dict[str, int], list[str]]:
        """Turns by their mark, and what no gateway should have sent."""
        told = await self.ask("GET", "/seen", key="any")
        return told["seen"], told["odd"]

    async def _serves(self) -> bool:
        return self._ready.exists()


@dataclass(frozen=True, slots=True)
class Site:
    """Where cases are said."""

    gateway: Gateway
    provider: CountingProvider
    key: str

    async def say(self, number: int, case: Case) -> Heard:
        """Say one case, its mark being its number."""
        steps = case.says() if callable(case.says) else case.says
        return await talk(
            self.gateway.port,
            self._filled(steps, number),
            answers=len(case.must.answers),
            seconds=case.must.seconds,
            until_closed=bool(case.must.closes),
            heads_only=case.heads_only,
        )

    async def smuggled(self) -> dict[str, str]:
        """What reached the provider that no case made, or that no gateway should have sent."""
        seen, odd = await self.provider.seen()
        wrong = {f"at the provider, {at}": each for at, each in enumerate(odd)}
        if seen.get("without a mark"):
            wrong["without a mark"] = f"{seen['without a mark']} turns that no case made"
        return wrong

    def _filled(self, steps: Iterable[Step], number: int) -> list[Step]:
        def filled(said: bytes) -> bytes:
            mark = b"-%04d" % number
            said = said.replace(KEY.encode(), self.key.encode()).replace(b"hostile-####", b"hostile" + mark)
            return said.replace(b"smuggled-####", b"smuggled" + mark)

        def of(step: Step) -> Step:
            if isinstance(step, bytes):
                return filled(step)
            return replace(step, block=filled(step.block)) if isinstance(step, Repeat) else step

        return [of(step) for step in steps]


class GatewayOnAsyncio(Gateway):
    """The gateway on Python's own event loop."""

    def __init__(self, workdir: Path, *, environment: Mapping[str, str]) -> None:
        super().__init__(workdir, environment=environment)
        command = [sys.executable, "-m", "tests.hostile.on_asyncio"]
        self.process = Process(command, workdir / "gateway.log", root=ROOT, environment=self.environment)


@asynccontextmanager
async def site(
    workdir: Path, environment: Mapping[str, str] | None = None, *, loop: str = "uvloop"
) -> AsyncIterator[Site]:
    """All of it on 127.0.0.1; it is gone afterwards. loop: uvloop, which serves, or asyncio."""
    made = GatewayOnAsyncio if loop == "asyncio" else Gateway
    async with (
        CountingProvider(workdir) as provider,
        made(workdir, environment={**PATIENCE, **(environment or {})}) as gateway,
    ):
        await gateway.put_credential("sim", "secret")
        await gateway.apply(_COMPANY.format(base_url=f"{provider.url}/v1"))
        key = await gateway.create_key(name="proof-key", app="proof-app")
        assert len(key) == len(KEY), "what is said keeps its length"
        yield Site(gateway, provider, key)


async def say_all(
    site: Site, cases: Sequence[Case], *, lanes: int = 16, first: int = 0, is_damaged: bool = False
) -> dict[str, str]:
    """Say every case, so many at a time, and what went wrong with each that did: what was heard, and what arrived.

    first: the number of the first case, where others are said at the same time. is_damaged: any answer is good.
    """
    waiting = list(enumerate(cases, first))[::-1]
    wrong: dict[str, str] = {}
    judge = fault_of_damaged if is_damaged else fault_of

    async def lane() -> None:
        while waiting:
            number, case = waiting.pop()
            fault = judge(case, await site.say(number, case))
            if fault:
                wrong[case.name] = fault

    await asyncio.gather(*(lane() for _ in range(lanes)))
    seen, _ = await site.provider.seen()
    for number, case in enumerate(cases, first):
        turns, smuggled = seen.get(f"hostile-{number:04d}", 0), seen.get(f"smuggled-{number:04d}", 0)
        if smuggled:
            wrong[case.name] = f"SMUGGLED {smuggled} turns; {wrong.get(case.name, '')}"
        if turns not in case.must.turns:
            wrong[case.name] = f"{turns} turns where {sorted(case.must.turns)} are due; {wrong.get(case.name, '')}"
    return wrong
