"""What a hostile case is: what is said, what must come of it, and why that is right. The tables are made of these.

In what is said, `KEY` stands for an app's key, `hostile-####` for the case's own mark in a turn that may be made,
and `smuggled-####` for one in a turn that must never be.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tests.hostile.wire import Step

KEY = "@KEY@".center(46, "@")  # as long as a key is
MARK = "hostile-####"
SMUGGLED = "smuggled-####"
CHAT = "/v1/chat/completions"


@dataclass(frozen=True, slots=True)
class Must:
    """What must come. answers: the statuses that each may have; turns: how many may reach the provider.

    closes: whether the connection must be closed then; None: it may be. least: how many of the answers must be heard
    where it is closed, since one may be lost while the other side is still talking; None: all. seconds: for all of it.
    """

    answers: tuple[frozenset[int], ...]
    closes: bool | None = None
    turns: frozenset[int] = frozenset({0})
    least: int | None = None
    seconds: float = 8.0


@dataclass(frozen=True, slots=True)
class Case:
    """One hostile thing to say. why: what makes `must` right; quick: whether it takes no waiting and little memory."""

    name: str
    says: tuple[Step, ...] | Callable[[], Iterable[Step]]
    must: Must
    why: str = ""
    heads_only: bool = False
    quick: bool = True


def refused(*statuses: int, least: int = 1, seconds: float = 8.0) -> Must:
    """One clear answer, and the connection ends: nobody knows where its next request would begin."""
    return Must((frozenset(statuses),), closes=True, least=least, seconds=seconds)


def answered(*statuses: int, seconds: float = 8.0) -> Must:
    """One clear refusal of a request that was understood as HTTP; the connection may go on."""
    return Must((frozenset(statuses),), seconds=seconds)


def in_order(*statuses: int, closes: bool | None = None, turns: int = 0) -> Must:
    """These answers, in this order, and so many turns."""
    return Must(tuple(frozenset({status}) for status in statuses), closes=closes, turns=frozenset({turns}))


def then_closed(*statuses: int, then: int, turns: frozenset[int] = frozenset({1})) -> Must:
    """This answer, and the connection ends; what else was said on it may be told what is wrong with it."""
    return Must((frozenset(statuses), frozenset({then})), closes=True, turns=turns, least=1)


def served(turns: int = 1, *, closes: bool | None = None) -> Must:
    """It looks hostile and is not: HTTP wants it served."""
    return Must((frozenset({200}),), closes=closes, turns=frozenset({turns}))


def hung_up(seconds: float) -> Must:
    """Nothing was asked, so nothing can be answered: closed, within the time."""
    return Must((), closes=True, seconds=seconds)


def turn(mark: str = MARK, **members: object) -> bytes:
    """The JSON of a turn."""
    return json.dumps({"model": "mock", "messages": [{"role": "user", "content": mark}], **members}).encode()


def head(
    line: str | bytes = f"POST {CHAT} HTTP/1.1", *lines: str | bytes, key: str | None = KEY, host: str | None = "gate"
) -> bytes:
    """A request's head, with a key unless there is none."""
    usual = [f"Host: {host}"] * (host is not None) + [f"Authorization: Bearer {key}"] * (key is not None)
    every = [line, *usual, *lines]
    return b"\r\n".join(each if isinstance(each, bytes) else each.encode() for each in every) + b"\r\n\r\n"


def post(body: bytes, *lines: str | bytes, key: str | None = KEY, path: str = CHAT) -> bytes:
    """A whole request with a body of declared length."""
    return head(f"POST {path} HTTP/1.1", *lines, f"Content-Length: {len(body)}", key=key) + body


def chunks(*parts: bytes) -> bytes:
    """A body in chunks, with its end."""
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


def chunked(body: bytes, *lines: str | bytes) -> bytes:
    """A whole request with a body in one chunk."""
    return head(f"POST {CHAT} HTTP/1.1", *lines, "Transfer-Encoding: chunked") + chunks(body)


SMUGGLE = post(turn(SMUGGLED))
"""A whole valid turn that must never be made, to be put where a body or nothing is."""
HEALTH = head("GET /healthz HTTP/1.1", key=None)
"""A request that is always answered 200, to see whether a connection still knows where it is."""
