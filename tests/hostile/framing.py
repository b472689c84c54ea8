"""Hostile framing: where a body begins and ends, said in two ways, wrongly, or never; and what hides behind it."""

from collections.abc import Iterator

from tests.hostile.table import (
    CHAT,
    HEALTH,
    KEY,
    SMUGGLE,
    SMUGGLED,
    Case,
    Must,
    answered,
    chunks,
    head,
    in_order,
    post,
    refused,
    served,
    then_closed,
    turn,
)
from tests.hostile.wire import Deaf, Fin, Hear, Repeat, Wait

_POST = f"POST {CHAT} HTTP/1.1"
_TE = "Transfer-Encoding: chunked"
_BODY = turn()
_LENGTH = f"Content-Length: {len(_BODY)}"
_MB = 1_000_000
_LATE = 16.0
_MAYBE = frozenset({0, 1})
_NONE = frozenset({0})
_UNREAD = Must((frozenset({200}),) * 400_000, closes=True, least=0, seconds=20)


def _framed(*lines: str | bytes, body: bytes = _BODY, line: str = _POST) -> tuple[bytes]:
    """A turn framed by these lines, and a whole turn behind it."""
    return (head(line, *lines) + body + SMUGGLE,)


def lengths() -> Iterator[Case]:
    """One request, two opinions on its length."""
    two = "RFC 9112, 6.1 and 6.3: refused, and the connection ends"
    for name, lines in (
        ("a length and chunks", (_LENGTH, _TE)),
        ("chunks and a length", (_TE, _LENGTH)),
        ("a length of nothing and chunks", ("Content-Length: 0", _TE)),
        ("two lengths", (_LENGTH, "Content-Length: 0")),
        ("two lengths alike", (_LENGTH, _LENGTH)),
        ("a list of lengths", (f"Content-Length: {len(_BODY)}, {len(_BODY)}",)),
        ("a length with a plus", (f"Content-Length: +{len(_BODY)}",)),
        ("a negative length", ("Content-Length: -1",)),
        ("a length in hex", (f"Content-Length: {len(_BODY):#x}",)),
        ("a length with an exponent", ("Content-Length: 1e2",)),
        ("a length with a point", (f"Content-Length: {len(_BODY)}.0",)),
        ("a length with an underscore", ("Content-Length: 1_0",)),
        ("a length with a space", ("Content-Length: 1 0",)),
        ("an empty length", ("Content-Length:",)),
        ("a length of letters", ("Content-Length: all",)),
        ("a length past 64 bits", ("Content-Length: 18446744073709551617",)),
        ("a length past all bounds", ("Content-Length: " + "9" * 500,)),
        ("a length in other digits", (b"Content-Length: \xd9\xa1\xd9\xa2",)),
        ("a length and a vertical tab", (_LENGTH.encode() + b"\x0b",)),
        ("a length before a colon with a space", (f"Content-Length : {len(_BODY)}",)),
        ("a length in a folded line", ("Content-Length:", f" {len(_BODY)}")),
    ):
        body = chunks(_BODY) if _TE in lines else _BODY
        yield Case(name, _framed(*lines, body=body), refused(400, 413), two)


