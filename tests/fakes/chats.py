"""A whole platform with a scripted upstream: what is asked of it, what it says, and one raw ASGI caller."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from gateway.chat import Chat
from gateway.dialect import read_chat
from gateway.settings import Settings
from gateway.wiring import Platform, build, first_start
from governance import NewKey
from kernel import Caller, Chunk, Component, ModelReply, ModelRequest, PlatformError, Target, Usage
from router import UpstreamCall, UpstreamUnreachable

USAGE = Usage({Component.INPUT: 5, Component.OUTPUT: 7})
ROLE = Chunk(b'{"role":1}', content=False)
WORD = Chunk(b'{"word":1}')
TAIL = Chunk(b'{"usage":1}', usage=USAGE, content=False, usage_only=True, provider_request_id="up-1")

COMPANY = """
departments: [{name: d}]
use_cases: [{name: u, purpose: p}]
apps: [{name: a, department: d, use_cases: [u]}, {name: poor, department: d, use_cases: [u]}]
providers: [{name: s, dialect: sandbox}]
models: [{name: one, provider: s}, {name: two, provider: s}, {name: shut, provider: s},
         {name: secret, provider: s, hidden: true}]
aliases: [{name: both, targets: [one, two]}, {name: mixed, targets: [shut, secret, two]}]
prices:
  - {name: one, model: one, usd_per_million_tokens: {input: "1", output: "2"}}
  - {name: two, model: two, usd_per_million_tokens: {input: "3", output: "4"}}
policies: [{name: p, models: [one, two], departments: [d], use_cases: ["*"], data_class: internal}]
budgets: [{name: none, scope: app, of: poor, period: day, limit_usd: "0"}]
"""


class Scripted:
    """Upstreams that do what they are told: per target a list of chunks, ended or replaced by an error."""

    def __init__(self, **scripts: Sequence[Chunk | PlatformError | str]) -> None:
        self.scripts = scripts
        self.asked: list[str] = []
        self.limits: list[int | None] = []
        self.hanging = False

    async def complete(self, target: Target, request: ModelRequest, call: UpstreamCall) -> ModelReply:
        chunks = [chunk async for chunk in self.stream(target, request, call)]
        return ModelReply(b"{}", chunks[-1].usage if chunks else None, "up-1")

    async def stream(self, target: Target, request: ModelRequest, call: UpstreamCall) -> AsyncGenerator[Chunk, None]:
        self.asked.append(target.name)
        self.limits.append(request.output_tokens_max)
        for step in self.scripts[target.name]:
            if isinstance(step, UpstreamUnreachable):
                raise step
            call.sent()
            if isinstance(step, PlatformError):
                raise step
            if step == "hang":
                self.hanging = True
                await asyncio.Event().wait()
            assert isinstance(step, Chunk)
            yield step


@asynccontextmanager
async def company(folder: Path) -> AsyncIterator[Platform]:
    """The company above on SQLite in the folder."""
    made = build(Settings(data_dir=folder, demo=False))
    await first_start(made)
    async with made:
        await made.register.apply(made.register.parse(COMPANY), by="test")
        await made.feed.catch_up()
        yield made


async def caller_of(platform: Platform, app: str = "a") -> Caller:
    made = await platform.keys.create(NewKey(name="k", app=app), by="test")
    return platform.keys.identify(made.key)


def chat_with(platform: Platform, upstreams: Scripted) -> Chat:
    own = platform.edge.chat
    return Chat(
        router=own.router,
        policy=own.policy,
        guard=own.guard,
        limits=own.limits,
        ledger=own.ledger,
        upstreams=upstreams,
    )


def asking(model: str, **members: object) -> ModelRequest:
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], **members}
    return read_chat(msgspec.json.encode(body), {})


@dataclass
class RawCaller:
    """One exchange with the edge, without a socket. reads_until: so many writes are taken before it stops reading."""

    platform: Platform
    key: str
    sends: bytes
    reads_until: int | None = None
    path: str = "/v1/chat/completions"
    method: str = "POST"
    query: bytes = b""
    body_comes: asyncio.Event = field(default_factory=asyncio.Event)
    stuck: asyncio.Event = field(default_factory=asyncio.Event)
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    told: list[bytes] = field(default_factory=list)
    on_lost: Callable[[], None] | None = None
    status: int | None = None
    head: bytes = b""
    length: int | None = None
    is_whole: bool = False
    received: int = 0
    rests_until: "asyncio.Future[Any] | None" = None

    def start(self) -> "RawCaller":
        """Send the head; the body comes when it is told to."""
        self.headers = {"authorization": f"Bearer {self.key}"}
        self.task = asyncio.create_task(self.platform.edge(self))
        return self

    @property
    def is_lost(self) -> bool:
        """Whether the connection is gone."""
        return self.gone.is_set()

    @property
    def is_full(self) -> bool:
        """Whether nobody reads any more."""
        return self.reads_until is not None and len(self.told) >= self.reads_until

    def abort(self) -> None:
        """Leave, or be dropped."""
        self.gone.set()
        if self.on_lost is not None:
            self.on_lost()

    def take(self) -> bytes:
        """The body."""
        return self.sends

    async def more(self) -> None:
        """It comes when it is told to."""
        await self.body_comes.wait()
        self.is_whole, self.received = True, len(self.sends)

    def watch(self, on_lost: Callable[[], None] | None) -> None:
        """Remember whom to tell."""
        self.on_lost = on_lost

    def begin(self, status: int, head: bytes, length: int | None) -> None:
        """The answer begins."""
        self.status, self.head, self.length = status, head, length

    def write(self, data: bytes, *, more: bool) -> None:
        """A part of the answer."""
        del more
        self.told.append(data)
        if self.is_full:
            self.stuck.set()

    def rest_until(self, done: asyncio.Future[Any], seconds: float) -> None:
        """What the next request on this connection would wait for."""
        self.rests_until = done

    async def drained(self) -> None:
        """Nobody reads."""
        await self.gone.wait()

    async def ended(self) -> "RawCaller":
        """The exchange, over; its body comes if it has not."""
        self.body_comes.set()
        await self.task
        return self

    @property
    def answer(self) -> bytes:
        """Everything of the body until now."""
        return b"".join(self.told)
