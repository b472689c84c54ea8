"""Proofs that every answer ends once and loudly, whatever the provider does, the caller does, or the operator does."""

import asyncio
import itertools
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import aiohttp

from tests.chaos.replicas import Cluster, cluster
from tests.prove.books import read_attempts
from tests.prove.company import Answer, chat, scripted
from tests.prove.proofs import Bench, Outcome, proof
from tests.prove.replicas_load import Load, audited_books, settled
from tests.prove.server import Gateway

_COMPANY = """
providers:
  - {{name: sim, dialect: openai, base_url: "{base_url}", credential: sim, event_seconds: 2, answer_seconds: 3}}
  - {{name: sim-b, dialect: openai, base_url: "{base_url}", credential: sim, event_seconds: 2, answer_seconds: 3}}
policies:
  - {{name: proof-all, models: ["*"], departments: [proof], use_cases: [proving], data_class: internal}}
aliases:
  - {{name: either, targets: [storm-a, storm-b]}}
models:
  - {{name: storm-a, provider: sim, upstream_model: sim-small, output_tokens_max: 64, context_tokens: 8192}}
  - {{name: storm-b, provider: sim-b, upstream_model: sim-small, output_tokens_max: 64, context_tokens: 8192}}
"""
_LARGE_BYTES = 50_000_000

Script = dict[str, object]
Case = tuple[int, tuple[str, Script]]


def company(base_url: str) -> str:
    """A target for each case, so that no case finds a circuit open because of another."""
    names = [f"case-{number}" for number in range(len(list(cases())))]
    limits = "upstream_model: sim-small, output_tokens_max: 64, context_tokens: 8192"
    models = "".join(f"  - {{name: {name}, provider: sim, {limits}}}\n" for name in names)
    costs = 'usd_per_million_tokens: {input: "1", output: "4"}'
    prices = [f"  - {{name: {name}, model: {name}, {costs}}}\n" for name in (*names, "storm-a", "storm-b")]
    return f"{_COMPANY.format(base_url=base_url).lstrip()}{models}prices:\n{''.join(prices)}"


def cases() -> Iterator[tuple[str, Script]]:
    """Forty ways in which an answer of eight tokens can go."""
    places = (-1, 0, 1, 5)
    for fault in ("stall_at", "rst_at", "fin_at"):
        yield from ((f"{fault} {place}", {fault: place}) for place in places)
    yield "stall_at 3, pings", {"stall_at": 3, "ping_ms": 300}
    for fault in ("end_at", "error_at", "malformed_at"):
        yield from ((f"{fault} {place}", {fault: place}) for place in (0, 1, 5))
    for usage in ("missing", "duplicate", "cumulative", "zero"):
        yield f"usage {usage}", {"usage": usage}
    for status in (400, 401, 404, 408, 429, 500, 502, 503, 504):
        yield f"status {status}", {"status": status}
    yield "429 with retry-after", {"status": 429, "retry_after": 1}
    yield "split at every byte", {"split": "byte"}
    yield "split by 7", {"split": 7}
    yield "late", {"first_ms": 1500}
    yield "50 MB event", {"event_bytes": _LARGE_BYTES}


@dataclass(slots=True)
class Found:
    """What the cases came to."""

    ended: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