def codings() -> Iterator[Case]:
    """Chunks, said in ways that only some understand."""
    why = "RFC 9112, 6.1 and 6.3: a coding whose end nobody knows is refused, and the connection ends"
    for name, lines in (
        ("xchunked", ("Transfer-Encoding: xchunked",)),
        ("identity", ("Transfer-Encoding: identity",)),
        ("chunked, then identity", ("Transfer-Encoding: chunked, identity",)),
        ("chunked, then gzip", ("Transfer-Encoding: chunked, gzip",)),
        ("chunked twice", ("Transfer-Encoding: chunked, chunked",)),
        ("two codings in two lines", ("Transfer-Encoding: chunked", "Transfer-Encoding: identity")),
        ("chunked in two lines", (_TE, _TE)),
        ("an empty coding", ("Transfer-Encoding:",)),
        ("an empty coding and a length", ("Transfer-Encoding:", _LENGTH)),
        ("chunked with a vertical tab", (b"Transfer-Encoding: \x0bchunked",)),
        ("chunked in quotes", ('Transfer-Encoding: "chunked"',)),
        ("chunked with a parameter", ("Transfer-Encoding: chunked;q=1",)),
        ("a coding with a space before its colon", ("Transfer-Encoding : chunked", _LENGTH)),
        ("a coding in a folded line", ("Transfer-Encoding:", " chunked", _LENGTH)),
        ("a coding behind an LF", (f"X: y\n{_TE}", _LENGTH)),
        ("a coding behind a CR", (f"X: y\r{_TE}", _LENGTH)),
        ("chunked and a NUL", (b"Transfer-Encoding: chunked\x00",)),
    ):
        yield Case(f"the coding: {name}", _framed(*lines, body=chunks(_BODY)), refused(400), why)
    yield Case("the coding: gzip and chunked", _framed("Transfer-Encoding: gzip, chunked", body=chunks(_BODY)),
               refused(400, 415), "whole, and not to be understood")  # fmt: skip
    yield Case("chunks in HTTP/1.0", _framed(_TE, body=chunks(_BODY), line=f"POST {CHAT} HTTP/1.0"), refused(400), why)
    yield Case("the coding: CHUNKED", (head(_POST, "Transfer-Encoding: CHUNKED") + chunks(_BODY),), served(),
               "codings have no case")  # fmt: skip
    yield Case("a coding that is spelt otherwise", (post(_BODY, "Transfer_Encoding: chunked"),), served(),
               "a header like any; nothing here takes _ for -")  # fmt: skip


def chunked_bodies() -> Iterator[Case]:
    """Chunks that are none."""
    why = "RFC 9112, 7.1: nobody knows where it ends"
    size = b"%x" % len(_BODY)
    for name, body in (
        ("a negative size", b"-5\r\n" + _BODY),
        ("a size with a plus", b"+" + size + b"\r\n" + _BODY),
        ("a size as in C", b"0x" + size + b"\r\n" + _BODY),
        ("no size", b"\r\n" + _BODY),
        ("a size past 64 bits", b"1" + b"0" * 15 + size + b"\r\n" + _BODY),
        ("a size past all bounds", b"f" * 300 + b"\r\n" + _BODY),
        ("a space before the size", b" " + size + b"\r\n" + _BODY + b"\r\n0\r\n\r\n"),
        ("a size that ends in LF", size + b"\n" + _BODY + b"\r\n0\r\n\r\n"),
        ("a size that ends in CR", size + b"\r" + _BODY + b"\r\n0\r\n\r\n"),
        ("more data than its size", b"5\r\n" + _BODY + b"\r\n0\r\n\r\n"),
        ("data that ends in LF", size + b"\r\n" + _BODY + b"\n0\r\n\r\n"),
        ("a last chunk that ends in LF", size + b"\r\n" + _BODY + b"\r\n0\n\n"),
        ("a NUL in an extension", size + b";a=\x00\r\n" + _BODY + b"\r\n0\r\n\r\n"),
        ("a line end in an extension", size + b";a=\n1\r\n" + _BODY + b"\r\n0\r\n\r\n"),
    ):
        yield Case(f"a chunk with {name}", (head(_POST, _TE) + body + SMUGGLE,), refused(400), why)
    with_extension = size + b';name="value"\r\n' + _BODY + b"\r\n0;last\r\n\r\n"
    yield Case("chunks with extensions", (head(_POST, _TE) + with_extension,), served(), "allowed, and ignored")
    yield Case("an extension of 50 MB", (head(_POST, _TE) + b"5;a=", Repeat(b"y" * 65_536, 800)),
               Must((frozenset({400, 408, 413, 431}),), closes=True, least=0),
               "allowed, but not for ever", quick=False)  # fmt: skip
    bomb = b'1;a="' + b"y" * 4000 + b'"\r\n \r\n'
    yield Case(
        "12,000 chunks of a byte with 4 KB of extension",
        (head(_POST, _TE), Repeat(bomb * 16, 750), chunks(_BODY)),
        Must((frozenset({400, 408, 413, 431}),), closes=True, least=0),
        "what is sent is bounded, not only what is meant",
        quick=False,
    )


