"""`python -m bench.mock`: a provider that answers at once, so that a gateway in front of it is all there is to measure.

It speaks OpenAI's wire as far as the bench needs it: whole answers of about 540 bytes, streams of a role, content
chunks that each hold the moment they were sent, an end, the usage where it was asked for, and [DONE].
It checks nothing. `GET /set?delay_ms=5&chunks=64` changes what it does until the next such request.
"""

import argparse
import asyncio
import gc
import json
import time
from dataclasses import dataclass, replace
from urllib.parse import parse_qsl

import uvloop

from bench.http1 import Malformed, Wire

STAMP = b"@T%020d "
PROMPT_TOKENS = 217
_WORDS = "the quick brown fox jumps over a lazy dog "
_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nCache-Control: no-cache\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)
_LAST_CHUNK = b"0\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Manner:
    """How it answers: chunks of a stream, the time between two of them, characters of a whole answer."""

    chunks: int = 64
    delay_ms: int = 0
    size: int = 200

    def changed(self, query: str) -> "Manner":
        """These settings with some replaced, from `name=number&...`."""
        return replace(self, **{name: int(value) for name, value in parse_qsl(query)})


def whole_answer(size: int) -> bytes:
    """A complete answer, headers included, whose content has `size` characters."""
    usage = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": 48, "total_tokens": PROMPT_TOKENS + 48}
    message = {"role": "assistant", "content": (_WORDS * (size // len(_WORDS) + 1))[:size], "refusal": None}
    body = {
        "id": "chatcmpl-mock0000000000000000000001",
        "object": "chat.completion",
        "created": 1790000000,
        "model": "mock-model",
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        "usage": usage,
        "system_fingerprint": "fp_mock",
    }
    return _whole(json.dumps(body, separators=(",", ":")).encode())


def _whole(body: bytes) -> bytes:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nx-request-id: req_mock\r\nContent-Length: %d\r\n\r\n"
    return head % len(body) + body


def _event(choices: list[dict[str, object]], usage: dict[str, int] | None = None) -> bytes:
    event = {
        "id": "chatcmpl-mock1",
        "object": "chat.completion.chunk",
        "created": 1790000000,
        "model": "mock-model",
        "choices": choices,
        "usage": usage,
    }
    return b"data: " + json.dumps(event, separators=(",", ":")).encode() + b"\n\n"


def _choice(delta: dict[str, object], finish_reason: str | None = None) -> list[dict[str, object]]:
    return [{"index": 0, "delta": delta, "finish_reason": finish_reason}]


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


class Script:
    """The bytes of every answer, made once for a manner."""

    def __init__(self, manner: Manner) -> None:
        tokens = {"completion_tokens": manner.chunks, "total_tokens": PROMPT_TOKENS + manner.chunks}
        self.manner = manner
        self.whole = whole_answer(manner.size)
        self.role = _STREAM_HEAD + _chunk(_event(_choice({"role": "assistant", "content": ""})))
        self.content = _chunk(_event(_choice({"content": (STAMP % 0).decode()}))).replace(STAMP % 0, STAMP)
        self.end = _chunk(_event(_choice({}, "stop")))
        self.usage = _chunk(_event([], {"prompt_tokens": PROMPT_TOKENS, **tokens}))
        self.done = _chunk(b"data: [DONE]\n\n") + _LAST_CHUNK


class Provider:
    """What all connections share: the script that is played, and how many requests came."""

    def __init__(self) -> None:
        self.script = Script(Manner())
        self.requests = 0

    def told(self, target: str) -> bytes:
        """The answer to a GET: new settings where it brings some, and what was counted in any case."""
        path, _, query = target.partition("?")
        if path == "/set":
            self.script = Script(self.script.manner.changed(query))
        return _whole(json.dumps({"requests": self.requests}).encode())


class Connection(Wire):
    """One caller: a request, its answer, the next request."""

    def __init__(self, provider: Provider) -> None:
        super().__init__()
        self._provider = provider
        self._body = b""
        self._timer: asyncio.TimerHandle | None = None

    def connection_lost(self, exc: Exception | None) -> None:
        """A stream nobody reads is not written."""
        super().connection_lost(exc)
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        """Answer what is complete; the first byte of an answer leaves in the same turn of the loop."""
        assert self.transport is not None
        try:
            self._body += self.reader.feed(data)
        except Malformed:
            self.transport.abort()
            return
        if not self.reader.complete:
            return
        body, self._body = self._body, b""
        if self.reader.head.startswith(b"GET "):
            self.transport.write(self._provider.told(self.reader.head.split(b" ", 2)[1].decode()))
            return
        self._provider.requests += 1
        script = self._provider.script
        if b'"stream":true' in body or b'"stream": true' in body:
            self.transport.write(script.role)
            self._wait(script, script.manner.chunks, usage=b"include_usage" in body)
        else:
            self.transport.write(script.whole)

    def _wait(self, script: Script, left: int, *, usage: bool) -> None:
        delay_ms = script.manner.delay_ms
        if delay_ms:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(delay_ms / 1000, self._go_on, script, left, usage)
            return
        for rest in range(left, -1, -1):
            self._write(script, rest, usage=usage)

    def _go_on(self, script: Script, left: int, usage: bool) -> None:  # noqa: FBT001 - the loop hands over by position
        self._write(script, left, usage=usage)
        if left:
            self._wait(script, left - 1, usage=usage)

    def _write(self, script: Script, left: int, *, usage: bool) -> None:
        if self.transport is None:
            return
        if left:
            self.transport.write(script.content % time.monotonic_ns())
        else:
            self.transport.write(script.end + (script.usage if usage else b"") + script.done)


async def serve(port: int) -> None:
    """Answer on 127.0.0.1 until cancelled."""
    provider = Provider()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(provider), "127.0.0.1", port, backlog=4096)
    async with server:
        await server.serve_forever()


def main() -> None:
    """Serve until a signal ends it."""
    parser = argparse.ArgumentParser(prog="python -m bench.mock", description="A provider that answers at once.")
    parser.add_argument("--port", type=int, required=True)
    port = parser.parse_args().port
    gc.disable()  # nothing here makes cycles
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(port))


if __name__ == "__main__":
    main()
