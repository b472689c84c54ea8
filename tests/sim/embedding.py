"""Vectors that stand for nothing but are always the same for the same text. No wire is spoken here."""

import base64
import hashlib
import math
import struct
from dataclasses import dataclass

from tests.sim.ask import Ask

DIMENSIONS = 64
DIMENSIONS_MAX = 3072


@dataclass(frozen=True, slots=True)
class EmbeddingAsk(Ask):
    """A request for one vector per text; a text is whatever bytes it came as."""

    texts: tuple[bytes, ...] = ()
    dimensions: int = DIMENSIONS
    base64: bool = False


def vector(text: bytes, dimensions: int) -> tuple[float, ...]:
    """A vector of length one, in 32-bit floats."""
    noise = hashlib.shake_128(text).digest(2 * dimensions)
    numbers = [number - 32767.5 for (number,) in struct.iter_unpack("<H", noise)]
    length = math.hypot(*numbers)
    return struct.unpack(f"<{dimensions}f", struct.pack(f"<{dimensions}f", *(number / length for number in numbers)))


def packed(numbers: tuple[float, ...]) -> str:
    """The same vector as OpenAI's base64."""
    return base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()