def trailers() -> Iterator[Case]:
    """What follows the last chunk is no header."""
    body = chunks(_BODY)[:-2]
    ignored = "RFC 9110, 6.5.1: never merged into the headers"
    yield Case("a trailer", (head(_POST, _TE) + body + b"X-Checksum: 1\r\n\r\n",), served(), "allowed, and ignored")
    yield Case(
        "a key in a trailer",
        (head(_POST, _TE, key=None) + body + f"Authorization: Bearer {KEY}\r\n\r\n".encode(),),
        answered(400, 401),
        ignored,
    )
    yield Case("a second key in a trailer", (head(_POST, _TE) + body + b"Authorization: Bearer other\r\n\r\n",),
               Must((frozenset({200, 400}),), turns=_MAYBE), ignored)  # fmt: skip
    yield Case("a use case in a trailer", (head(_POST, _TE) + body + b"X-Use-Case: nobodys\r\n\r\n",),
               Must((frozenset({200, 400}),), turns=_MAYBE), ignored)  # fmt: skip
    yield Case("a length in a trailer", (head(_POST, _TE) + body + b"Content-Length: 5\r\n\r\n" + HEALTH,),
               then_closed(200, 400, then=200, turns=_MAYBE), ignored)  # fmt: skip
    yield Case("a trailer of 50 MB", (head(_POST, _TE) + body + b"X: ", Repeat(b"y" * 65_536, 800)),
               Must((frozenset({400, 408, 413, 431}),), closes=True, least=0), "heads are bounded wherever they are",
               quick=False)  # fmt: skip
    yield Case("50 MB of trailers", (head(_POST, _TE) + body, Repeat(b"x: y\r\n" * 10_000, 850)),
               Must((frozenset({400, 408, 413, 431}),), closes=True, least=0), "as before", quick=False)  # fmt: skip
    yield Case("a trailer that is folded", (head(_POST, _TE) + body + b"X: y\r\n z\r\n\r\n" + SMUGGLE,), refused(400),
               "RFC 9112, 5.2")  # fmt: skip


def bodies_elsewhere() -> Iterator[Case]:
    """A whole turn where a body is due, or a body where none is."""
    body = "a body is a body, whatever it says and whoever refuses it"
    declared = f"Content-Length: {len(SMUGGLE)}"
    yield Case("a turn as the body of GET", (head("GET /healthz HTTP/1.1", declared, key=None) + SMUGGLE,),
               Must((frozenset({200, 400}),)), body)  # fmt: skip
    yield Case("a turn as the body of what is not found", (head("POST /v1/none HTTP/1.1", declared) + SMUGGLE,),
               answered(404), body)  # fmt: skip
    yield Case("a turn as the body of nobody's", (head(_POST, declared, key=None) + SMUGGLE,), answered(401), body)
    yield Case("a turn as the body of a wrong method", (head(f"PUT {CHAT} HTTP/1.1", declared) + SMUGGLE,),
               answered(405), body)  # fmt: skip
    yield Case("a turn as the body of a turn", (head(_POST, declared) + SMUGGLE,), answered(400), body)
    yield Case("a turn as the body of an administrator's", (head("POST /api/keys HTTP/1.1", declared) + SMUGGLE,),
               answered(400, 403, 415, 422), body)  # fmt: skip
    yield Case("a refused body, then a request", (head("POST /v1/none HTTP/1.1", declared) + SMUGGLE, Hear(1), HEALTH),
               Must((frozenset({404}), frozenset({200})), least=1), "still in step, or closed")  # fmt: skip
    yield Case(
        "a body without a length",
        (head(_POST) + _BODY,),
        then_closed(400, 411, then=400, turns=_NONE),
        "no length is no body; what follows is no request",
    )
    yield Case("a turn after a body that is shorter", (head(_POST, f"Content-Length: {len(_BODY) - 10}") + _BODY,),
               then_closed(400, then=400, turns=_NONE), "as before")  # fmt: skip
    yield Case("half a body and FIN", (head(_POST, _LENGTH) + _BODY[:-5], Fin()), Must((frozenset({400, 408}),),
               closes=True, least=0), "who leaves has asked nothing")  # fmt: skip
    yield Case("a whole turn and FIN", (post(_BODY), Fin()), Must((frozenset({200}),), closes=True, turns=_MAYBE,
               least=0), "who has left is not answered; who waits may be")  # fmt: skip


