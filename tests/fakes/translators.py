"""The translator for real: its environment, made once from its lock, and its process."""

import io
import json
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from tests.clients.environment import clients_python

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "router" / "translator.py"
CHAT = "/v1/chat/completions"
TOKEN = "translator-token"
START_SECONDS = 60.0


def translator_python() -> Path:
    """The interpreter of the translator's environment. The first call ever installs it: half a minute to a minute."""
    return clients_python(ROOT / "requirements" / "translator.lock", ROOT / ".cache" / "translator")


@dataclass(frozen=True)
class Answered:
    """What came back, whole or as far as it came."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    cut: bool = False

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """The data of each event; [DONE] as it is."""
        blocks = [block.split(b"data: ", 1)[1] for block in self.body.split(b"\n\n") if b"data: " in block]
        return [block.decode() if block == b"[DONE]" else json.loads(block) for block in blocks]

    @property
    def names(self) -> list[str]:
        """The events' names."""
        return [line[7:].decode() for line in self.body.splitlines() if line.startswith(b"event: ")]

    @property
    def text(self) -> str:
        """What a chat said, in one choice."""
        if self.body.startswith(b"{"):
            return self.json["choices"][0]["message"]["content"]
        deltas = [choice["delta"] for event in self.events if event != "[DONE]" for choice in event["choices"]]
        return "".join(delta.get("content") or "" for delta in deltas)


def called(answer: Answered, path: str) -> tuple[str, Any]:
    """The name and the arguments of the one tool that is called."""
    if path == CHAT:
        messages = (
            [answer.json["choices"][0]["message"]]
            if answer.body.startswith(b"{")
            else [choice["delta"] for event in answer.events if event != "[DONE]" for choice in event["choices"]]
        )
        calls = [call["function"] for message in messages for call in message.get("tool_calls") or ()]
        return "".join(call.get("name") or "" for call in calls), json.loads(
            "".join(call["arguments"] for call in calls)
        )
    if answer.body.startswith(b"{"):
        (block,) = [block for block in answer.json["content"] if block["type"] == "tool_use"]
        return block["name"], block["input"]
    (started,) = [event["content_block"] for event in answer.events if event["type"] == "content_block_start"
                  and event["content_block"]["type"] == "tool_use"]  # fmt: skip
    deltas = [event["delta"] for event in answer.events if event["type"] == "content_block_delta"]
    return started["name"], json.loads("".join(delta.get("partial_json", "") for delta in deltas))


@dataclass
class RunningTranslator:
    """A translator that listens. Its calls go to `base_url`, as the provider that litellm knows by that name."""

    url: str
    pid: int
    process: subprocess.Popen[bytes]
    start_seconds: float
    token: str = TOKEN
    extra: dict[str, str] = field(default_factory=dict)

    def headers(self, provider: str, base_url: str | None, **more: str) -> dict[str, str]:
        told = {
            "Authorization": f"Bearer {self.token}",
            "X-Penstock-Provider": provider,
            "X-Penstock-Credential": "sim-key",
            **({} if base_url is None else {"X-Penstock-Base-Url": base_url}),
            **({"X-Penstock-Api-Version": "2024-10-21"} if provider == "azure" else {}),
        }
        return told | {name.replace("_", "-"): value for name, value in more.items()}

    async def ask(self, path: str, body: object, headers: Mapping[str, str]) -> Answered:
        """One call, read to its end."""
        data = body if isinstance(body, bytes | io.IOBase) else json.dumps(body).encode()
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{self.url}{path}", data=data, headers=headers) as answer,
        ):
            came, cut = bytearray(), False
            try:
                async for piece in answer.content.iter_any():
                    came += piece
            except aiohttp.ClientError:
                cut = True
            told = {name.lower(): value for name, value in answer.headers.items()}
            return Answered(answer.status, told, bytes(came), cut)

    def memory_bytes(self) -> int:
        """What it holds in memory."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) * 1024


@contextmanager
def running_translator(folder: Path, environment: Mapping[str, str] | None = None) -> Iterator[RunningTranslator]:
    """Start it, wait until it listens, and end it with the context."""
    ready, begun = folder / "translator.json", time.monotonic()
    process = subprocess.Popen(
        [str(translator_python()), "-I", str(PROGRAM), "--ready", str(ready), "--with-parent"],
        stdin=subprocess.PIPE,
        env={"PENSTOCK_TRANSLATOR_TOKEN": TOKEN, **(environment or {})},
    )
    try:
        while not ready.exists():
            assert process.poll() is None, "the translator ended"
            assert time.monotonic() - begun < START_SECONDS, "the translator did not start in time"
            time.sleep(0.02)
        port = json.loads(ready.read_text())["port"]
        yield RunningTranslator(f"http://127.0.0.1:{port}", process.pid, process, time.monotonic() - begun)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert process.stdin is not None
        process.stdin.close()
