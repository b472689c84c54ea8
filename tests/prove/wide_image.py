"""Proofs that what deploy/ describes works, as far as that can be shown without a container engine."""

import asyncio
import json
import re
import secrets
import signal
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tests.chaos.postgres import PostgresServer
from tests.chaos.redis import RedisServer
from tests.clients.environment import clients_python
from tests.deploy.balanced import balanced
from tests.deploy.compose import Unset, interpolated, read_compose, variables
from tests.deploy.machine import BuildFailed, Image, Machine, Unable, image_user
from tests.deploy.served import COMPANY, Served, answer_of, chat, chat_again, posted, status_of
from tests.prove.proofs import Bench, NotRun, Outcome, proof
from tests.prove.server import free_port

_WITHOUT_SCHEMA = ("kind: Kustomization", "kind: ServiceMonitor", "metricsQuery:")
_BROKEN_DOCKERFILE = "FROM debian\nRUN cd / && sudo apt-get install curl\n"
_BROKEN_MANIFEST = "apiVersion: v1\nkind: Service\nmetadata: {name: x}\nspec: {ports: [{port: http}]}\n"
_LEFT_OUT = ("pip", "hatchling", "editables")


@dataclass(slots=True)
class Checks:
    """What was looked at; the first thing that is not as it must be is told in full."""

    bench: Bench
    wrong: list[str] = field(default_factory=list)
    looked_at: int = 0

    def that(self, holds: bool, what: str) -> None:  # noqa: FBT001 - check.that(x, "...") reads as a sentence
        """Note what does not hold."""
        self.looked_at += 1
        if not holds:
            self.wrong.append(what)
            self.bench.note(f"NOT AS IT MUST BE: {what}")


@proof(
    "wide.image",
    what="each image's command, from the wheel in an empty environment, another uid, read-only tree",
    must="/readyz 200; hadolint clean; a compose variable nobody sets fails; manifests validate",
    seconds_max=900,
)
async def image(bench: Bench) -> Outcome:
    """Lint, interpolate and validate everything; build the images from their Dockerfiles and run them."""
    checks = Checks(bench)
    tools = clients_python(Path("requirements/prove.lock"), Path(".cache/prove"), python=bench.python).parent
    await asyncio.to_thread(_lint, checks, tools)
    await asyncio.to_thread(_manifests, checks, tools)
    _compose(checks)
    try:
        async with Machine(_folder(bench, "machine"), context=bench.root) as machine:
            await _gateway(checks, machine)
            await _translator(checks, machine)
    except Unable as missing:
        if not checks.wrong:
            raise NotRun(str(missing)) from missing
    except BuildFailed as failed:
        checks.that(False, f"an image is built: {failed}")  # noqa: FBT003
    bench.figure("checks", f"{checks.looked_at - len(checks.wrong)} of {checks.looked_at} as they must be")
    return Outcome(not checks.wrong)


def _folder(bench: Bench, name: str) -> Path:
    made = bench.workdir / name
    made.mkdir()
    return made


# Without running anything


def _lint(checks: Checks, tools: Path) -> None:
    """hadolint over each Dockerfile, and over one that it must not like."""
    broken = checks.bench.workdir / "Broken.Dockerfile"
    broken.write_text(_BROKEN_DOCKERFILE)
    checks.that(_run(tools / "hadolint", broken).returncode != 0, "hadolint finds fault with a bad Dockerfile")
    found = sorted((checks.bench.root / "deploy").rglob("*ockerfile"))
    for path in found:
        done = _run(tools / "hadolint", path)
        checks.that(done.returncode == 0, f"hadolint finds nothing: {done.stdout}")
    checks.bench.figure("Dockerfiles hadolint is content with", len(found))


def _manifests(checks: Checks, tools: Path) -> None:
    """kubernetes-validate over each manifest of a kind that Kubernetes itself knows, and over one that is wrong."""
    broken = checks.bench.workdir / "broken.yaml"
    broken.write_text(_BROKEN_MANIFEST)
    validate = (tools / "kubernetes-validate", "--strict")
    checks.that(_run(*validate, broken).returncode != 0, "kubernetes-validate finds fault with a wrong manifest")
    paths = sorted((checks.bench.root / "deploy/kubernetes").rglob("*.yaml"))
    known = [path for path in paths if not any(word in path.read_text() for word in _WITHOUT_SCHEMA)]
    done = _run(*validate, *known)
    passed = len(re.findall(r" passed for resource ", done.stdout + done.stderr))
    checks.that(done.returncode == 0 and passed >= len(known), f"manifests validate: {done.stdout} {done.stderr}")
    checks.bench.figure("manifests that validate", passed)


def _compose(checks: Checks) -> None:
    """Each required variable, left out alone, stops everything and is named."""
    compose = read_compose(checks.bench.root / "deploy/compose.yaml")
    required = {each.name for each in variables(compose) if each.operator == ":?"}
    given = dict.fromkeys(required, "0" * 64)
    interpolated(compose, given)
    for name in sorted(required):
        try:
            interpolated(compose, {other: value for other, value in given.items() if other != name})
        except Unset as unset:
            checks.that(name in str(unset), f"what is missing is named: {unset}")
        else:
            checks.that(False, f"compose goes on without {name}")  # noqa: FBT003
    checks.that(
        all(each.operator in {":?", ":-"} for each in variables(compose)), "no variable becomes empty by itself"
    )
    checks.bench.figure("variables that nobody may leave unset", len(required))


