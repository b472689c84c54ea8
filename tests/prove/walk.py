"""Proofs of the walk that are about doors: who comes in, in which order they are told no, and where they may go."""

import asyncio
import json
import random
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.clients.environment import clients_python
from tests.prove.company import chat, found_company, scripted
from tests.prove.proofs import Bench, NotRun, Outcome, proof
from tests.prove.reading import check_reading
from tests.prove.server import Gateway, Refused, Simulator, free_port

HELLO = [{"role": "user", "content": "Hello"}]


@proof(
    "walk.clone",
    what="a fresh clone in an empty folder: make run, then the printed snippets; make test",
    must="work; minutes noted",
    seconds_max=1200,
)
async def clone(bench: Bench) -> Outcome:
    """Everything as a stranger has it: the commit, Python, make, and nothing that was installed before."""
    if shutil.which("git") is None or shutil.which("make") is None:
        raise NotRun("git and make are needed to clone and to run")
    folder = bench.workdir / "penstock"
    await asyncio.to_thread(subprocess.run, ["git", "clone", "--quiet", str(bench.root), str(folder)], check=True)
    port, started = free_port(), time.monotonic()
    python = await asyncio.to_thread(clients_python, cache=bench.root / ".cache/clients")
    log = bench.workdir / "run.log"
    environment = {**_clean_environment(), "PENSTOCK_PORT": str(port)}
    with log.open("wb") as sink:
        running = await asyncio.create_subprocess_exec(
            "make", "run", cwd=folder, stdout=sink, stderr=sink, env=environment
        )
    try:
        printed = await _until_printed(log, running)
        ready = time.monotonic() - started
        snippets = await asyncio.to_thread(_run_snippets, printed, python, bench.workdir)
    finally:
        await _stop_tree(running)
    bench.figure("make run to first answer, minutes", round(ready / 60, 2))
    tested = time.monotonic()
    with (bench.workdir / "test.log").open("wb") as sink:
        test = await asyncio.create_subprocess_exec(
            "make", "test", cwd=folder, stdout=sink, stderr=sink, env=environment
        )
        status = await test.wait()
    bench.figure("make test, minutes", round((time.monotonic() - tested) / 60, 2))
    bench.figure("curl", snippets[0])
    bench.figure("SDK", snippets[1])
    return Outcome(status == 0 and snippets == ("works", "works") and ready <= 180)


def _clean_environment() -> dict[str, str]:
    inherited = subprocess.run([sys.executable, "-c", "import json,os;print(json.dumps(dict(os.environ)))"],
                               capture_output=True, check=True)  # fmt: skip
    kept: dict[str, str] = json.loads(inherited.stdout)
    return {name: value for name, value in kept.items() if not name.startswith(("PENSTOCK_", "MAKE", "PYTHON"))}


async def _until_printed(log: Path, running: asyncio.subprocess.Process) -> str:
    while ".choices[0].message.content)" not in (printed := log.read_text()):
        if running.returncode is not None:
            raise AssertionError(f"make run ended: {printed[-300:]}")
        await asyncio.sleep(0.1)
    return printed


def _run_snippets(printed: str, python: Path, workdir: Path) -> tuple[str, str]:
    curl = printed[printed.index("  curl") : printed.index("  from openai")]
    said = subprocess.run(curl, shell=True, capture_output=True, text=True, check=False)
    program = workdir / "snippet.py"
    program.write_text("\n".join(line[2:] for line in printed[printed.index("  from openai") :].splitlines()))
    ran = subprocess.run([str(python), str(program)], capture_output=True, text=True, check=False)
    return (
        "works" if '"chat.completion"' in said.stdout else said.stdout + said.stderr,
        "works" if "sandbox" in ran.stdout else ran.stderr[-200:],
    )


async def _stop_tree(running: asyncio.subprocess.Process) -> None:
    if running.returncode is None:
        running.terminate()
        await running.wait()