def slow_bodies() -> Iterator[Case]:
    """Bodies that do not come."""
    late = "bodies have their time as well; a connection whose body did not come is of no use"
    yield Case("half a body, for ever", (head(_POST, _LENGTH) + _BODY[:-5],), refused(408, seconds=_LATE), late,
               quick=False)  # fmt: skip
    yield Case("a body of a byte a second", (head(_POST, "Content-Length: 600"), Repeat(b" ", 60, 1)),
               refused(408, seconds=_LATE), late, quick=False)  # fmt: skip
    yield Case("a chunk a second", (head(_POST, _TE), Repeat(b"1\r\n \r\n", 60, 1)), refused(408, seconds=_LATE), late,
               quick=False)  # fmt: skip
    yield Case("a chunk's extension of a byte a second", (head(_POST, _TE) + b"5;", Repeat(b"y", 60, 1)),
               refused(408, seconds=_LATE), late, quick=False)  # fmt: skip
    yield Case("a trailer a second", (head(_POST, _TE) + chunks(_BODY)[:-2], Repeat(b"x: y\r\n", 60, 1)),
               refused(400, 408, seconds=_LATE), late, quick=False)  # fmt: skip
    yield Case("100-continue, never followed up", (head(_POST, _LENGTH, "Expect: 100-continue"),),
               refused(408, seconds=_LATE), late, quick=False)  # fmt: skip
    yield Case("100-continue, refused and never followed up", (head(_POST, _LENGTH, "Expect: 100-continue", key=None),),
               refused(401, seconds=_LATE), late, quick=False)  # fmt: skip
    yield Case("half a refused body, for ever", (head(_POST, _LENGTH, key=None) + _BODY[:5],),
               refused(401, seconds=_LATE), "refused, and still not waited for", quick=False)  # fmt: skip
    yield Case("a refused body of a byte a second", (head(_POST, "Content-Length: 600", key=None), Repeat(b" ", 60, 1)),
               refused(401, seconds=_LATE), "as before", quick=False)  # fmt: skip
    yield Case("half a body for who wants none, for ever",
               (head("GET /healthz HTTP/1.1", "Content-Length: 600", key=None) + b" ",),
               Must((frozenset({200, 400}),), closes=True, seconds=_LATE), "as before", quick=False)  # fmt: skip
    yield Case("half a body for the control plane, for ever", (head("POST /api/apply HTTP/1.1", _LENGTH) + b" ",),
               refused(400, 403, 408, seconds=_LATE), late, quick=False)  # fmt: skip
    yield Case("an expectation nobody has", (post(_BODY, "Expect: 200-ok"),), Must((frozenset({200, 417}),),
               turns=_MAYBE), "RFC 9110, 10.1.1: may be ignored")  # fmt: skip
    yield Case("100-continue, followed up", (head(_POST, _LENGTH, "Expect: 100-continue"), Wait(0.3), _BODY),
               served(), "as it should be")  # fmt: skip