def _run(*command: Path | str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)


# Built and run


async def _gateway(checks: Checks, machine: Machine) -> None:
    """The gateway's image: alone on SQLite, then as compose.yaml has it, on PostgreSQL and Redis."""
    built = await machine.build(checks.bench.root / "deploy/Dockerfile")
    for name in _LEFT_OUT:
        missing = await _said(machine, built, "python", "-c", f"import {name}")
        checks.that("ModuleNotFoundError" in missing, f"{name} is not in the image")
    await machine.close(built)
    await _as_compose(checks, machine, built)  # before anything at all can be written to
    data = _folder(checks.bench, "volume")
    await machine.mount(built, "/var/lib/penstock", bound=data)
    port = free_port()
    settings = {"PENSTOCK_HOST": "127.0.0.1", "PENSTOCK_PORT": str(port)}
    served = Served(machine, built, settings, checks.bench.workdir / "alone.log")
    async with served.up(f"http://127.0.0.1:{port}/readyz"):
        key = json.loads((data / "quickstart.json").read_text())["app_key"]
        checks.that(await chat(port, key, "sandbox") == 200, "a chat with the sandbox is answered")
        checks.that(await served.well(), "HEALTHCHECK finds it well")
        _confined(checks, served, writable={"/var/lib/penstock"})
        open_turn = asyncio.create_task(answer_of(port, key, {"tokens": 20, "delay_ms": 100}))
        await asyncio.sleep(0.5)
        status = await served.stop()
        checks.that(status == 0, f"SIGTERM ends it with 0: {status}")
        checks.that((await open_turn).rstrip().endswith("data: [DONE]"), "an open stream ends whole")
        checks.that(not await served.well(), "HEALTHCHECK finds it gone")
    checks.bench.figure("gateway alone", f"/readyz 200, chat 200, uid {image_user(built)}, stopped with {status}")


async def _as_compose(checks: Checks, machine: Machine, built: Image) -> None:
    """migrate, then two gateways, with compose.yaml's commands and variables; only the addresses are this machine's."""
    services = _services(checks.bench.root)
    async with AsyncExitStack() as running:
        postgres = await running.enter_async_context(PostgresServer(checks.bench.workdir))
        redis = await running.enter_async_context(RedisServer(checks.bench.workdir))
        stores = {"PENSTOCK_DATABASE_URL": postgres.url, "PENSTOCK_REDIS_URL": redis.url}
        migrate = services["migrate"]
        said = await _said(machine, built, "penstock", *migrate["command"], given=migrate["environment"] | stores)
        checks.that("the schema is current" in said, f"migrate: {said}")
        gateways: list[tuple[int, Served]] = []
        for name in ("gateway-1", "gateway-2"):
            port = free_port()
            own = stores | {"PENSTOCK_HOST": "127.0.0.1", "PENSTOCK_PORT": str(port)}
            log = checks.bench.workdir / f"{name}.log"
            served = Served(machine, built, services[name]["environment"] | own, log, command=services[name]["command"])
            await running.enter_async_context(served.up(f"http://127.0.0.1:{port}/readyz"))
            _confined(checks, served, writable=set())
            gateways.append((port, served))
        key = await _first_key(machine, built, migrate["environment"] | stores, gateways[0][0])
        for port, _ in gateways:
            answered = await _within(partial(chat, port, key, "sandbox"), 200)  # the news takes a moment
            checks.that(answered, "each gateway answers a chat with a key that one of them made")
        await _balancer(checks, gateways, key)
        for _, served in gateways:
            status = await served.stop()
            checks.that(status == 0, f"SIGTERM ends it with 0: {status}")
    checks.bench.figure(
        "as compose has it", "migrate and 2 gateways on PostgreSQL and Redis, no writable folder at all"
    )


async def _balancer(checks: Checks, gateways: list[tuple[int, Served]], key: str) -> None:
    """The balancer's file before both: what it hides, a gateway that stops, a request that must not go twice."""
    config = checks.bench.root / "deploy/balancer/haproxy.cfg"
    try:
        async with balanced(config, [port for port, _ in gateways], _folder(checks.bench, "balancer")) as port:
            for path in ("/metrics", "/%6Detrics", "/metrics?x"):
                checks.that(await status_of("GET", f"http://127.0.0.1:{port}{path}") == 404, f"{path} is not shown")
            asking = asyncio.create_task(_many(lambda: chat_again(port, key, "sandbox"), seconds=4))
            await asyncio.sleep(1)
            checks.that(await gateways[0][1].stop() == 0, "a gateway stops under load")
            seen = await asking
            checks.that(seen.keys() == {200}, f"no SDK notices that it does: {seen}")
        async with _hanging_up() as (fake, counted):
            async with balanced(config, [fake, fake], _folder(checks.bench, "balancer-once")) as port:
                status = await chat(port, key, "sandbox")
            checks.that((status, counted) == (502, [1]), f"what was sent is not sent again: {status}, {counted}")
    except Unable as missing:
        checks.bench.figure("balancer", f"not run: {missing}")
    else:
        checks.bench.figure("balancer", f"a gateway stopped under {sum(seen.values())} chats, answered {dict(seen)}")


