"""The answer to one request: its events, its body, its tokens. Pure: when it is sent, if at all, is not known here."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import msgspec

from tests.sim.ask import Ask
from tests.sim.invoice import Finish, Tokens

_encode = msgspec.json.encode
Said = tuple[dict[str, Any], int]


@dataclass(frozen=True, slots=True)
class Event:
    """One server-sent event. generated: text tokens the caller will have been sent once it is out, all choices."""

    data: bytes
    generated: int
    name: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the simulator says to `ask` under one number, second by second the same; each wire has its own kinds.

    tells: the components that its usage tells apart; the rest is plain input or output. billed: whether it costs
    anything at all.
    """

    tells: ClassVar[frozenset[str]] = frozenset()
    billed: ClassVar[bool] = True

    ask: Ask
    number: str
    created: int

    def say(self) -> Iterator[Said]:
        """Each event of the stream, with how many text tokens have been sent after it."""
        raise NotImplementedError

    def whole(self) -> dict[str, Any]:
        """The answer at once."""
        raise NotImplementedError

    @property
    def total(self) -> int:
        """Text tokens of the whole answer, all choices."""
        return len(self.ask.pieces) * self.ask.choices

    @property
    def finish(self) -> Finish:
        """How it ends when nothing goes wrong."""
        return Finish.LENGTH if self.ask.cut_short else Finish.STOP

    def tokens(self, generated: int, *, started: bool = True) -> Tokens:
        """What is billed, and reported, after so many text tokens; reasoning comes before the first event."""
        ask, script = self.ask, self.ask.script
        if script.usage == "zero":
            return Tokens()
        tells, times = self.tells, ask.choices if started else 0
        cached = min(script.cached, ask.prompt.text) if "cached_input" in tells else 0
        written = min(script.cache_write, ask.prompt.text - cached) if "cache_write" in tells else 0
        kept = min(script.cache_write_1h, ask.prompt.text - cached - written) if "cache_write_1h" in tells else 0
        image = ask.prompt.image if "image_input" in tells else 0
        heard = ask.prompt.audio if "audio_input" in tells else 0
        thought = ask.reasoning * times if "reasoning" in tells else 0
        spoken = ask.audio * times if "audio_output" in tells else 0
        return Tokens(
            input=ask.prompt.total - cached - written - kept - image - heard,
            cached_input=cached,
            cache_write=written,
            cache_write_1h=kept,
            audio_input=heard,
            image_input=image,
            output=generated + (ask.reasoning + ask.audio) * times - thought - spoken,
            reasoning=thought,
            audio_output=spoken,
        )

    def events(self) -> Iterator[Event]:
        """The stream, but for an end that is no event of its own."""
        padding = self._padding
        for said, generated in self.say():
            yield Event(_encode(said | padding if padding else said), generated, self.name_of(said))
            padding = {}

    def body(self) -> bytes:
        """The whole answer."""
        return _encode(self.whole() | self._padding)

    def name_of(self, said: dict[str, Any]) -> str:
        """What the event is called in front of its data."""
        return ""

    @property
    def _padding(self) -> dict[str, str]:
        """OpenAI pads its events in this field too; it is no content, so it costs no token."""
        event_bytes = self.ask.script.event_bytes
        return {"obfuscation": "x" * event_bytes} if event_bytes else {}