@proof(
    "replicas.streams",
    what="40 scripted fault cases x {stream, not}; callers who leave before and after the first token; a total 429 "
    "storm of 20 s (LONG 60)",
    must="each ends in exactly one terminal state; upstream closed within 1 s of a caller's leaving; retry "
    "amplification <= 1.1",
)
async def streams(bench: Bench) -> Outcome:
    """Each case at whichever process is next, on a target of its own; then the leavings, the books, and the storm."""
    found, hung_up = Found(), dict[str, float]()
    async with cluster(bench.workdir) as built:
        await built.replicas.admin.apply(company(built.simulator.base_url))
        await built.replicas.agree(built.key, "either")
        every = list(itertools.product(enumerate(cases()), (True, False)))
        lanes = [every[number::6] for number in range(6)]
        await asyncio.gather(*(_lane(built, lane, found) for lane in lanes))
        for name, script, stream, wait in _LEAVINGS:
            hung_up[name] = await _leave(built, script, stream=stream, wait_seconds=wait)
        verdict = await audited_books(bench, built, ("sim", "sim-b"))
        asked, sent = await _storm(built, seconds=60 if bench.long else 20)
    for wrong in found.wrong:
        bench.note(wrong)
    bench.note(f"endings: {dict(found.ended)}; upstream closed after {hung_up}")
    bench.figure("ended once", f"{len(every) - len(found.wrong)} of {len(every)}")
    bench.figure("slowest closing of an upstream s", max(hung_up.values()))
    bench.figure("429 storm", f"{sent} calls for {asked.total()} turns, answered {dict(asked)}")
    bench.figure("amplification", sent / max(1, asked.total()))
    bench.figure("books exact", verdict.exact)
    met = not found.wrong and max(hung_up.values()) <= 1 and sent <= 1.1 * asked.total() and 0 < asked[429] < sent + 1
    return Outcome(met and verdict.exact and len(every) == 80)


async def _lane(built: Cluster, lane: list[tuple[Case, bool]], found: Found) -> None:
    for (number, (name, script)), stream in lane:
        called = f"{name}, {'stream' if stream else 'whole'}"
        try:
            async with asyncio.timeout(30):
                asked = scripted(tokens=8, **script)
                answer = await built.replicas.chat(built.key, asked, model=f"case-{number}", stream=stream)
        except (aiohttp.ClientError, TimeoutError, ValueError) as broken:
            found.wrong.append(f"{called}: {type(broken).__name__}")
            continue
        ending, fault = _terminal(answer, stream=stream)
        found.ended[ending] += 1
        if fault:
            found.wrong.append(f"{called}: {fault}")
        await _settle_one(built, called, answer, found)


def _terminal(answer: Answer, *, stream: bool) -> tuple[str, str]:
    """How it ended, and what is wrong with that."""
    if answer.events:
        last, done = answer.events[-1], answer.events.count("[DONE]")
        errors = sum('"error":{' in event.replace(" ", "") for event in answer.events)
        if done + errors != 1:
            return "stream", f"{done} [DONE] and {errors} errors"
        if last != "[DONE]" and '"error"' not in last:
            return "stream", f"something after its end: {last[:80]}"
        return ("[DONE]" if done else "error event"), ""
    if answer.status == 200:
        return "whole answer", "an answer that should have been a stream" if stream else ""
    return f"status {answer.status}", "" if answer.code else "an error without a code"


async def _settle_one(built: Cluster, called: str, answer: Answer, found: Found) -> None:
    """The books must say the same: one closing for each attempt of this turn."""
    turn = answer.headers.get("x-request-id", "")
    for _ in range(40):
        mine = [each for ref, each in read_attempts(built.store).items() if ref.startswith(f"{turn}/")]
        if mine and all(each.state in {"post", "void"} for each in mine):
            return
        await asyncio.sleep(0.1)
    found.wrong.append(f"{called}: the books do not close turn {turn}")


_LEAVINGS: tuple[tuple[str, Script, bool, float], ...] = (
    ("stream before the first token", {"tokens": 50, "first_ms": 60_000}, True, 0.3),
    ("stream after the first token", {"tokens": 200, "pace_ms": 100}, True, 0.6),
    ("whole", {"tokens": 100, "pace_ms": 200}, False, 0.4),
    ("whole before it began", {"tokens": 5, "first_ms": 60_000}, False, 0.3),
)


async def _leave(built: Cluster, script: Script, *, stream: bool, wait_seconds: float) -> float:
    """Hang up in the midst of 30 requests; seconds until the provider answers none of them any more."""
    await settled(built)
    asking = [asyncio.create_task(built.replicas.chat(built.key, scripted(**script), stream=stream)) for _ in range(30)]
    async with asyncio.timeout(10):
        while (await built.simulator.stats())["answering"] < len(asking):
            await asyncio.sleep(0.02)
    await asyncio.sleep(wait_seconds)
    for task in asking:
        task.cancel()
    began = time.monotonic()
    await asyncio.gather(*asking, return_exceptions=True)
    while (await built.simulator.stats())["answering"] and time.monotonic() - began < 10:
        await asyncio.sleep(0.01)
    return round(time.monotonic() - began, 3)