@proof("walk.sdk", what="the OpenAI Python SDK 3.x, unmodified, in its own environment", must="all pass")
async def sdk(bench: Bench) -> Outcome:
    """The same suite against the simulator, to trust it, and then against the gateway."""
    python = await asyncio.to_thread(clients_python, cache=bench.root / ".cache/clients")
    async with Simulator(bench.workdir) as simulator, Gateway(bench.workdir) as gateway:
        trusted = await _suite(bench, python, "simulator", simulator.base_url, simulator.key, "sim-small")
        key = await found_company(gateway, simulator)
        await gateway.apply(_STATES)
        held = {
            "--forbidden-model": "shut",
            "--hidden-model": "secret",
            "--limited-key": await gateway.create_key(name="limited", app="limited-app"),
            "--broke-key": await gateway.create_key(name="broke", app="broke-app"),
        }
        await chat(gateway, held["--limited-key"], HELLO)  # its one request of this minute
        extra = [part for pair in held.items() for part in pair]
        told = await _suite(bench, python, "gateway", f"{gateway.url}/v1", key, "sim-small", *extra)
    failed = [f"{row['name']}: {row['reason']}" for row in (*trusted, *told) if row["verdict"] == "fail"]
    for line in failed:
        bench.note(line)
    passed = sum(row["verdict"] == "pass" for row in told)
    missing = [row["name"] for row in told if row["verdict"] not in {"pass", "fail"}]
    bench.figure("checks passed", f"{passed} of {len(told)}")
    bench.figure("not run", ", ".join(missing) or "none")
    return Outcome(not failed and not missing and passed > 0)


_STATES = """
apps:
  - {name: limited-app, department: proof, use_cases: [proving], requests_per_minute: 1}
  - {name: broke-app, department: proof, use_cases: [proving]}
budgets: [{name: broke, scope: app, of: broke-app, period: day, limit_usd: "0"}]
models:
  - {name: shut, provider: sim}
  - {name: secret, provider: sim, hidden: true}
prices:
  - {name: shut, model: shut, usd_per_million_tokens: {input: "1", output: "1"}}
  - {name: secret, model: secret, usd_per_million_tokens: {input: "1", output: "1"}}
"""


async def _suite(bench: Bench, python: Path, name: str, *given: str) -> list[dict[str, Any]]:
    base_url, key, model, *extra = given
    out = bench.workdir / f"{name}.json"
    suite = bench.root / "tests/clients/openai_suite.py"
    arguments = ["--base-url", base_url, "--api-key", key, "--model", model, "--out", str(out), *extra]
    running = await asyncio.create_subprocess_exec(
        str(python), str(suite), *arguments, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
    )
    await running.wait()
    rows: list[dict[str, Any]] = json.loads(out.read_text())["checks"]
    return rows


_ORDER = """
departments: [{name: order}]
apps:
  - {name: tight, department: order, use_cases: [proving], requests_per_minute: 3}
  - {name: poor, department: order, use_cases: [proving]}
  - {name: rich, department: order, use_cases: [proving]}
models:
  - {name: shut, provider: sim}
  - {name: secret, provider: sim, hidden: true}
policies:
  - {name: order, models: [sim-small], departments: [order], use_cases: [proving], data_class: internal}
budgets:
  - {name: tight, scope: app, of: tight, period: day, limit_usd: "0"}
  - {name: poor, scope: app, of: poor, period: day, limit_usd: "0.0005"}
"""


