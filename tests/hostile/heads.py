"""Hostile heads: request lines, targets, methods, header lines, and what is no HTTP at all."""

from collections.abc import Iterator

from tests.hostile.table import (
    CHAT,
    HEALTH,
    KEY,
    SMUGGLE,
    Case,
    Must,
    answered,
    head,
    hung_up,
    in_order,
    post,
    refused,
    served,
    turn,
)
from tests.hostile.wire import Fin, Hear, Repeat

_KIB = 1024
_BLOCK = b"a" * 64 * _KIB
_800_BLOCKS = Repeat(_BLOCK, 800)
_HELLO = bytes.fromhex("16030100c8010000c40303") + b"\x5a" * 32 + b"\x20" + b"\xa5" * 32 + b"\x00\x02\x13\x01\x01\x00"


def _get(target: str | bytes, version: str = "HTTP/1.1") -> bytes:
    raw = target if isinstance(target, bytes) else target.encode()
    return head(b"GET " + raw + b" " + version.encode())


def _healthy(*lines: str | bytes, host: str | None = "gate") -> bytes:
    return head("GET /healthz HTTP/1.1", *lines, key=None, host=host)


def _many(count: int, *, repeated: bool) -> bytes:
    """So many short headers of different names; one of them may come twice."""
    lines = [f"{at:x}:" for at in range(count)]
    return head(f"POST {CHAT} HTTP/1.1", *lines, *lines[:1] * repeated, "Content-Length: 2") + b"{}"


def too_large() -> Iterator[Case]:
    """What the bound on a head is for."""
    large = "431 is for heads; whoever is still talking may lose the answer"
    starts: list[tuple[str, bytes]] = [
        ("a header of 50 MB", b"GET /healthz HTTP/1.1\r\nHost: gate\r\nx: "),
        ("a header's name of 50 MB", b"GET /healthz HTTP/1.1\r\nHost: gate\r\n"),
        ("a target of 50 MB", b"GET /"),
        ("a query of 50 MB", b"GET /healthz?"),
        ("a method of 50 MB", b""),
    ]
    for name, start in starts:
        yield Case(name, (start, _800_BLOCKS), refused(400, 414, 431, least=0), large, quick=False)
    yield Case("50 MB of header lines", (b"GET / HTTP/1.1\r\n", Repeat(b"x: y\r\n" * 10_000, 850)),
               refused(431, least=0), large, quick=False)  # fmt: skip
    yield Case("50 MB of empty lines", (Repeat(b"\r\n" * 32_000, 800),), refused(400, 431, least=0),
               "empty lines before a request may be skipped, not for ever", quick=False)  # fmt: skip
    yield Case("a header of 100 KB, whole", (_healthy("x: " + "a" * 100_000),), refused(431, least=0), large)
    yield Case("a target of 100 KB, whole", (_get("/" + "a" * 100_000),), refused(414, 431, least=0), large)
    yield Case("10,000 header lines of 100 KB together", (_healthy(*(f"x{at:05}: y" for at in range(10_000))),),
               refused(431, least=0), large)  # fmt: skip
    yield Case("9,000 headers within the bound", (_many(9000, repeated=False),), answered(400, 431),
               "within the bytes, so either")  # fmt: skip
    yield Case("9,000 headers, one of them twice", (_many(9000, repeated=True),), answered(400, 431),
               "as quick as without the repetition")  # fmt: skip
    yield Case("a target of 30 KB", (_get("/" + "a" * 30_000),), answered(404), "a path like any")
    yield Case("a key of 50 KB", (head("GET /v1/models HTTP/1.1", key="k" * 50_000),), answered(401), "a key like any")


