"""Identifiers that sort by time of making and cost no system call each."""

import os
import threading
import time

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_PAIRS = tuple(high + low for high in _ALPHABET for low in _ALPHABET)
_SHIFTS = tuple(range(120, -1, -10))


class _Entropy(threading.local):
    """A buffer of random bytes per thread: one urandom call serves about 400 ids."""

    def __init__(self) -> None:
        self.buffer = b""
        self.at = 0

    def take(self) -> int:
        """80 random bits."""
        if self.at + 10 > len(self.buffer):
            self.buffer, self.at = os.urandom(4000), 0
        taken = int.from_bytes(self.buffer[self.at : self.at + 10])
        self.at += 10
        return taken


_entropy = _Entropy()


def new_id(prefix: str) -> str:
    """`prefix_` and 26 characters of Crockford base 32: 48 bits of milliseconds, then 80 random bits.

    A process that forks must not share the buffer: the server's processes are started, never forked.
    """
    number = (time.time_ns() // 1_000_000 << 80) | _entropy.take()
    return prefix + "_" + "".join([_PAIRS[number >> shift & 1023] for shift in _SHIFTS])
