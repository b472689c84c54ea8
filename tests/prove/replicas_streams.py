"""Proofs that every answer ends once and loudly, whatever the provider does, the caller does, or the operator does."""

import asyncio
import itertools
import json
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import aiohttp

from tests.chaos.replicas import Cluster, cluster
from tests.prove.books import _query, read_attempts
from tests.prove.company import Answer, chat, scripted
from tests.prove.proofs import Bench, Outcome, proof
from tests.prove.replicas_load import Load, audited_books, settled
from tests.prove.server import Gateway
from tests.sim.tokens import words

_COMPANY = """
providers:
  - {{name: sim, dialect: openai, base_url: "{base_url}", credential: sim, event_seconds: 2, answer_seconds: 3}}
  - {{name: sim-b, dialect: openai, base_url: "{base_url}", credential: sim, event_seconds: 2, answer_seconds: 3}}
policies:
  - {{name: proof-all, models: ["*"], departments: [proof], use_cases: [proving], data_class: internal}}
aliases:
  - {{name: either, targets: [storm-a, storm-b, storm-c, storm-d], choose: weight}}
models:
"""
_STORMED = {"storm-a": "sim", "storm-b": "sim-b", "storm-c": "sim", "storm-d": "sim-b"}
_LARGE_BYTES = 50_000_000
_TOKENS = 8
_TEXT = "".join(words(_TOKENS))
_WHOLE, _LATE, _BROKEN, _FAILED = "whole", "504 upstream_timeout", "502 upstream_broken", "502 upstream_error"

Script = dict[str, object]


@dataclass(frozen=True, slots=True)
class Case:
    """One way in which an answer can go, and how it must end where it is asked for whole and as a stream.

    An ending is `whole` (all of the text, no more), a status with its code, or `event` with the code of an error
    event that follows some of the text.
    """

    name: str
    script: Script
    whole: str
    stream: str


def company(base_url: str) -> str:
    """A target for each case, so that no case finds a circuit open because of another."""
    targets = {f"case-{number}": "sim" for number in range(len(list(cases())))} | _STORMED
    limits = "upstream_model: sim-small, output_tokens_max: 64, context_tokens: 8192"
    models = "".join(f"  - {{name: {name}, provider: {provider}, {limits}}}\n" for name, provider in targets.items())
    costs = 'usd_per_million_tokens: {input: "1", output: "4"}'
    prices = "".join(f"  - {{name: {name}, model: {name}, {costs}}}\n" for name in targets)
    return f"{_COMPANY.format(base_url=base_url).lstrip()}{models}prices:\n{prices}"


def cases() -> Iterator[Case]:
    """Forty ways in which an answer of eight tokens can go."""
    for fault, ending in (("stall_at", _LATE), ("rst_at", _BROKEN), ("fin_at", _BROKEN)):
        for place in (-1, 0, 1, 5):
            yield Case(f"{fault} {place}", {fault: place}, ending, _after(place, ending))
    yield Case("stall_at 3, pings", {"stall_at": 3, "ping_ms": 300}, _LATE, _after(3, _LATE))
    # A whole answer that goes wrong by an error is one with status 500; a stream breaks off.
    for fault, ending in (("end_at", _BROKEN), ("error_at", _FAILED), ("malformed_at", _BROKEN)):
        for place in (0, 1, 5):
            yield Case(f"{fault} {place}", {fault: place}, ending, _after(place, _BROKEN))
    for usage in ("missing", "duplicate", "cumulative", "zero"):
        yield Case(f"usage {usage}", {"usage": usage}, _WHOLE, _WHOLE)
    refusals = {400: "400 invalid_request", 429: "429 rate_limit_exceeded"}
    for status in (400, 401, 404, 408, 429, 500, 502, 503, 504):
        ending = refusals.get(status, _FAILED)
        yield Case(f"status {status}", {"status": status}, ending, ending)
    yield Case("429 with retry-after", {"status": 429, "retry_after": 1}, refusals[429], refusals[429])
    yield Case("split at every byte", {"split": "byte"}, _WHOLE, _WHOLE)
    yield Case("split by 7", {"split": 7}, _WHOLE, _WHOLE)
    yield Case("late", {"first_ms": 1500}, _WHOLE, _WHOLE)
    yield Case("50 MB event", {"event_bytes": _LARGE_BYTES}, _BROKEN, _BROKEN)


def _after(place: int, ending: str) -> str:
    """The ending of a stream that goes wrong after so many events, the first of which says nothing yet."""
    return ending if place <= 1 else f"event {ending.split()[1]}"


@dataclass(slots=True)
class Found:
    """What the cases came to."""

    ended: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


