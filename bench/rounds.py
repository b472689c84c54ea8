"""The order of a run: every gateway in turn, as often as there are rounds, beginning with another one each time.

A gateway is started afresh in each round, alone; a figure of one is compared with that of another in the same round.
"""

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from bench import gateways, penstock
from bench.asking import answers
from bench.cores import Cores
from bench.figures import Contender, Figure, Sample, Scenario
from bench.gateways import Place, Start
from bench.install import Missing, Peer, Peers, Say
from bench.processes import Failed, running
from bench.scenarios import FULL, Lengths, Meter
from tests.prove.server import free_port

OURS = ("penstock-sqlite", "penstock-postgres")
NAMES = ("direct", "relay", "nginx", "tensorzero", "portkey", "litellm", *OURS)
# What a gateway cannot do at all is not asked of it: 1,000 streams at this pace are 10,000 chunks a second.
_BEYOND = frozenset({("litellm", Scenario.STREAMS)})
_NO_GATEWAY = frozenset({Scenario.START})


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run: which gateways and scenarios, how often, how long, on which cores."""

    gateways: tuple[str, ...] = NAMES
    scenarios: tuple[Scenario, ...] = tuple(Scenario)
    rounds: int = 5
    lengths: Lengths = FULL


@dataclass(frozen=True, slots=True)
class Entrant:
    """A gateway of this run, and how it is started; one that is missing is not."""

    contender: Contender
    start: Start | None


async def enter(names: Sequence[str], peers: Peers, own_version: str) -> list[Entrant]:
    """The gateways asked for, in the order of the tables; peers are installed where they are not yet."""
    python = ".".join(str(part) for part in sys.version_info[:3])
    own = {
        "direct": Entrant(Contender("direct", "no gateway", ""), gateways.direct),
        "relay": Entrant(Contender("relay", "asyncio relay (floor)", f"Python {python}"), gateways.relay),
        OURS[0]: Entrant(Contender(OURS[0], "Penstock, SQLite", own_version), penstock.on_sqlite),
        OURS[1]: Entrant(Contender(OURS[1], "Penstock, PostgreSQL + Redis", own_version), penstock.on_postgres),
    }
    installed = {
        "nginx": ("nginx", peers.nginx, gateways.nginx),
        "tensorzero": ("TensorZero", peers.tensorzero, gateways.tensorzero),
        "portkey": ("Portkey", peers.portkey, gateways.portkey),
        "litellm": ("LiteLLM proxy", peers.litellm, gateways.litellm),
    }
    entered = []
    for name in (name for name in NAMES if name in names):
        if name in own:
            entered.append(own[name])
            continue
        title, install, start = installed[name]
        entered.append(_entrant(name, title, await install(), start))
    return entered


def _entrant(name: str, title: str, peer: Peer | Missing, start: Callable[[Peer], Start]) -> Entrant:
    if isinstance(peer, Missing):
        return Entrant(Contender(name, title, "", peer.reason), None)
    return Entrant(Contender(name, title, peer.version), start(peer))


async def run(plan: Plan, entrants: Sequence[Entrant], cores: Cores, say: Say, found: Callable[[Sample], None]) -> None:
    """Hand over each sample as it is taken. What fails in a sample is said in it, and the run goes on."""
    present = [each for each in entrants if each.start is not None]
    for number in range(1, plan.rounds + 1):
        turn = number % max(1, len(present))
        for entrant in present[turn:] + present[:turn]:
            say(f"round {number} of {plan.rounds}: {entrant.contender.title}")
            sample = await _sample(number, entrant, plan, cores)
            say(f"  {_told(sample)}")
            found(sample)


async def _sample(number: int, entrant: Entrant, plan: Plan, cores: Cores) -> Sample:
    name = entrant.contender.name
    figures: dict[Figure, float] = {}
    sample = Sample(number, name, figures)
    assert entrant.start is not None, "only those that are there are run"
    with _folder(name) as folder:
        try:
            async with AsyncExitStack() as stack:
                mock_port = await _mock(stack, folder, cores)
                place = Place(folder, mock_port, cores)
                started = await stack.enter_async_context(entrant.start(place))
                meter = Meter(started, folder=folder, mock_port=mock_port, cores=cores, lengths=plan.lengths)
                sample = replace(sample, loads=meter.loads)
                await meter.verify()
                for scenario in _asked(name, plan.scenarios):
                    figures |= await meter.measure(scenario)
                if started.explain is not None:
                    sample = replace(sample, told=await started.explain())
        except Failed as error:
            return replace(sample, failed=str(error))
    return sample


def _asked(name: str, scenarios: Sequence[Scenario]) -> list[Scenario]:
    """In the order in which a gateway warms up."""
    wanted = [each for each in Scenario if each in scenarios and (name, each) not in _BEYOND]
    return [each for each in wanted if name != "direct" or each not in _NO_GATEWAY]


async def _mock(stack: AsyncExitStack, folder: Path, cores: Cores) -> int:
    port = free_port()
    arguments = [sys.executable, "-m", "bench.mock", "--port", str(port)]
    await stack.enter_async_context(running(arguments, folder / "mock.log", core=cores.beside))
    await answers(port)
    return port


@contextmanager
def _folder(name: str) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix=f"bench-{name}-"))
    folder.chmod(0o755)  # PostgreSQL and nginx's worker may run as somebody else
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _told(sample: Sample) -> str:
    if sample.failed:
        return f"failed: {sample.failed}"
    return ", ".join(f"{figure} {value:.4g}" for figure, value in sample.figures.items())
