"""One request on its way to a provider, whatever carries it: when it left, which limit ends it next, what a failure
means. It sends nothing and knows no client library.
"""

import asyncio

from router.dispatch import Dispatch
from router.errors import UpstreamBroken, UpstreamError, UpstreamTimeout, UpstreamUnreachable
from router.tls import is_refusal


class Journey:
    """One request under way. Its time to the first event begins with it.

    deadline: when the present phase ends; ends_at: when everything does. Both on the loop's clock.
    """

    __slots__ = ("_event_seconds", "_phase", "_time", "deadline", "dispatch", "ends_at", "sent")

    def __init__(self, dispatch: Dispatch) -> None:
        provider = dispatch.provider
        self.dispatch = dispatch
        self.sent = False
        self._time = asyncio.get_running_loop().time
        now = self._time()
        self._event_seconds = provider.event_seconds
        self.ends_at = now + provider.total_seconds
        self.deadline, self._phase = min(now + provider.answer_seconds, self.ends_at), "answer"

    @property
    def is_over(self) -> bool:
        """Whether the time for everything has passed."""
        return self._time() >= self.ends_at

    def depart(self) -> None:
        """The first byte leaves."""
        if not self.sent:
            self.sent = True
            self.dispatch.call.sent()

    def progress(self) -> None:
        """An event was taken: the next one has its own time, which begins when somebody waits for it."""
        self.deadline, self._phase = min(self._time() + self._event_seconds, self.ends_at), "event"

    def in_time(self) -> asyncio.Timeout:
        """The limit that ends the present phase; never held across a yield, where it would hit the wrong task."""
        return asyncio.timeout_at(self.deadline)

    def late(self, phase: str | None = None) -> UpstreamTimeout:
        """What it means that time ran out: in this phase, or else in the one that `deadline` bounds."""
        bounded = self._phase if self.deadline < self.ends_at else "total"
        return UpstreamTimeout(self.dispatch.target.name, phase or bounded, sent=self.sent)

    def broken(self, cause: BaseException | None = None) -> UpstreamError:
        """What it means that the connection failed or carried nonsense. cause: what it died of, if that is known."""
        target = self.dispatch.target.name
        if self.sent and not is_refusal(cause):
            return UpstreamBroken(f"The answer of the target `{target}` was cut or malformed.")
        return UpstreamUnreachable(f"The target `{target}` cannot be reached.")