@asynccontextmanager
async def _hanging_up() -> AsyncIterator[tuple[int, list[int]]]:
    """A gateway that is ready, takes a request whole, and closes; and how often it did."""
    counted = [0]

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"POST"):
            counted[0] += 1
        else:
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok")
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1], counted


async def _many(ask: Callable[[], Awaitable[int]], *, seconds: float, at_once: int = 8) -> Counter[int]:
    """How often each status was answered, by so many callers one request after the other."""
    seen: Counter[int] = Counter()
    until = time.monotonic() + seconds

    async def caller() -> None:
        while time.monotonic() < until:
            seen[await ask()] += 1

    await asyncio.gather(*(caller() for _ in range(at_once)))
    return seen


async def _first_key(machine: Machine, built: Image, given: Mapping[str, str], port: int) -> str:
    """An operator's key by a command in the container; the company and an app's key by HTTP, as the guide says."""
    made = await _said(
        machine, built, "penstock", "keys", "create", "ops", "--role", "platform_admin", "--json", given=given
    )
    operator = str(json.loads(made)[0]["key"])
    await _within(lambda: status_of("GET", f"http://127.0.0.1:{port}/api/keys", token=operator), 200)
    await posted(port, "/api/apply", COMPANY, key=operator)
    return str((await posted(port, "/api/keys", json.dumps({"name": "web", "app": "web"}), key=operator))["key"])


async def _translator(checks: Checks, machine: Machine) -> None:
    """The translator's image, with its token and a folder in memory."""
    built = await machine.build(checks.bench.root / "deploy/translator.Dockerfile")
    await machine.close(built)
    await machine.mount(built, "/tmp")
    port, token = free_port(), secrets.token_hex(32)
    listens = {"0.0.0.0": "127.0.0.1", "8090": str(port)}
    command = [listens.get(word, word) for word in built.stage.command]
    given = {"PENSTOCK_TRANSLATOR_TOKEN": token}
    served = Served(machine, built, given, checks.bench.workdir / "translator.log", command=command, whole=True)
    async with served.up(f"http://127.0.0.1:{port}/healthz"):
        _confined(checks, served, writable={"/tmp"})
        asked = f"http://127.0.0.1:{port}/v1/chat/completions"
        checks.that(await status_of("POST", asked) == 401, "nobody is served without the token")
        known = await status_of("POST", asked, token=token)
        checks.that(known == 400, f"with the token, a call that names no provider is refused as such: {known}")
        status = await served.stop()
        # Uvicorn stops in peace and then hands the signal on to itself, which process 1 of a container does not notice.
        checks.that(status in {0, -signal.SIGTERM}, f"SIGTERM ends it: {status}")
    checks.bench.figure("translator", f"/healthz 200, uid {image_user(built)}, stopped with {status}")


def _services(root: Path) -> dict[str, dict[str, Any]]:
    """compose.yaml's services, with secrets made up as .env.example says."""
    compose = read_compose(root / "deploy/compose.yaml")
    given = {each.name: secrets.token_hex(32) for each in variables(compose) if each.operator == ":?"}
    found: dict[str, dict[str, Any]] = interpolated(compose, given)["services"]
    return found


def _confined(checks: Checks, served: Served, *, writable: set[str]) -> None:
    """Look, from the outside, at what the kernel lets the process do."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{served.pid}/status").read_text().splitlines())
    user = str(image_user(served.image))
    checks.that(status["Uid"].split() == [user] * 4, f"it runs as {user}: {status['Uid']}")
    checks.that({int(status[name], 16) for name in ("CapEff", "CapPrm", "CapBnd")} == {0}, "it has no capability")
    checks.that(status["NoNewPrivs"].strip() == "1", "it cannot get one")
    open_to_it = set()
    for line in Path(f"/proc/{served.pid}/mountinfo").read_text().splitlines():
        place, options = line.split()[4:6]
        if "rw" in options.split(","):
            open_to_it.add(place)
    checks.that(open_to_it == writable, f"it can write to {sorted(writable) or 'nothing'}: {sorted(open_to_it)}")


async def _said(machine: Machine, built: Image, *command: str, given: Mapping[str, str] | None = None) -> str:
    """What a command of the image printed, as its user."""
    process = await asyncio.create_subprocess_exec(
        *machine.command(built, given or {}, *command),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    return (await process.communicate())[0].decode(errors="replace")


async def _within(ask: Callable[[], Awaitable[int]], wanted: int, seconds: float = 3.0) -> bool:
    for _ in range(int(seconds / 0.1)):
        if await ask() == wanted:
            return True
        await asyncio.sleep(0.1)
    return False
