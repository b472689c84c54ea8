"""Hostile crowds: many connections that each do little, and random damage to what was valid."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.hostile.table import CHAT, HEALTH, MARK, Case, Must, chunked, chunks, head, post, turn
from tests.hostile.wire import Fin, Step, Wait, talk

_SEEDS = (
    post(turn()),
    chunked(turn()),
    post(turn()) + HEALTH,
    head(f"POST {CHAT} HTTP/1.1", "Transfer-Encoding: chunked") + chunks(turn()[:30], turn()[30:]) + post(turn()),
    head("GET /v1/models HTTP/1.1", "Accept: */*"),
)
_BITS = (
    b"\r\n",
    b"\n",
    b"\r",
    b"\x00",
    b" ",
    b"\t",
    b":",
    b"0",
    b"5",
    b"-",
    b"+",
    b"0\r\n\r\n",
    b"\r\n\r\n",
    b"\xff",
    b'"',
    b"\\u0000",
    b"Content-Length: 5\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Host: x\r\n",
    b"Connection: close\r\n",
    b"{",
    b"}",
    b"[" * 64,
    b"Expect: 100-continue\r\n",
    b"Upgrade: h2c\r\nConnection: Upgrade\r\n",
    b";",
    b",",
    b"1e999",
    b"\xed\xa0\x80",
    b"POST ",
)
_LATE_SECONDS = 14.0


@dataclass(slots=True)
class Crowd:
    """What a crowd came to: connections that were closed in time, and what was wrong with the others."""

    closed: int = 0
    wrong: Counter[str] = field(default_factory=Counter)


async def idle(port: int, count: int, said: bytes) -> Crowd:
    """So many connections, 500 a second, that say this much and wait: each is closed in the time that heads have."""
    crowd = Crowd()

    async def one(number: int) -> None:
        await asyncio.sleep(number / 500)
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError as error:
            crowd.wrong[type(error).__name__] += 1
            return
        try:
            writer.write(said)
            async with asyncio.timeout(_LATE_SECONDS):
                heard = await reader.read()
            status = heard[9:12].decode("latin-1")
            if status in {"", "408"}:
                crowd.closed += 1
            else:
                crowd.wrong[status] += 1
        except TimeoutError:
            crowd.wrong["open"] += 1
        except OSError:
            crowd.closed += 1
        finally:
            writer.close()

    await asyncio.gather(*(one(number) for number in range(count)))
    return crowd


async def churn(port: int, seconds: float) -> int:
    """Connections that are made, say a piece of a request and are gone at once; how many there were."""
    until, made, dice = time.monotonic() + seconds, 0, random.Random(1)
    while time.monotonic() < until:
        pieces = [HEALTH[: dice.randrange(len(HEALTH))] for _ in range(20)]
        await asyncio.gather(*(talk(port, (piece,), answers=0, seconds=0.01, until_closed=False) for piece in pieces))
        made += len(pieces)
        await asyncio.sleep(0.02)
    return made


def damaged(count: int, seed: int) -> Iterator[Case]:
    """So many valid requests, each with a few random changes: whatever it is then, it is answered or closed."""
    dice = random.Random(seed)
    statuses = frozenset(range(200, 500))
    for at in range(count):
        raw = bytearray(dice.choice(_SEEDS))
        for _ in range(dice.randint(1, 4)):
            _damage(raw, dice)
        steps: tuple[Step, ...] = (bytes(raw), Wait(0.4), Fin())
        yield Case(f"damaged {at}: {bytes(raw)!r}", steps, Must((statuses,), closes=True, turns=frozenset(range(4))))


def _damage(raw: bytearray, dice: random.Random) -> None:
    """Change, insert, remove or repeat something; the marks stay, so that every turn can be told."""
    at = dice.randrange(len(raw))
    keep = raw.find(MARK.encode())
    while keep >= 0:
        if keep - 4 <= at <= keep + len(MARK):
            return
        keep = raw.find(MARK.encode(), keep + 1)
    match dice.randrange(5):
        case 0:
            raw[at] = dice.randrange(256)
        case 1:
            raw[at:at] = dice.choice(_BITS)
        case 2:
            del raw[at]
        case 3:
            raw[at : at + 1] = raw[at : at + 1] * dice.randint(2, 40)
        case 4:
            raw[at:at] = bytes(raw[max(0, at - dice.randint(1, 20)) : at]).replace(b"#", b"")
