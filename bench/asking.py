"""One request at a time, to see that a gateway answers and answers what it should. Nothing is measured here."""

import asyncio
import json
import re
import time
from contextlib import suppress
from dataclasses import dataclass

from bench.http1 import Reader
from bench.load import request_of

HOST = "127.0.0.1"
_ANSWER_SECONDS = 15.0
_STAMP = re.compile(rb"@T\d{20} ")
_SENTENCE = "The enterprise gateway routes each request to the provider that meets policy, budget and latency goals. "
_PROMPT_CHARACTERS = 900


@dataclass(frozen=True, slots=True)
class Address:
    """Where and how a gateway is asked: its port and path, headers as `Name: value`, its name for the model."""

    port: int
    path: str = "/v1/chat/completions"
    headers: tuple[str, ...] = ()
    model: str = "mock-model"

    def body(self, *, stream: bool) -> bytes:
        """The request of every measurement, about 1 KB."""
        body: dict[str, object] = {
            "model": self.model,
            "messages": [
                {"role": "system", "content": "You are a helpful assistant."},
                {"role": "user", "content": (_SENTENCE * 10)[:_PROMPT_CHARACTERS]},
            ],
            "temperature": 0.2,
            "max_tokens": 256,
        }
        if stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        return json.dumps(body).encode()


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back, read to its end."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def chunks(self) -> int:
        """Stamped events in it."""
        return len(_STAMP.findall(self.body))

    @property
    def ended(self) -> bool:
        """Whether a stream said that it is over."""
        return self.body.rstrip().endswith(b"data: [DONE]")


async def chat(address: Address, *, stream: bool = False) -> Answer:
    """One chat request. Raises OSError where nobody listens or the connection is cut, TimeoutError."""
    body = address.body(stream=stream)
    return await _send(address.port, request_of(address.port, address.path, body, address.headers))


async def get(port: int, path: str, *headers: str) -> Answer:
    """One GET. Raises as `chat`."""
    lines = [f"GET {path} HTTP/1.1", f"Host: {HOST}:{port}", *headers, "", ""]
    return await _send(port, "\r\n".join(lines).encode())


async def set_mock(port: int, **manner: int) -> None:
    """Tell the mock provider how to answer from now on."""
    query = "&".join(f"{name}={value}" for name, value in manner.items())
    await get(port, f"/set?{query}")


async def answers(port: int, *, seconds: float = 10) -> None:
    """Wait until somebody answers a GET on the port. Raises TimeoutError."""
    async with asyncio.timeout(seconds):
        while True:
            with suppress(OSError):
                await get(port, "/")
                return
            await asyncio.sleep(0.01)


async def first_answer(address: Address, *, seconds: float) -> None:
    """Wait until a chat request is answered with 200. Raises TimeoutError with what was answered last."""
    last, until = "nothing", time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            answer = await chat(address)
        except (OSError, TimeoutError) as error:
            last = type(error).__name__
        else:
            if answer.status == 200:  # noqa: PLR2004 - HTTP's OK
                return
            last = f"{answer.status} {answer.body[:200].decode(errors='replace')}"
        await asyncio.sleep(0.01)
    raise TimeoutError(f"no answer within {seconds:g} s; last: {last}")


async def _send(port: int, request: bytes) -> Answer:
    async with asyncio.timeout(_ANSWER_SECONDS):
        reading, writing = await asyncio.open_connection(HOST, port)
        try:
            writing.write(request)
            reader, body = Reader(), b""
            while not reader.complete:
                data = await reading.read(65536)
                if not data:
                    raise ConnectionResetError("cut before the answer's end")
                body += reader.feed(data)
        finally:
            writing.close()
    lines = reader.head.decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in lines[1:] if line)
    return Answer(int(lines[0][9:12]), {name.lower(): value.strip() for name, _, value in pairs}, body)
