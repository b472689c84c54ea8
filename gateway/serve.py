"""`penstock serve`: one process, one event loop, from the first migration to the last settled turn."""

import asyncio
import ctypes
import gc
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import uvicorn
import uvloop

from gateway.demo import read_quickstart, snippet
from gateway.logs import Lines, json_logs
from gateway.ownership import sole_owner
from gateway.protocol import HttpProtocol, tend
from gateway.settings import Settings
from gateway.wiring import build, first_start

_M_MMAP_THRESHOLD = -3
_LARGE_BLOCK_BYTES = 1024 * 1024


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT; then take nothing new, let open turns end, and leave the books closed."""
    with ExitStack() as held:
        if settings.embedded:
            held.enter_context(sole_owner(settings.data_dir))
        lines = held.enter_context(json_logs())
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(settings, lines))


async def _serve(settings: Settings, lines: Lines) -> None:
    platform = build(settings, log=lines.line)
    quickstart = await first_start(platform)
    async with platform:
        config = uvicorn.Config(
            platform.edge,
            host=settings.host,
            port=settings.port,
            http=partial(HttpProtocol, admission=platform.admission),  # type: ignore[arg-type]  # makes one all the same
            interface="asgi3",  # it is none; this keeps uvicorn from wrapping it
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,  # nothing here looks at the caller's address
            server_header=False,
            date_header=False,
            timeout_keep_alive=settings.idle_connection_seconds,
            timeout_graceful_shutdown=int(settings.drain_seconds),
            limit_concurrency=settings.connections_max,
        )
        _tune_garbage_collection()
        _return_large_blocks()
        server = _Server(config)
        platform.edge.stopping = lambda: server.should_exit
        beside = (
            asyncio.create_task(_announce(server, settings, quickstart)),
            asyncio.create_task(
                tend(server.server_state.connections, slow_reader_seconds=settings.slow_reader_seconds)
            ),
            asyncio.create_task(platform.edge.metrics.watch_loop()),
            asyncio.create_task(platform.budgets.watch()),
            asyncio.create_task(platform.admission.tell(platform.ledger.record)),
        )
        await server.serve()
        for task in beside:
            task.cancel()


def _tune_garbage_collection() -> None:
    """Look at what was made since the start only, and less often: it took a tenth of every turn.

    What is in memory by now, the application and everything declared, stays; turns leave few cycles behind.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def _return_large_blocks() -> None:
    """Have the C library give back the memory of a long body at once.

    Glibc would otherwise raise the size from which on blocks are mapped by themselves to 32 MiB as soon as it sees such
    a one freed, and keep twice that for later.
    """
    if (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK_BYTES)


class _Server(uvicorn.Server):
    """Stops on SIGTERM and SIGINT without raising them again afterwards: the books are closed after the last turn."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Ask for a stop on the first signal; uvicorn takes a second SIGINT as a wish not to wait."""
        loop, signals = asyncio.get_running_loop(), (signal.SIGINT, signal.SIGTERM)
        for number in signals:
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in signals:
                loop.remove_signal_handler(number)


async def _announce(server: uvicorn.Server, settings: Settings, quickstart: Path | None) -> None:
    """Once the port answers, say how to use it."""
    while not server.started:  # noqa: ASYNC110 - uvicorn offers no event to wait for
        await asyncio.sleep(0.01)
    if quickstart is None:
        return
    base_url = f"http://{settings.host}:{settings.port}/v1"
    kept = read_quickstart(quickstart, base_url)
    sys.stdout.write(snippet(base_url, kept["app_key"], settings.data_dir))
    sys.stdout.flush()
