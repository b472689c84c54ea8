"""What operators see of the process itself."""

import asyncio
import time
from contextlib import suppress

from prometheus_client import CollectorRegistry

from gateway.metrics import Metrics


def _late(registry: CollectorRegistry, than_seconds: str) -> float:
    """How many looks at the loop were later than that."""
    every = registry.get_sample_value("penstock_loop_lag_seconds_count") or 0
    return every - (registry.get_sample_value("penstock_loop_lag_seconds_bucket", {"le": than_seconds}) or 0)


async def test_a_loop_that_is_held_is_seen_as_late() -> None:
    registry = CollectorRegistry()
    watching = asyncio.create_task(Metrics(registry).watch_loop())
    await asyncio.sleep(0)
    time.sleep(0.3)  # noqa: ASYNC251 - this is what nobody may do
    await asyncio.sleep(0.01)
    watching.cancel()
    with suppress(asyncio.CancelledError):
        await watching
    assert _late(registry, "0.2") == 1
