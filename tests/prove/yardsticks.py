"""Three figures of this machine, so that a proof's figures can be read elsewhere. Nothing of ours is measured."""

import hashlib
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

_SHA_BLOCKS = 64


@dataclass(frozen=True, slots=True)
class Yardsticks:
    """Medians of one short measurement each."""

    fsync_ms: float
    loopback_us: float
    sha256_mb_per_second: float

    def __str__(self) -> str:
        return (
            f"fsync {self.fsync_ms:.2f} ms, loopback round trip {self.loopback_us:.0f} us, "
            f"sha256 {self.sha256_mb_per_second:.0f} MB/s"
        )


def measure() -> Yardsticks:
    """Measure this machine; takes about a second."""
    return Yardsticks(round(_fsync_ms(), 3), round(_loopback_us(), 1), round(_sha256_mb_per_second(), 1))


def _fsync_ms(writes: int = 200) -> float:
    with tempfile.NamedTemporaryFile() as file:

        def append() -> None:
            os.write(file.fileno(), b"x" * 256)
            os.fsync(file.fileno())

        return _median_seconds(append, writes) * 1e3


def _loopback_us(trips: int = 2_000) -> float:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        echo = threading.Thread(target=_echo, args=(listening,), daemon=True)
        echo.start()
        with socket.create_connection(listening.getsockname()) as connected:
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

            def trip() -> None:
                connected.sendall(b"x")
                connected.recv(1)

            seconds = _median_seconds(trip, trips)
        echo.join()
        return seconds * 1e6


def _echo(listening: socket.socket) -> None:
    peer, _ = listening.accept()
    with peer:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while data := peer.recv(1):
            peer.sendall(data)


def _sha256_mb_per_second() -> float:
    block = bytes(1_000_000)
    return 1 / _median_seconds(lambda: hashlib.sha256(block).digest(), _SHA_BLOCKS)


def _median_seconds(act: Callable[[], object], times: int) -> float:
    taken = []
    for _ in range(times):
        started = time.perf_counter()
        act()
        taken.append(time.perf_counter() - started)
    return median(taken)