def too_slow() -> Iterator[Case]:
    """What the bound on a head's time is for: ten seconds, looked at every second."""
    why = "nobody who has sent all of a head waits for another"
    yield Case("nothing at all", (), hung_up(14), "no request, no answer", quick=False)
    yield Case("half a head, for ever", (b"GET /healthz HTTP/1.1\r\nHost: g",), refused(408, seconds=14), why,
               quick=False)  # fmt: skip
    yield Case("a head of a byte a second", (Repeat(b"G", 1), Repeat(b"E", 60, 1)),
               refused(400, 408, seconds=14), why, quick=False)  # fmt: skip
    yield Case("header lines, one a second", (b"GET /healthz HTTP/1.1\r\n", Repeat(b"x: y\r\n", 60, 1)),
               refused(408, seconds=14), why, quick=False)  # fmt: skip
    yield Case("an empty line a second", (Repeat(b"\r\n", 60, 1),), Must((frozenset({408}),), closes=True,
               least=0, seconds=14), "no request has begun", quick=False)  # fmt: skip
    second = Must((frozenset({200}), frozenset({408})), closes=True, seconds=20)
    yield Case("half a head after an answer", (HEALTH, Hear(1), b"GET /h"), second, why, quick=False)
    yield Case("an empty line a second after an answer", (HEALTH, Hear(1), Repeat(b"\r\n", 60, 1)),
               Must((frozenset({200}),), closes=True, seconds=20), "idle, however it idles", quick=False)  # fmt: skip
    yield Case("nothing after an answer", (HEALTH, Hear(1)), Must((frozenset({200}),), closes=True, seconds=12),
               "idle connections are closed", quick=False)  # fmt: skip


def header_lines() -> Iterator[Case]:
    """Lines that no reader reads alike, and are therefore refused."""
    no_host = "RFC 9112, 3.2: 400 for a request of 1.1 without exactly one valid Host"
    yield Case("no Host", (_healthy(host=None),), refused(400), no_host)
    yield Case("two Hosts", (_healthy("Host: other"),), refused(400), no_host)
    yield Case("two Hosts alike", (_healthy("Host: gate"),), refused(400), no_host)
    yield Case("a Host with a space", (_healthy(host="a b"),), refused(400), no_host)
    yield Case("a Host with a path", (_healthy(host="a/b"),), refused(400), no_host)
    yield Case("a Host with an at", (_healthy(host="a@b"),), refused(400), no_host)
    yield Case("a space before the colon", (_healthy("X : y"),), refused(400), "RFC 9112, 5.1")
    yield Case("a tab before the colon", (_healthy("X\t: y"),), refused(400), "RFC 9112, 5.1")
    yield Case("a folded header", (_healthy("X: y", " z"),), refused(400), "RFC 9112, 5.2")
    yield Case("a folded first header", (b"GET /healthz HTTP/1.1\r\n X: y\r\nHost: gate\r\n\r\n",), refused(400),
               "RFC 9112, 2.2")  # fmt: skip
    yield Case("a header without a colon", (_healthy("X"),), refused(400), "no field")
    yield Case("a header without a name", (_healthy(": y"),), refused(400), "no field")
    yield Case("a NUL in a header's value", (_healthy(b"X: a\x00b"),), refused(400), "RFC 9110, 5.5")
    yield Case("a NUL in a header's name", (_healthy(b"X\x00: a"),), refused(400), "no token")
    yield Case("a CR in a header's value", (_healthy(b"X: a\rb"),), refused(400), "RFC 9110, 5.5")
    yield Case("a CR before the CRLF", (_healthy(b"X: a\r"),), refused(400), "RFC 9112, 2.2")
    yield Case("a control character in a header's value", (_healthy(b"X: a\x01b"),), refused(400), "RFC 9110, 5.5")
    yield Case("a DEL in a header's value", (_healthy(b"X: a\x7fb"),), refused(400), "RFC 9110, 5.5")
    yield Case("lines that end in LF alone", (_healthy().replace(b"\r\n", b"\n"),), refused(400),
               "allowed to be read, and read differently by those before us")  # fmt: skip
    yield Case("one line that ends in LF alone", (_healthy("X: y\nZ: z"),), refused(400), "as before")
    yield Case("a head that ends in LF alone", (_healthy()[:-2] + b"\n",), refused(400), "as before")
    yield Case("parentheses in a header's name", (_healthy("X(): y"),), refused(400), "no token")
    yield Case("a header's name beyond ASCII", (_healthy("X\xe9: y"),), refused(400), "no token")
    odd_word = "text beyond ASCII is allowed in a value, and is no such use case"
    yield Case("a use case beyond ASCII", (post(turn(), b"X-Use-Case: \xff\xfe"),), answered(400, 403), odd_word)
    yield Case("a data class beyond ASCII", (post(turn(), "X-Data-Class: \u0440ublic"),), answered(400), odd_word)
    yield Case("a latency of 5,000 digits", (post(turn(), "X-Max-Latency-Ms: " + "9" * 5000),), answered(400),
               "no number of milliseconds")  # fmt: skip


