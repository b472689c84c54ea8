"""Has the pictures drawn, in the environment that holds what draws; without it there are none, and the run stands."""

from pathlib import Path

from bench.install import Missing, Peers, Say
from bench.processes import Failed, finish


async def draw(results: Path, peers: Peers, say: Say) -> None:
    """Write cpu.svg and latency.svg beside the file of results."""
    there = await peers.plots()
    if isinstance(there, Missing):
        say(f"no plots: {there.reason}")
        return
    script = Path(__file__).with_name("draw.py")
    arguments = [str(there.home / "bin" / "python"), str(script), str(results)]
    try:
        await finish(arguments, there.home.parent / "draw.log", environment={"PYTHONPATH": ""})
    except Failed as error:
        say(f"no plots: {error}")