@proof(
    "replicas.streams",
    what="40 scripted fault cases x {stream, not}; callers who leave before and after the first token; 20 s (LONG 60) "
    "each of a storm in which a fifth of the turns meets 429 from every target, so that circuits stay closed, and of a "
    "total one",
    must="each ends in its one expected terminal state; upstream closed within 1 s of a caller's leaving; calls per "
    "turn that sent anything <= 1.1",
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
        await _storm(built, seconds=3, share=0.2)  # spends the ten retries that each process starts with
        some = await _storm(built, seconds=60 if bench.long else 20, share=0.2)
        total = await _storm(built, seconds=60 if bench.long else 20, share=1)
    for wrong in found.wrong:
        bench.note(wrong)
    bench.note(f"endings: {dict(found.ended)}; upstream closed after {hung_up}")
    bench.figure("ended as expected", f"{len(every) - len(found.wrong)} of {len(every)}")
    bench.figure("slowest closing of an upstream s", max(hung_up.values()))
    bench.figure("amplification", some.amplification)
    bench.figure("storm of a fifth", some)
    bench.figure("total storm", total)
    bench.figure("books exact", verdict.exact)
    met = not found.wrong and max(hung_up.values()) <= 1 and verdict.exact and len(every) == 80
    # Of a total storm circuits let so little through that what the processes saved meanwhile would show.
    saved = 10 * len(built.replicas.gateways)
    calm = some.turns > 1000 and round(some.amplification, 2) <= 1.1 and total.calls <= 1.1 * total.turns + saved
    return Outcome(met and calm and some.as_seen and total.as_seen and total.turns > 0)


async def _lane(built: Cluster, lane: list[tuple[tuple[int, Case], bool]], found: Found) -> None:
    for (number, case), stream in lane:
        called = f"{case.name}, {'stream' if stream else 'whole'}"
        try:
            async with asyncio.timeout(30):
                asked = scripted(tokens=_TOKENS, **case.script)
                answer = await built.replicas.chat(built.key, asked, model=f"case-{number}", stream=stream)
        except (aiohttp.ClientError, TimeoutError, ValueError) as broken:
            found.wrong.append(f"{called}: {type(broken).__name__}")
            continue
        _, fault = _terminal(answer, stream=stream)
        ending, expected = _ending(answer), case.stream if stream else case.whole
        found.ended[ending] += 1
        if fault or ending != expected:
            found.wrong.append(f"{called}: {fault or f'{ending} where {expected} was due'}")
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


def _ending(answer: Answer) -> str:
    """How it ended, in the words of Case."""
    if not answer.events:
        if answer.status != 200:
            return f"{answer.status} {answer.code}"
        said = answer.body["choices"][0]["message"]["content"]
        return _WHOLE if said == _TEXT else f"an answer of {said!r}"
    *events, last = answer.events
    choices = [choice for event in events for choice in json.loads(event).get("choices", [])]
    said = "".join(choice["delta"].get("content") or "" for choice in choices)
    if last == "[DONE]":
        return _WHOLE if said == _TEXT else f"[DONE] after {said!r}"
    code = json.loads(last)["error"]["code"]
    return f"event {code}" if said and _TEXT.startswith(said) else f"{code} after {said!r}"


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


@dataclass(frozen=True, slots=True)
class Storm:
    """What turns were answered, how many of them sent anything, and the calls they made.

    as_seen: whether the provider saw as many calls.
    """

    answered: Counter[int]
    turns: int
    calls: int
    as_seen: bool

    @property
    def amplification(self) -> float:
        """Calls per turn that made one."""
        return self.calls / max(1, self.turns)

    def __str__(self) -> str:
        """In one line."""
        return f"{self.calls} calls of {self.turns} turns that sent anything, all answered {dict(self.answered)}"


async def _storm(built: Cluster, *, seconds: float, share: float) -> Storm:
    """Such a share of turns meets 429 from every target that it asks, the others are answered."""
    await settled(built)
    await built.simulator.reset()
    turns, calls = _sent(built)
    until, answered = time.monotonic() + seconds, Counter[int]()

    async def ask() -> None:
        while time.monotonic() < until:
            asked = scripted(status=429) if random.random() < share else scripted(tokens=1)
            answered[(await built.replicas.chat(built.key, asked, model="either")).status] += 1
            await asyncio.sleep(random.uniform(0, 0.1))

    await asyncio.gather(*(ask() for _ in range(24)))
    await settled(built)
    turns_after, calls_after = _sent(built)
    turns, calls = turns_after - turns, calls_after - calls
    return Storm(answered, turns, calls, as_seen=calls == (await built.simulator.stats())["requests"])


def _sent(built: Cluster) -> tuple[int, int]:
    """Turns at the stormed targets of which any attempt was sent, and those attempts, from the books."""
    said = (
        "SELECT count(DISTINCT turn_id), count(*) FROM entries "
        "WHERE step = 1 AND target LIKE 'storm-%' AND coalesce(reason, '') <> 'not_sent'"
    )
    ((turns, calls),) = _query(built.store, said)
    return turns, calls


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
