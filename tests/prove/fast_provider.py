"""`python -m tests.prove.fast_provider`: a provider that answers at once, each answer under an id of its own.

`/v1` answers as bench.mock does; below `/tool` every answer is a tool call whose arguments have 4 MiB, in one piece or
as a stream of as many events as are taken.
"""

import argparse
import asyncio
import gc
import json
import os

import uvloop

from bench.http1 import Malformed, Wire
from bench.mock import PROMPT_TOKENS, whole_answer

TOOL_BYTES = 4 * 1024 * 1024
_EVENT_BYTES = 16 * 1024
_ID = b"req_mock"
_USAGE = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": 48, "total_tokens": PROMPT_TOKENS + 48}
_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nx-request-id: req_mock\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)


def tool_call(size: int) -> dict[str, object]:
    """A call whose arguments are so many bytes of text."""
    arguments = json.dumps({"rows": "the quick brown fox " * (size // 20)})
    return {"id": "call_1", "type": "function", "function": {"name": "write", "arguments": arguments}}


def _whole_tool_call() -> bytes:
    message = {"role": "assistant", "content": None, "tool_calls": [tool_call(TOOL_BYTES)]}
    body = json.dumps(_answer([{"index": 0, "message": message, "finish_reason": "tool_calls"}], _USAGE)).encode()
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nx-request-id: req_mock\r\nContent-Length: %d\r\n\r\n"
    return head % len(body) + body


def _streamed_tool_call() -> bytes:
    said = "the quick brown fox " * (_EVENT_BYTES // 20)
    delta = {"tool_calls": [{"index": 0, "function": {"arguments": said}}]}
    events = [_answer([{"index": 0, "delta": {"role": "assistant", "content": None}, "finish_reason": None}])]
    events += [_answer([{"index": 0, "delta": delta, "finish_reason": None}])] * (TOOL_BYTES // _EVENT_BYTES)
    events += [_answer([{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]), _answer([], _USAGE)]
    lines = [b"data: " + json.dumps(event).encode() + b"\n\n" for event in events]
    chunks = (b"%x\r\n%b\r\n" % (len(line), line) for line in [*lines, b"data: [DONE]\n\n"])
    return _STREAM_HEAD + b"".join(chunks) + b"0\r\n\r\n"


def _answer(choices: list[dict[str, object]], usage: dict[str, int] | None = None) -> dict[str, object]:
    return {"id": "chatcmpl-1", "object": "chat.completion", "created": 1790000000, "model": "mock-model",
            "choices": choices, "usage": usage}  # fmt: skip


class Answers:
    """The bytes of every answer, made once."""

    def __init__(self) -> None:
        self.small = whole_answer(200)
        self.tool = _whole_tool_call()
        self.tool_stream = _streamed_tool_call()

    def to(self, head: bytes, last: bytes) -> bytes:
        """The answer to a request; the end of its body says whether it is to be a stream."""
        if b" /tool/" not in head[:64]:
            return self.small.replace(_ID, b"req_" + os.urandom(12).hex().encode(), 1)
        return self.tool_stream if b'"stream":true' in last else self.tool


class Connection(Wire):
    """One caller: a request, its answer, the next request."""

    def __init__(self, answers: Answers) -> None:
        super().__init__()
        self._answers = answers
        self._last = b""

    def data_received(self, data: bytes) -> None:
        """Answer what is complete."""
        assert self.transport is not None
        try:
            self._last = (self._last + self.reader.feed(data))[-400:]
        except Malformed:
            self.transport.abort()
            return
        if self.reader.complete:
            last, self._last = self._last, b""
            self.transport.write(self._answers.to(self.reader.head, last))


async def serve(port: int) -> None:
    """Answer on 127.0.0.1 until cancelled."""
    answers = Answers()
    server = await asyncio.get_running_loop().create_server(lambda: Connection(answers), "127.0.0.1", port, backlog=512)
    async with server:
        await server.serve_forever()


def main() -> None:
    """Serve until a signal ends it."""
    parser = argparse.ArgumentParser(prog="python -m tests.prove.fast_provider")
    parser.add_argument("--port", type=int, required=True)
    port = parser.parse_args().port
    gc.disable()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(port))


if __name__ == "__main__":
    main()
