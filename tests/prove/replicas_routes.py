"""A proof that a request goes where the mission's rules say, held against a reading of those rules of our own."""

import asyncio
import json
import random
from collections import Counter
from dataclasses import dataclass

from tests.chaos.replicas import Cluster, cluster
from tests.prove.company import scripted
from tests.prove.proofs import Bench, Outcome, proof

_REQUESTS = 500
_LONG_TOKENS = 100_000
_CLASSES = ("fast", "quality", "long_context", "code", "internal")


def company() -> str:
    """Models, prices, classes and `auto`, as an operator would declare what the mission says.

    Every class has a first target of its own, so that the target that answered says which class was chosen.
    """
    sizes = {**dict.fromkeys(_CLASSES, "large"), "cheap": "small", "dear": "small"}
    dollars = {**dict.fromkeys(_CLASSES, 5), "cheap": 1, "dear": 9}
    models = "".join(f"\n  - {_model(name, size)}" for name, size in sizes.items())
    prices = "".join(f"\n  - {_price(name, usd)}" for name, usd in dollars.items())
    return f"models: {models}\nprices: {prices}\n{_COMPANY}"


def _model(name: str, size: str) -> str:
    upstream = f"provider: sim, upstream_model: sim-{size}, output_tokens_max: 64, context_tokens: 900000"
    return f"{{name: m-{name}, {upstream}}}"


def _price(name: str, usd: int) -> str:
    return f'{{name: m-{name}, model: m-{name}, usd_per_million_tokens: {{input: "{usd}", output: "{4 * usd}"}}}}'


_COMPANY = f"""
policies:
  - {{name: proof-all, models: ["*"], departments: [proof], use_cases: [proving], data_class: internal}}
aliases:
  - {{name: fast, targets: [m-fast, m-dear]}}
  - {{name: quality, targets: [m-quality, m-dear]}}
  - {{name: long_context, targets: [m-long_context, m-dear]}}
  - {{name: code, targets: [m-code, m-dear]}}
  - {{name: internal, targets: [m-internal]}}
  - name: auto
    targets: [m-dear, m-quality, m-cheap]
    choose: cheapest
    rules:
      - {{when: {{prompt_tokens_over: {_LONG_TOKENS}}}, use: long_context}}
      - {{when: {{task_type: [code]}}, use: code}}
      - {{when: {{max_latency_ms_under: 1000}}, use: fast}}
      - {{when: {{quality_level: [critical]}}, use: quality}}
"""


@dataclass(frozen=True, slots=True)
class Wish:
    """A request, as its caller thinks of it. said: how the hints are told, in one of the three ways there are."""

    model: str
    prompt_tokens: int
    task_type: str | None
    max_latency_ms: int | None
    quality_level: str | None
    said: str

    @property
    def expected(self) -> str:
        """The rules in the mission's order: long, code, latency, quality, else the cheapest."""
        if self.model != "auto":
            return self.model
        if self.prompt_tokens > _LONG_TOKENS:
            return "long_context"
        if self.task_type == "code":
            return "code"
        if self.max_latency_ms is not None and self.max_latency_ms < 1000:
            return "fast"
        return "quality" if self.quality_level == "critical" else "cheap"

    @property
    def hints(self) -> dict[str, str | int]:
        """What is said beside the request."""
        named = ("task_type", "max_latency_ms", "quality_level")
        return {name: value for name in named if (value := getattr(self, name)) is not None}


def wishes(seed: int) -> list[Wish]:
    """Requests with hints and lengths of every kind, most of them for `auto`."""
    dice = random.Random(seed)
    return [
        Wish(
            model="auto" if dice.random() < 0.8 else dice.choice(_CLASSES),
            # Two in a hundred off the border: what a message costs beside its text is the provider's secret.
            prompt_tokens=dice.choice([5, 50, 2_000, 98_000] * 3 + [102_000, 130_000]),
            task_type=dice.choice([None, None, "code", "chat", "summary"]),
            max_latency_ms=dice.choice([None, None, 200, 999, 1000, 5000]),
            quality_level=dice.choice([None, None, "critical", "high", "standard"]),
            said=dice.choice(["header", "body", "metadata"]),
        )
        for _ in range(_REQUESTS)
    ]


@proof(
    "replicas.routes",
    what="500 generated requests with hints and lengths to `auto` and the class aliases, hints in headers, body or "
    "metadata, 3 processes",
    must="the class and target that the mission's rules say; `penstock aliases explain` says why",
)
async def routes(bench: Bench) -> Outcome:
    """Ask, look who answered; then ask the command about each kind of request that there was."""
    every, wrong, told = wishes(bench.seed), list[str](), Counter[str]()
    gate = asyncio.Semaphore(12)
    async with cluster(bench.workdir) as built:
        await built.replicas.admin.apply(company())
        await built.replicas.agree(built.key, "m-dear")

        async def ask(wish: Wish) -> None:
            async with gate:
                found = await _answered_by(built, wish)
            told[found] += 1
            if found != f"m-{wish.expected}":
                wrong.append(f"{wish}: {found}")

        await asyncio.gather(*(ask(wish) for wish in every))
        kinds = {(wish.model, wish.expected): wish for wish in every if wish.prompt_tokens != 98_000}
        explained = [await _explained(bench, built, wish) for wish in kinds.values()]
    for each in (*wrong[:5], *(found for found in explained if found)):
        bench.note(each)
    bench.figure("as the rules say", f"{len(every) - len(wrong)} of {len(every)}")
    bench.figure("targets", dict(sorted(told.items())))
    bench.figure("explained", f"{explained.count('')} of {len(kinds)} kinds")
    return Outcome(not wrong and not any(explained) and len(told) == len(_CLASSES) + 1)


async def _answered_by(built: Cluster, wish: Wish) -> str:
    messages = [{"role": "system", "content": "x" * (4 * wish.prompt_tokens)}, *scripted(tokens=1)]
    members: dict[str, object] = {"model": wish.model, "max_tokens": 16}
    headers: dict[str, str] = {}
    if wish.said == "header":
        headers = {f"x-{name.replace('_', '-')}": str(value) for name, value in wish.hints.items()}
    elif wish.said == "body":
        members["penstock"] = wish.hints
    elif wish.hints:
        members["metadata"] = {name: str(value) for name, value in wish.hints.items()}
    answer = await built.replicas.chat(built.key, messages, headers=headers, **members)
    return answer.headers.get("x-penstock-model", f"{answer.status} {answer.code}")


async def _explained(bench: Bench, built: Cluster, wish: Wish) -> str:
    """What is wrong with the command's word on this kind of request; nothing, when it names target and reason."""
    command = [bench.python, "-m", "gateway", "aliases", "explain", wish.model, "--json"]
    command += ["--prompt-tokens", str(wish.prompt_tokens)]
    command += [part for name, value in wish.hints.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    ran = await asyncio.create_subprocess_exec(
        *command,
        cwd=bench.root,
        env=built.replicas.gateways[0].environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await ran.communicate()
    if ran.returncode:
        return f"{wish}: {said.decode()[-200:]}"
    (found,) = json.loads(said)
    first, why = found["targets"][0]["target"], " ".join(found["why"])
    reason = {
        "long_context": "prompt tokens",
        "code": "task_type",
        "fast": "max_latency_ms",
        "quality": "quality_level",
        "cheap": "cheapest",
    }
    named = wish.model != "auto" or reason[wish.expected] in why
    return "" if first == f"m-{wish.expected}" and why and named else f"{wish}: {found}"