def identities() -> Iterator[Case]:
    """Keys that are none, and two where one is due."""
    models = "GET /v1/models HTTP/1.1"
    yield Case("no key", (head(models, key=None),), answered(401), "nobody")
    yield Case("an empty key", (head(models, "Authorization: Bearer ", key=None),), answered(401), "nobody")
    yield Case("two different keys", (head(models, "Authorization: Bearer other"),), answered(400, 401),
               "nobody can be two")  # fmt: skip
    yield Case("the same key twice", (head(models, f"Authorization: Bearer {KEY}"),), answered(400, 401), "as before")
    yield Case("two keys in a list", (head(models, key=f"{KEY}, other"),), answered(401), "as before")
    yield Case("a key beyond ASCII", (head(models, b"Authorization: Bearer \xff\xfe\xe9", key=None),), answered(401),
               "no such key")  # fmt: skip
    yield Case("a key as basic credentials", (head(models, "Authorization: Basic QEtFWUA6eA==", key=None),),
               answered(401), "no such key")  # fmt: skip
    yield Case("a key in the target", (head(f"GET /v1/models?key={KEY} HTTP/1.1", key=None),), answered(401),
               "targets are logged by those before us")  # fmt: skip
    yield Case("a key in a cookie", (head(models, f"Cookie: authorization=Bearer {KEY}", key=None),), answered(401),
               "no cookies here")  # fmt: skip


def targets() -> Iterator[Case]:
    """Targets of every form."""
    absolute = "RFC 9112, 3.2.2: a server must take the absolute form"
    yield Case("the absolute form", (_get("http://gate/healthz"),), served(0), absolute)
    yield Case(
        "the absolute form of elsewhere", (_get("http://elsewhere.example/v1/nothing"),), answered(404), absolute
    )
    yield Case("the absolute form with a user", (_get("http://u:p@gate/v1/x"),), answered(400, 404), absolute)
    yield Case("the absolute form of a file", (_get("file:///etc/passwd"),), answered(400, 404), absolute)
    yield Case("CONNECT and a turn", (b"CONNECT gate:443 HTTP/1.1\r\nHost: gate:443\r\n\r\n" + SMUGGLE,),
               refused(400, 401, 404, 405), "no tunnels here; what follows is nobody's request")  # fmt: skip
    yield Case("CONNECT with a key", (head("CONNECT gate:443 HTTP/1.1"),), refused(400, 404, 405), "no tunnels here")
    yield Case("the authority form with GET", (_get("gate:443"),), refused(400, 404), "RFC 9112, 3.2.3")
    yield Case("the asterisk form", (head("OPTIONS * HTTP/1.1", key=None),), answered(400, 401, 404, 405), "no such")
    yield Case("a target without a slash", (_get("healthz"),), refused(400), "RFC 9112, 3.2")
    yield Case("a target with a space", (_get("/health z"),), refused(400), "RFC 9112, 3")
    yield Case("a target with a NUL", (_get(b"/healthz\x00"),), refused(400), "no URI")
    yield Case("a target beyond ASCII", (_get(b"/\xe9\xff"),), answered(400, 404), "no URI")
    yield Case("a target with a fragment", (_get("/v1/models#x"),), answered(200, 400, 404), "no URI of a request")
    yield Case("no target", (b"GET  HTTP/1.1\r\nHost: gate\r\n\r\n",), refused(400), "RFC 9112, 3")
    for name, target in (
        ("dots", "/v1/../healthz"),
        ("escaped dots", "/v1/%2e%2e/healthz"),
        ("two slashes", "/v1//models"),
        ("an escaped NUL", "/healthz%00"),
        ("an escaped line end", "/v1/requests/x%0d%0aX-Injected:%20y"),
        ("a broken escape", "/v1/%zz"),
        ("an escape that is no UTF-8", "/v1/%ff%fe"),
        ("the page of another", "/api/../v1/models"),
        ("an escaped line end for the control plane", "/api/keys%0d%0aX-Injected:%20y"),
        ("a NUL for the control plane", "/api/documents/%00"),
        ("a request of nobody's", "/v1/requests/%00"),
    ):
        yield Case(f"a target with {name}", (_get(target),), answered(400, 403, 404, 405, 422),
                   "matched as it is, never made simpler")  # fmt: skip