async def _storm(built: Cluster, *, seconds: float) -> tuple[Counter[int], int]:
    """Nothing but 429 from every target; what the turns were answered, and how many calls the provider saw."""
    await built.simulator.reset()
    until, asked = time.monotonic() + seconds, Counter[int]()

    async def ask() -> None:
        while time.monotonic() < until:
            asked[(await built.replicas.chat(built.key, scripted(status=429), model="either")).status] += 1
            await asyncio.sleep(random.uniform(0, 0.1))

    await asyncio.gather(*(ask() for _ in range(24)))
    return asked, (await built.simulator.stats())["requests"]


@proof(
    "replicas.roll",
    what="SIGTERM with 300 open streams; rolling restart of 3 processes under load, 3 times (LONG 5); N-1 code on "
    "schema N",
    must="0 lost entries; each stream whole or with a terminal error event",
)
async def roll(bench: Bench) -> Outcome:
    """First one process with all the streams, some longer than it may drain; then all of them in turn."""
    rounds = 5 if bench.long else 3
    load = Load(10**6, bench.seed)
    async with cluster(bench.workdir, settings={"PENSTOCK_DRAIN_SECONDS": "5"}) as built:
        endings, status, seconds = await _terminate_full(built)
        await built.replicas.restart(0)
        running = asyncio.create_task(load.run(built.replicas, built.key))
        exits = list[int]()
        for _ in range(rounds):
            for number in range(3):
                await asyncio.sleep(0.3)
                exits.append(await built.replicas.terminate(number))
                await built.replicas.restart(number)
        load.stopped = True
        await running
        verdict = await audited_books(bench, built)
    # A caller whose request meets the closing of an idle connection has no answer, and no turn: it may ask again.
    cut = Counter(seen.code for seen in load.seen if seen.status == 0)
    unasked = cut.pop("ServerDisconnectedError", 0) + cut.pop("ClientOSError", 0)
    bench.figure("open streams", f"300: {dict(endings)}, exit {status} after {seconds:.1f} s")
    bench.figure("rolls", f"{rounds} x 3, exits {sorted(set(exits))}")
    bench.figure("turns", load.served)
    bench.figure("quiet endings", load.quiet)
    bench.figure("connections closed before an answer", unasked)
    bench.figure("answers cut", dict(cut) or 0)
    bench.figure("entries lost", len(verdict.before.without_attempt))
    bench.figure("different after import", len(verdict.after.inexact))
    bench.figure("N-1 code on schema N", "not run: there is no earlier release")
    loud = endings["whole"] + endings["error event"] == 300
    return Outcome(
        loud and not load.quiet and not cut and verdict.exact and load.served > 500 and {*exits, status} == {0}
    )


async def _terminate_full(built: Cluster) -> tuple[Counter[str], int, float]:
    """SIGTERM to a process with 300 streams, half of which would take longer than the drain."""
    gateway, endings = built.replicas.gateways[0], Counter[str]()
    streams = [
        asyncio.create_task(_stream(gateway, built.key, pace_ms=80 if at % 2 else 400, endings=endings))
        for at in range(300)
    ]
    async with asyncio.timeout(30):
        while (await built.simulator.stats())["answering"] < 300:
            await asyncio.sleep(0.05)
    await asyncio.sleep(0.5)
    began = time.monotonic()
    status = await built.replicas.terminate(0)
    seconds = time.monotonic() - began
    await asyncio.gather(*streams)
    return endings, status, seconds


async def _stream(gateway: Gateway, key: str, *, pace_ms: float, endings: Counter[str]) -> None:
    try:
        answer = await chat(gateway, key, scripted(tokens=30, pace_ms=pace_ms), stream=True)
    except (aiohttp.ClientError, ValueError) as broken:
        endings[type(broken).__name__] += 1
        return
    ending, wrong = _terminal(answer, stream=True)
    endings["whole" if ending == "[DONE]" else wrong or ending] += 1
