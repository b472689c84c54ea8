"""A company for proofs: one department, one app and the simulator as its provider, declared through the API."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

from tests.prove.server import Gateway, Simulator

COMPANY = """
departments: [{{name: proof}}]
use_cases: [{{name: proving, purpose: Proving what is promised}}]
apps: [{{name: proof-app, department: proof, use_cases: [proving]}}]
providers:
  - {{name: sim, dialect: openai, base_url: "{base_url}", credential: sim, event_seconds: 5, answer_seconds: 10}}
models:
  - {{name: sim-small, provider: sim, output_tokens_max: 256, context_tokens: 8192}}
  - {{name: sim-large, provider: sim, output_tokens_max: 256, context_tokens: 8192}}
prices:
  - {{name: sim-small, model: sim-small, usd_per_million_tokens: {{input: "1", cached_input: "0.5", output: "4"}}}}
  - {{name: sim-large, model: sim-large, usd_per_million_tokens: {{input: "10", cached_input: "5", output: "40"}}}}
policies:
  - name: proof-sim
    models: [sim-small, sim-large]
    departments: [proof]
    use_cases: [proving]
    data_class: internal
"""


async def found_company(gateway: Gateway, simulator: Simulator, more: str = "", *, base_url: str | None = None) -> str:
    """Declare the company, and what is added, and return a key of its app. base_url: a way round to the simulator."""
    await gateway.put_credential("sim", simulator.key)
    await gateway.apply(COMPANY.format(base_url=base_url or simulator.base_url) + more)
    return await gateway.create_key(name="proof-key", app="proof-app")


def scripted(**script: object) -> list[dict[str, str]]:
    """Messages that tell the simulator what to do."""
    return [{"role": "user", "content": f"sim: {json.dumps(script)}"}]


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back: status, headers, the JSON body or the stream's events, and whether it ended as it should."""

    status: int
    headers: dict[str, str]
    body: dict[str, Any]
    events: tuple[str, ...] = ()

    @property
    def code(self) -> str | None:
        """The error's code, if it is an error."""
        error = self.body.get("error")
        return error.get("code") if isinstance(error, dict) else None

    @property
    def ended_loudly(self) -> bool:
        """Whether a stream ended with [DONE] or an error event; a whole answer always did."""
        return not self.events or self.events[-1] == "[DONE]" or '"error"' in self.events[-1]


async def chat(
    gateway: Gateway,
    key: str,
    messages: list[dict[str, str]],
    *,
    headers: Mapping[str, str] | None = None,
    **members: object,
) -> Answer:
    """One chat request, read to its end."""
    body = {"model": "sim-small", "messages": messages, **members}
    headers = {**(headers or {}), "Authorization": f"Bearer {key}"}
    async with gateway.session.post(f"{gateway.url}/v1/chat/completions", json=body, headers=headers) as answer:
        raw = await answer.read()
        told = {name.lower(): value for name, value in answer.headers.items()}
        if answer.content_type != "text/event-stream":
            return Answer(answer.status, told, json.loads(raw))
        events = tuple(line[6:] for line in raw.decode().splitlines() if line.startswith("data: "))
        return Answer(answer.status, told, {}, events or ("",))


async def chat_and_leave(
    gateway: Gateway, key: str, messages: list[dict[str, str]], *, after_bytes: int, **members: object
) -> None:
    """One chat request whose caller hangs up after so many bytes of the answer."""
    body = {"model": "sim-small", "messages": messages, **members}
    request = gateway.session.post(
        f"{gateway.url}/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {key}"}
    )
    try:
        async with request as answer:
            taken = 0
            async for part in answer.content.iter_any():
                taken += len(part)
                if taken >= after_bytes:
                    answer.close()
                    return
    except aiohttp.ClientError:
        return