def methods() -> Iterator[Case]:
    """Methods nobody has, and versions nobody speaks."""
    for method in ("BREW", "get", "G\xcbT", "G(T", "GETT", "\x00GET"):
        yield Case(f"the method {method!r}", (head(f"{method} /healthz HTTP/1.1", key=None),), refused(400, 405),
                   "4xx, though RFC 9110 has 501 for it: no fault of ours")  # fmt: skip
    for method in ("TRACE", "DELETE", "PROPFIND", "PATCH", "QUERY"):
        yield Case(f"{method} where GET is due", (head(f"{method} /v1/models HTTP/1.1"),), answered(400, 405), "")
    yield Case("HEAD where POST is due", (head(f"HEAD {CHAT} HTTP/1.1"), HEALTH[:0]), answered(405),
               "an answer without a body", heads_only=True)  # fmt: skip
    for version in ("HTTP/2.0", "HTTP/3", "HTTP/1.2", "HTTP/01.1", "HTTP/1.1.1", "http/1.1", "HTTPS/1.1", "HTTP/9.9"):
        yield Case(f"the version {version}", (_get("/healthz", version),), refused(400),
                   "4xx, though RFC 9110 has 505 for it: no fault of ours")  # fmt: skip
    yield Case(
        "HTTP/0.9", (b"GET /healthz\r\n",), refused(400, 408, least=0, seconds=14), "not spoken here", quick=False
    )
    yield Case("HTTP/1.0, and nothing kept", (b"GET /healthz HTTP/1.0\r\n\r\n",), served(0, closes=True), "still HTTP")


def strangers() -> Iterator[Case]:
    """What is no HTTP/1.1 at all, or wants to be something else."""
    nobody = "not HTTP/1.1: an answer in it, and the end"
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes.fromhex("000000040000000000")
    yield Case("the preface of HTTP/2", (preface,), refused(400), nobody)
    yield Case("a TLS hello", (_HELLO + b"\x00" * 200,), refused(400), nobody)
    yield Case("an SSH banner", (b"SSH-2.0-OpenSSH_9.9\r\n",), refused(400), nobody)
    yield Case("SMTP", (b"EHLO mail.example\r\n",), refused(400), nobody)
    yield Case("Redis", (b"*1\r\n$4\r\nPING\r\n",), refused(400), nobody)
    yield Case("SOCKS", (b"\x05\x01\x00",), refused(400), nobody)
    yield Case("an answer", (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",), refused(400), nobody)
    yield Case("a PROXY line", (b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n" + HEALTH,), refused(400), nobody)
    yield Case("zeroes", (b"\x00" * 4096,), refused(400), nobody)
    h2c = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__")
    ignored = "RFC 9110, 7.8: an upgrade may be ignored, so the request is served as it is"
    yield Case("an upgrade to HTTP/2", (_healthy(*h2c),), served(0), ignored)
    yield Case("an upgrade to HTTP/2, and its preface", (_healthy(*h2c), Hear(1), preface), in_order(200, 400,
               closes=True), ignored)  # fmt: skip
    socket = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: x")
    yield Case("an upgrade to a websocket", (_healthy(*socket),), served(0), ignored)
    yield Case("a turn that asks for an upgrade", (post(turn(), *h2c),), served(1), ignored)
    yield Case("an upgrade and a request after it", (_healthy(*socket) + HEALTH,), in_order(200, 200), ignored)
    yield Case("an upgrade, an answer, and a request after it", (_healthy(*socket), Hear(1), HEALTH),
               in_order(200, 200), ignored)  # fmt: skip
    yield Case("a hello and a hang-up", (b"GET /hea", Fin()), Must((frozenset({400}),), closes=True, least=0),
               "who leaves within a head has asked nothing")  # fmt: skip


def heads() -> Iterator[Case]:
    """All of them."""
    for made in (too_large, too_slow, header_lines, identities, targets, methods, strangers):
        yield from made()