@proof(
    "walk.order",
    what="wrong key 401, model not allowed 403 with reason, hidden model 404, rate 429 with retry-after, "
    "money held 429, money spent 402, then routed, recorded, audited",
    must="in this order",
)
async def order(bench: Bench) -> Outcome:
    """Each request is wrong in every later way too, so that only the order decides what it is told."""
    async with Simulator(bench.workdir) as simulator, Gateway(bench.workdir) as gateway:
        await found_company(gateway, simulator, "")
        await gateway.apply(_ORDER)
        tight, poor, rich = [await gateway.create_key(name=app, app=app) for app in ("tight", "poor", "rich")]
        seen: list[tuple[str, bool]] = []

        def expect(what: str, answer: Any, status: int, code: str, *words: str) -> None:
            message = answer.body["error"]["message"]
            good = (answer.status, answer.code) == (status, code) and all(word in message for word in words)
            seen.append((what if good else f"{what}: {answer.status} {answer.code} {message}", good))

        expect("wrong key 401", await chat(gateway, "pk-wrong", HELLO, model="shut"), 401, "invalid_api_key")
        for _ in range(3):
            expect("spent 402", await chat(gateway, tight, HELLO), 402, "budget_exhausted")
        expect("not allowed 403", await chat(gateway, tight, HELLO, model="shut"), 403, "model_not_allowed", "policy")
        restricted = {"penstock": {"data_class": "restricted"}}
        expect("class 403", await chat(gateway, tight, HELLO, **restricted), 403, "policy_denied", "internal")
        expect("hidden 404", await chat(gateway, tight, HELLO, model="secret"), 404, "model_not_found")
        limited = await chat(gateway, tight, HELLO)
        expect("rate 429", limited, 429, "rate_limit_exceeded")
        seen.append(("retry-after", int(limited.headers.get("retry-after", 0)) >= 1))
        stream = asyncio.create_task(chat(gateway, poor, scripted(tokens=60, pace_ms=20), max_tokens=100, stream=True))
        await asyncio.sleep(0.3)
        held = await chat(gateway, poor, scripted(tokens=60), max_tokens=100)
        expect("held 429", held, 429, "budget_held")
        seen.append(("held retry-after", int(held.headers.get("retry-after", 0)) >= 1))
        await stream
        while (spent := await chat(gateway, poor, scripted(tokens=60), max_tokens=100)).status == 200:
            pass
        expect("spent 402", spent, 402, "budget_exhausted")
        routed = await chat(gateway, rich, HELLO)
        turn = routed.headers["x-request-id"]
        told = await gateway.ask("GET", f"/v1/requests/{turn}", key=rich)
        seen.append(("routed", routed.status == 200 and routed.headers["x-penstock-model"] == "sim-small"))
        recorded = [(attempt["state"], attempt["price_id"]) for attempt in told["attempts"]]
        seen.append((f"recorded {recorded}", recorded == [("posted", "sim-small@1")]))
        seen.append(("audited", await _events(gateway, turn) == ["turn.admitted", "turn.ended"]))
        refused = limited.headers["x-request-id"]
        seen.append(("refusal audited", await _events(gateway, refused) == ["turn.refused"]))
    for what, good in seen:
        if not good:
            bench.note(f"wrong: {what}")
    bench.figure("steps", f"{sum(good for _, good in seen)} of {len(seen)} as they must be")
    return Outcome(all(good for _, good in seen))


async def _events(gateway: Gateway, turn: str) -> list[str]:
    trail = await gateway.ask("GET", f"/api/audit?turn_id={turn}", key=gateway.quickstart.admin_key)
    return [record["event"] for record in trail["data"]]


_CLASSES = ("public", "internal", "confidential", "restricted")


@dataclass(frozen=True, slots=True)
class World:
    """A generated company: who, with which class, may use which model up to which class; and which models are up."""

    apps: dict[str, tuple[str, str]]
    models: dict[str, bool]
    policies: tuple[tuple[frozenset[str], frozenset[str], str], ...]

    def allowed(self, app: str, model: str, hint: str | None) -> bool:
        """By brute force, independently of the product: some policy lets this department use this model."""
        department, own = self.apps[app]
        effective = max(_CLASSES.index(own), _CLASSES.index(hint or "public"))
        return any(
            model in models and department in departments and effective <= _CLASSES.index(highest)
            for models, departments, highest in self.policies
        )


