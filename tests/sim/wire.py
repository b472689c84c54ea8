"""How one vendor is reached, answers and refuses. What it is asked, and what it says, are in its own file."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hmac import compare_digest
from typing import ClassVar

from tests.sim.answer import Answer, Event
from tests.sim.ask import Ask
from tests.sim.connection import Headers, Request
from tests.sim.refusal import Refusal

Read = Callable[[bytes, str], Ask]


@dataclass(frozen=True, slots=True)
class Door:
    """One path of a wire: how the body, and a model in the path, become an ask, and who answers it."""

    method: str
    read: Read
    answer: type[Answer]


class Wire:
    """What all vendors have in common; each is a stateless object of its own class.

    ping: what keeps an idle stream alive. end: what follows its last event. malformed: an event that is no JSON.
    """

    doors: ClassVar[Mapping[str, Door]]
    ping: ClassVar[bytes] = b": ping\n\n"
    end: ClassVar[bytes] = b""
    malformed: ClassVar[Event] = Event(b'{"id":"malformed","choices":[{"delta":', 0)

    def speaks(self, request: Request) -> bool:
        """Whether the request is for this vendor."""
        raise NotImplementedError

    def admit(self, request: Request, key: str) -> None:
        """Raises Refusal where the key is not the right one."""
        raise NotImplementedError

    def error(self, refusal: Refusal, number: str) -> bytes:
        """The refusal as a body."""
        raise NotImplementedError

    def place(self, request: Request) -> tuple[str, str]:
        """The door's name and the model that the path names."""
        return request.path, ""

    def request_id(self, number: str) -> str:
        """What the vendor calls the request, on its invoice too."""
        return f"req_{number}"

    def client_id(self, request: Request) -> str | None:
        """What the caller calls the request. Only OpenAI and Azure promise to keep that."""
        return request.headers.get("x-client-request-id")

    def headers(self, number: str) -> Headers:
        """Those that every answer has."""
        return (("x-request-id", self.request_id(number)),)

    def answer(self, request: Request, number: str, created: int) -> Answer:
        """What is said to the request. Raises Refusal: 404 or 405 for the path, or what its body earns."""
        name, model = self.place(request)
        door = self.doors.get(name)
        if door is None:
            raise Refusal(404, f"Invalid URL ({request.method} {request.path})", "unknown_url")
        if request.method != door.method:
            raise Refusal(405, f"Not allowed to {request.method} on {request.path}.", "method_not_supported")
        return door.answer(door.read(request.body, model), number, created)

    def frame(self, event: Event) -> bytes:
        """The event as it stands in the stream."""
        name = f"event: {event.name}\n".encode() if event.name else b""
        return name + b"data: " + event.data + b"\n\n"

    def error_event(self, refusal: Refusal, number: str) -> bytes:
        """The refusal in a stream that began well."""
        return self.frame(Event(self.error(refusal, number), 0))


def same(given: str, wanted: str) -> bool:
    """Whether both keys are the same one, whatever bytes were given."""
    return compare_digest(given.encode(errors="replace"), wanted.encode())
