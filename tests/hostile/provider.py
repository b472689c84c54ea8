"""A provider that answers at once and counts what reached it by the marks in it: `python -m tests.hostile.provider`.

It takes no key and judges nothing but that each request is one a gateway should have made.
"""

import argparse
import asyncio
import json
import re
from collections import Counter
from pathlib import Path

from tests.sim.connection import Connection, Request

_MARK = re.compile(rb"(hostile|smuggled|neighbour)-(\d{4})")
_REPLY = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "mock",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "yes"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6},
    }
).encode()


class Provider:
    """Answers every turn alike. seen: how many turns carried each mark; odd: requests no gateway should make."""

    def __init__(self) -> None:
        self.connections: set[Connection] = set()
        self.seen: Counter[str] = Counter()
        self.odd: list[str] = []

    async def serve(self, request: Request, connection: Connection) -> None:
        if request.path == "/seen":
            await connection.reply(200, json.dumps({"seen": self.seen, "odd": self.odd}).encode())
            return
        marks = {mark.decode() for mark in (b"-".join(found) for found in _MARK.findall(request.body))}
        self.seen.update(marks or {"without a mark"})
        odd = _oddness(request)
        if odd and len(self.odd) < 100:
            self.odd.append(f"{sorted(marks)}: {odd}")
        await connection.reply(200, _REPLY)


def _oddness(request: Request) -> str:
    if (request.method, request.path) != ("POST", "/v1/chat/completions"):
        return f"{request.method} {request.path}"
    try:
        members = json.loads(request.body.decode(), parse_constant=_refuse)
    except ValueError as wrong:
        return f"no JSON: {wrong}"
    return "" if isinstance(members, dict) and isinstance(members.get("messages"), list) else "no turn"


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


async def _serve(port: int, ready: Path) -> None:
    provider = Provider()
    server = await asyncio.get_running_loop().create_server(
        lambda: Connection(provider.serve, provider.connections), "127.0.0.1", port
    )
    ready.touch()
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description="Answers at once and counts.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--ready", type=Path, required=True)
    given = parser.parse_args()
    asyncio.run(_serve(given.port, given.ready))


if __name__ == "__main__":
    main()
