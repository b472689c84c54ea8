"""A command of an image as a process of this machine: started, asked, stopped."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from tests.deploy.machine import Image, Machine
from tests.prove.server import Process

STOP_SECONDS = 45.0  # compose.yaml's stop_grace_period

COMPANY = """\
departments: [{name: sales}]
use_cases: [{name: offers, purpose: Draft offers, owner: sales}]
apps: [{name: web, department: sales, data_class: internal, use_cases: [offers]}]
providers: [{name: sandbox, dialect: sandbox}]
models: [{name: sandbox, provider: sandbox}]
prices: [{name: sandbox, model: sandbox, usd_per_million_tokens: {input: "0", output: "0"}}]
policies: [{name: all, models: [sandbox], departments: [sales], use_cases: ["*"], data_class: internal}]
"""


class Served:
    """One process of an image, as the image's user over its closed tree.

    command: what follows the entry point, instead of CMD; all of it where `whole`.
    """

    def __init__(
        self,
        machine: Machine,
        image: Image,
        environment: Mapping[str, str],
        log: Path,
        *,
        command: Sequence[str] | None = None,
        whole: bool = False,
    ) -> None:
        self.image = image
        self._machine = machine
        self._environment = environment
        entry = image.stage.last("ENTRYPOINT")
        words = image.stage.command if command is None else [*(entry.argv if entry and not whole else []), *command]
        self._process = Process(machine.command(image, environment, *words), log, root=Path("/"), environment={})

    @property
    def pid(self) -> int:
        """The process's id; what starts it is replaced by it."""
        return self._process.pid

    @asynccontextmanager
    async def up(self, url: str) -> AsyncIterator[None]:
        """Start it, wait until the URL answers 200, and end it when the context does. Raises StartFailed."""

        async def serves() -> bool:
            return await status_of("GET", url) == 200

        try:
            await self._process.start_until(serves, "it")
            yield
        finally:
            if self._process.alive:
                await self._process.stop(signal.SIGKILL)

    async def stop(self) -> int:
        """What a container engine does; the exit status."""
        return await self._process.stop(signal.SIGTERM, seconds=STOP_SECONDS)

    async def well(self) -> bool:
        """Whether the image's HEALTHCHECK finds it well."""
        asked = self._machine.command(self.image, self._environment, *self.image.stage.healthcheck)
        check = Process(asked, Path("/dev/null"), root=Path("/"), environment={})
        await check.start()
        return await check.stop(signal.SIGCONT) == 0  # a signal that changes nothing: it ends by itself


async def status_of(method: str, url: str, *, token: str | None = None) -> int:
    """The status of one request with an empty JSON object; 0 where nobody answers."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    body = {"json": {}} if method == "POST" else {}
    try:
        async with aiohttp.ClientSession() as session, session.request(method, url, headers=headers, **body) as answer:
            return answer.status
    except aiohttp.ClientError:
        return 0


async def posted(port: int, path: str, text: str, *, key: str) -> dict[str, Any]:
    """The JSON answered to a text, with a key. Raises ClientResponseError."""
    url, headers = f"http://127.0.0.1:{port}{path}", {"Authorization": f"Bearer {key}"}
    async with aiohttp.ClientSession() as session, session.post(url, data=text.encode(), headers=headers) as answer:
        answer.raise_for_status()
        read: dict[str, Any] = json.loads(await answer.text() or "{}")
        return read


async def chat(port: int, key: str, model: str) -> int:
    """The status of one chat."""
    body = {"model": model, "messages": [{"role": "user", "content": "Hello"}]}
    url, headers = f"http://127.0.0.1:{port}/v1/chat/completions", {"Authorization": f"Bearer {key}"}
    async with aiohttp.ClientSession() as session, session.post(url, json=body, headers=headers) as answer:
        await answer.read()
        return answer.status


async def chat_again(port: int, key: str, model: str, *, tries: int = 3) -> int:
    """As `chat`, but as the official SDKs do it: tried again where the answer says that it should be."""
    body = {"model": model, "messages": [{"role": "user", "content": "Hello"}]}
    url, headers = f"http://127.0.0.1:{port}/v1/chat/completions", {"Authorization": f"Bearer {key}"}
    async with aiohttp.ClientSession() as session:
        for left in reversed(range(tries)):
            async with session.post(url, json=body, headers=headers) as answer:
                await answer.read()
                if left == 0 or answer.headers.get("x-should-retry") != "true":
                    return answer.status
            await asyncio.sleep(0.5)
    raise AssertionError("the last try returns")


async def answer_of(port: int, key: str, directive: dict[str, int]) -> str:
    """Everything a stream of the sandbox says that is told how to behave."""
    told = f"sandbox: {json.dumps(directive)}"
    body = {"model": "sandbox", "stream": True, "messages": [{"role": "user", "content": told}]}
    url, headers = f"http://127.0.0.1:{port}/v1/chat/completions", {"Authorization": f"Bearer {key}"}
    async with aiohttp.ClientSession() as session, session.post(url, json=body, headers=headers) as answer:
        return await answer.text()
