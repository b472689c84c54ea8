"""Tells every process that something was changed, at once and without a promise: who misses it polls soon after.

What was changed stands in the store; a message carries the version only, and nobody trusts it.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import aclosing

from governance.redis import LOST, PubSub, connect

_CHANNEL = "penstock:changes"
_PUBLISH_SECONDS = 0.2
_WAIT_SECONDS_MIN = 0.1
_WAIT_SECONDS_MAX = 5.0

_log = logging.getLogger("penstock.bulletin")


class Bulletin:
    """Publishes changes on Redis and hears those of others. Losing Redis costs the time until the next poll.

    quiet_seconds: after so long without a word Redis is asked for one, and after as long again it is lost.
    """

    def __init__(self, url: str, *, quiet_seconds: float = 5.0) -> None:
        self._url = url
        self._quiet_seconds = quiet_seconds
        self._task: asyncio.Task[None] | None = None

    async def publish(self, version: int) -> None:
        """Tell everybody that the store is at `version`. Never fails; waits 200 ms at most."""
        # A connection of its own: changes are rare, and commands that make one end right after.
        try:
            async with asyncio.timeout(_PUBLISH_SECONDS), aclosing(connect(self._url)) as redis:
                await redis.publish(_CHANNEL, version)
        except LOST as lost:
            _log.warning("changes: Redis was not told (%s); others find out by polling", type(lost).__name__)

    def start(self, changed: Callable[[], Awaitable[None]]) -> None:
        """Call `changed` at every message, and whenever some may have been missed. It must not fail."""
        self._task = asyncio.create_task(self._follow(changed), name="bulletin")

    async def close(self) -> None:
        """Stop listening."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _follow(self, changed: Callable[[], Awaitable[None]]) -> None:
        wait = _WAIT_SECONDS_MIN
        while True:
            try:
                async with aclosing(connect(self._url)) as redis, redis.pubsub() as subscription:
                    await subscription.subscribe(_CHANNEL)
                    wait = _WAIT_SECONDS_MIN
                    await changed()
                    await self._listen(subscription, changed)
            except LOST:
                await asyncio.sleep(wait)
                wait = min(2 * wait, _WAIT_SECONDS_MAX)

    async def _listen(self, subscription: PubSub, changed: Callable[[], Awaitable[None]]) -> None:
        """Until the connection is lost, which a silent one shows by not answering."""
        asked = False
        while True:
            message = await subscription.get_message(timeout=self._quiet_seconds)
            if message is not None and message["type"] == "message":
                await changed()
            elif message is None and asked:
                raise TimeoutError
            elif message is None:
                await subscription.ping()
            asked = message is None