@proof(
    "walk.class",
    what="effective data class = max(app, hint); a fallback target that the caller may not use",
    must="never used, in 1,000 generated policies and plans",
)
async def class_(bench: Bench) -> Outcome:
    """Real requests over generated policies; most targets are down, so that plans are walked to their end."""
    dice = random.Random(bench.seed)
    asked = wrong = fallbacks = 0
    async with Gateway(bench.workdir) as gateway:
        for number in range(10):
            world = _world(dice, number)
            plans = {f"plan-{at}": dice.sample(sorted(world.models), dice.randint(1, 5)) for at in range(100)}
            await gateway.ask(
                "POST", "/api/apply?prune=false", key=gateway.quickstart.admin_key, text=_declared(world, plans)
            )
            keys = {app: await gateway.create_key(name=app, app=app) for app in world.apps}
            for alias, targets in plans.items():
                app, hint = dice.choice(sorted(world.apps)), dice.choice([None, *_CLASSES])
                members = {"penstock": {"data_class": hint}} if hint else {}
                answer = await chat(gateway, keys[app], HELLO, model=alias, **members)
                may = [model for model in targets if world.allowed(app, model, hint)]
                used = await _targets_asked(gateway, keys[app], answer.headers["x-request-id"])
                asked += 1
                fallbacks += len(used) > 1
                wrong += not _as_it_must_be(world, may, used, answer.status)
    bench.figure("requests", asked)
    bench.figure("walked to a fallback", fallbacks)
    bench.figure("targets used or refused wrongly", wrong)
    return Outcome(wrong == 0 and asked == 1000 and fallbacks > 50)


async def _targets_asked(gateway: Gateway, key: str, turn: str) -> list[str]:
    try:
        told = await gateway.ask("GET", f"/v1/requests/{turn}", key=key)
    except Refused:
        return []
    return [attempt["target"] for attempt in told["attempts"]]


def _as_it_must_be(world: World, may: list[str], used: list[str], status: int) -> bool:
    """Only what the caller may use was asked, in order, until one answered; what rests may have been passed over."""
    if not may:
        return status == 403 and not used
    in_order = iter(may)
    answered = [model for model in used if world.models[model]]
    first_up = next((model for model in may if world.models[model]), None)
    ended = answered == [first_up] == used[-1:] if status == 200 else not answered and status in {502, 503}
    return all(model in in_order for model in used) and ended


def _world(dice: random.Random, number: int) -> World:
    departments = [f"d{at}" for at in range(4)]
    apps = {f"a{at}": (dice.choice(departments), dice.choice(_CLASSES)) for at in range(8)}
    models = {f"m{number}-{at}": dice.random() < 0.6 for at in range(40)}
    policies = tuple(
        (
            frozenset(dice.sample(sorted(models), dice.randint(1, 12))),
            frozenset(dice.sample(departments, dice.randint(1, 3))),
            dice.choice(_CLASSES),
        )
        for _ in range(14)
    )
    return World(apps, models, policies)


def _declared(world: World, plans: dict[str, list[str]]) -> str:
    departments = sorted({department for department, _ in world.apps.values()} | {f"d{at}" for at in range(4)})
    document = {
        "departments": [{"name": name} for name in departments],
        "use_cases": [{"name": "proving", "purpose": "Proving"}],
        "apps": [
            {"name": app, "department": department, "data_class": own, "use_cases": ["proving"]}
            for app, (department, own) in world.apps.items()
        ],
        "providers": [
            {"name": "up", "dialect": "sandbox"},
            {"name": "down", "dialect": "openai", "base_url": "http://127.0.0.1:9/v1"},
        ],
        "models": [{"name": name, "provider": "up" if up else "down"} for name, up in world.models.items()],
        "aliases": [{"name": name, "targets": targets} for name, targets in plans.items()],
        "prices": [
            {"name": name, "model": name, "usd_per_million_tokens": {"input": "1", "output": "1"}}
            for name in world.models
        ],
        "policies": [
            {
                "name": f"p{at}",
                "models": sorted(models),
                "departments": sorted(allowed),
                "use_cases": ["*"],
                "data_class": highest,
            }
            for at, (models, allowed, highest) in enumerate(world.policies)
        ],
    }
    return json.dumps(document)


@proof(
    "walk.read",
    what="a reader with a fresh mind, given only the repository, looks for where each of ten things happens",
    must="finds each, opening at most three files for each",
)
def read(bench: Bench) -> Outcome:
    """The last reading, held against the code as it stands: every place that was found must still be there."""
    questions, found, most = check_reading(bench.root)
    bench.figure("found", f"{found} of {questions}")
    bench.figure("most files opened", most)
    return Outcome(questions == found == 10 and most <= 3)