def large_bodies() -> Iterator[Case]:
    """Bodies of 100 MB, and of as much as is read."""
    large = "413, and the connection ends or the rest is thrown away"
    flood = Repeat(b" " * 100_000, 1000)
    is_bound = Must((frozenset({413}),), least=0)
    yield Case("100 MB declared", (head(_POST, "Content-Length: 100000000"), flood), is_bound, large, quick=False)
    yield Case("100 MB declared, none sent", (head(_POST, "Content-Length: 100000000"),), answered(413), large)
    yield Case("100 MB declared and asked for", (head(_POST, "Content-Length: 100000000", "Expect: 100-continue"),),
               answered(413, 417), large)  # fmt: skip
    yield Case("100 MB in chunks", (head(_POST, _TE), Repeat(b"186a0\r\n" + b" " * 100_000 + b"\r\n", 1000)), is_bound,
               large, quick=False)  # fmt: skip
    yield Case("100 MB in chunks of a byte", (head(_POST, _TE), Repeat(b"1\r\n \r\n" * 20_000, 850)),
               Must((frozenset({400, 408, 413, 431}),), least=0, seconds=20), large, quick=False)  # fmt: skip
    anyone = Must((frozenset({401, 413}),), least=0)
    yield Case("100 MB of nobody's", (head(_POST, "Content-Length: 100000000", key=None), flood), anyone, large,
               quick=False)  # fmt: skip
    plane = Must((frozenset({403, 413}),), least=0)
    yield Case("100 MB for the control plane", (head("POST /api/apply HTTP/1.1", "Content-Length: 100000000"), flood),
               plane, large, quick=False)  # fmt: skip
    yield Case("100 MB for keys", (head("POST /api/keys HTTP/1.1", "Content-Type: application/json",
               "Content-Length: 100000000"), flood), plane, large, quick=False)  # fmt: skip
    yield Case("100 MB in chunks for keys", (head("POST /api/keys HTTP/1.1", "Content-Type: application/json", _TE),
               Repeat(b"186a0\r\n" + b" " * 100_000 + b"\r\n", 1000)), plane, large, quick=False)  # fmt: skip
    yield Case(
        "100 MB for who wants none",
        (head("GET /healthz HTTP/1.1", "Content-Length: 100000000", key=None), flood),
        Must((frozenset({200, 400, 413}),), least=0),
        "not kept",
        quick=False,
    )


def pipelines() -> Iterator[Case]:
    """Several requests at once: answered in order, and a bad one spoils none before it."""
    order = "RFC 9112, 9.3.2: answers come in the order of the requests"
    yield Case("two turns at once", (post(_BODY) * 2,), Must((frozenset({200}),) * 2, turns=frozenset({2})), order)
    yield Case("a turn, then no HTTP", (post(_BODY) + b"\x00\x01\x02\r\n\r\n",), then_closed(200, then=400),
               order)  # fmt: skip
    yield Case("a turn, then a smuggler", (post(_BODY) + head(_POST, _TE, _LENGTH) + chunks(turn(SMUGGLED)) + SMUGGLE,),
               then_closed(200, then=400), order)  # fmt: skip
    yield Case("a turn, then a head too large", (post(_BODY) + b"GET / HTTP/1.1\r\nX: ", Repeat(b"y" * 65_536, 3)),
               then_closed(200, then=431), order)  # fmt: skip
    yield Case("a turn, then one of nobody's", (post(_BODY) + post(turn(SMUGGLED), key=None),),
               in_order(200, 401, turns=1), order)  # fmt: skip
    yield Case("a refused turn, then a turn", (post(turn(SMUGGLED), key=None) + post(_BODY),),
               in_order(401, 200, turns=1), order)  # fmt: skip
    yield Case("close, and a turn behind it", (head("GET /healthz HTTP/1.1", "Connection: close", key=None) + SMUGGLE,),
               in_order(200, closes=True), "RFC 9112, 9.6: nothing after it is read")  # fmt: skip
    yield Case("1,000 requests at once", (HEALTH * 1000,), Must((frozenset({200}),) * 1000), order)
    yield Case("400,000 requests that nobody reads the answers of",
               (Deaf(60), Repeat(head("GET /metrics HTTP/1.1", key=None) * 200, 2000)),
               _UNREAD, "who takes no answer is dropped", quick=False)  # fmt: skip
    yield Case("400,000 requests of the control plane, as before",
               (Deaf(60), Repeat(head("GET /api/openapi.json HTTP/1.1") * 200, 2000)),
               _UNREAD, "who takes no answer is dropped", quick=False)  # fmt: skip
    yield Case("a turn in single bytes", (*tuple(bytes([each]) for each in post(_BODY)[:40]), post(_BODY)[40:]),
               served(), "cut anywhere, it is the same")  # fmt: skip
    yield Case(
        "a turn of chunks of a byte",
        (head(_POST, _TE) + chunks(*(bytes([each]) for each in _BODY[:20]), _BODY[20:]),),
        served(),
        "as before",
    )


def framings() -> Iterator[Case]:
    """All of them."""
    made = (lengths, codings, chunked_bodies, trailers, bodies_elsewhere, slow_bodies, large_bodies, pipelines)
    for each in made:
        yield from each()
