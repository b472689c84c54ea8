"""Hostile bodies: what is no JSON, JSON that is read in two ways, and JSON that is far too much of it."""

import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator

from tests.hostile.table import (
    MARK,
    SMUGGLED,
    Case,
    Must,
    answered,
    head,
    post,
    served,
    turn,
)
from tests.hostile.wire import Step

_TYPE = "Content-Type: application/json"
_MAYBE = frozenset({0, 1})
_MESSAGES = b'"messages":[{"role":"user","content":"' + SMUGGLED.encode() + b'"}]'
_OPEN = b'{"model":"mock",' + _MESSAGES


def _with(more: str | bytes) -> bytes:
    """A turn with another member, as it is written."""
    return _OPEN + b"," + (more if isinstance(more, bytes) else more.encode()) + b"}"


def _said(body: bytes) -> tuple[Step, ...]:
    return (post(body, _TYPE),)


def _refuse(name: str, body: bytes, why: str, *statuses: int) -> Case:
    return Case(name, _said(body), answered(*(statuses or (400,))), why)


def _made(body: Callable[[], bytes]) -> Callable[[], Iterable[Step]]:
    """Large bodies are made when they are said, and one at a time."""
    return lambda: _said(body())


def _large(name: str, body: Callable[[], bytes], why: str, *statuses: int) -> Case:
    return Case(name, _made(body), Must((frozenset(statuses or (400, 413)),), seconds=20), why, quick=False)


def no_json() -> Iterator[Case]:
    """What is no JSON at all."""
    why = "no JSON object in UTF-8"
    text = turn(SMUGGLED).decode()
    for name, body in (
        ("nothing", b""),
        ("space", b" \r\n\t "),
        ("null", b"null"),
        ("true", b"true"),
        ("a number", b"5"),
        ("a string", b'"x"'),
        ("an array", b"[]"),
        ("an array of turns", b"[" + text.encode() + b"]"),
        ("half a turn", text.encode()[:-4]),
        ("two turns", text.encode() * 2),
        ("a turn and a NUL", text.encode() + b"\x00"),
        ("a NUL and a turn", b"\x00" + text.encode()),
        ("a turn and a bracket", text.encode() + b"}"),
        ("a comma too many", text.encode()[:-1] + b",}"),
        ("a comment", b"/* */" + text.encode()),
        ("single quotes", text.replace('"', "'").encode()),
        ("a form", b"model=mock&messages=x"),
        ("XML", b"<?xml version='1.0'?><!DOCTYPE a [<!ENTITY b SYSTEM 'file:///etc/passwd'>]><a>&b;</a>"),
        ("YAML", b"model: mock\nmessages: &a [*a, *a]\n"),
        ("a mark of byte order", b"\xef\xbb\xbf" + text.encode()),
        ("UTF-16, little", text.encode("utf-16-le")),
        ("UTF-16, big", text.encode("utf-16-be")),
        ("UTF-16 with a mark", text.encode("utf-16")),
        ("UTF-32", text.encode("utf-32")),
        ("UTF-7", text.replace("user", "+AHU-ser").encode("utf-7") + b"+"),
        ("a raw line end in a string", _with(b'"user":"a\nb"')),
        ("a raw NUL in a string", _with(b'"user":"a\x00b"')),
        ("a raw control character in a string", _with(b'"user":"a\x1bb"')),
        ("a raw NUL in a message", turn(SMUGGLED).replace(b"smug", b"sm\x00g")),
        ("a raw NUL in a text part", _parts(b'"a\x00b"')),
        ("an escape that is none", _with(rb'"user":"\x41"')),
        ("half an escape", _with(rb'"user":"\u12"')),
    ):
        yield _refuse(f"the body: {name}", body, why)


def _parts(text: bytes) -> bytes:
    """A turn whose message is one part with this JSON as its text."""
    return b'{"model":"mock","messages":[{"role":"user","content":[{"type":"text","text":' + text + b"}]}]}"


def text() -> Iterator[Case]:
    """Text that is none, wherever it stands: where we look at it and where it is handed on."""
    why = "RFC 8259, 8.1: UTF-8; what a provider makes of anything else, nobody knows"
    for name, raw in (
        ("a byte that is none", b"\xff"),
        ("half a character", b"\xe2\x82"),
        ("an overlong slash", b"\xc0\xaf"),
        ("an overlong NUL", b"\xc0\x80"),
        ("a surrogate in bytes", b"\xed\xa0\x80"),
        ("a pair of surrogates in bytes", b"\xed\xa0\xbd\xed\xb8\x80"),
        ("a character past the last", b"\xf4\x90\x80\x80"),
        ("a lone surrogate", rb"\ud800"),
        ("a lone low surrogate", rb"\udc00"),
        ("surrogates the wrong way round", rb"\udc00\ud800"),
    ):
        quoted = b'"a' + raw + b'b"'
        message = b'{"model":"mock","messages":[{"role":"user","content":' + quoted + b"}]}"
        yield _refuse(f"{name}, in a message", message, why)
        yield _refuse(f"{name}, in a text part", _parts(quoted), why)
        yield _refuse(f"{name}, in a member handed on", _with(b'"user":' + quoted), why)
        yield _refuse(f"{name}, in a tool", _with(b'"tools":[{"type":"function","x":' + quoted + b"}]"), why)
        yield _refuse(f"{name}, in a model's name", b'{"model":' + quoted + b"," + _MESSAGES + b"}", why)
        yield _refuse(f"{name}, in a member's name", _with(quoted + b":1"), why)
    yield Case("a NUL as an escape, in a message", _said(turn(f"{MARK}\x00")), served(), "JSON like any")


def numbers() -> Iterator[Case]:
    """Numbers that are none, or too much of one."""
    none = "RFC 8259, 6: no number"
    for value in (
        "NaN",
        "Infinity",
        "-Infinity",
        "nan",
        "inf",
        "1e999",
        "-1e999",
        "0x10",
        "01",
        "+1",
        "1.",
        ".5",
        "1_0",
    ):
        for member in ("max_tokens", "temperature", "top_p", "seed", "n"):
            yield _refuse(f"{member} of {value}", _with(f'"{member}":{value}'), none)
    for value in ("NaN", "-Infinity", "0x10", "01", "1."):
        yield _refuse(f"{value}, in a tool", _with(f'"tools":[{{"type":"function","x":{value}}}]'), none)
        yield _refuse(f"{value}, in a hint", _with(f'"penstock":{{"max_latency_ms":{value}}}'), none)
        yield _refuse(f"{value}, beside a message", _members(f'"x":{value}'), none)
    past = "no number that the member may have"
    for member in ("max_tokens", "max_completion_tokens", "n"):
        for value in ("0", "-1", "1.5", '"5"', "true", "[]", "{}", "1e400", "9" * 5000, "-" + "9" * 5000):
            yield _refuse(f"{member} of {value[:8]}", _with(f'"{member}":{value}'), past)
    for value in (2**31, 2**63, 2**64, 10**30, 10**400):
        yield _refuse(f"n of about 2^{value.bit_length()}", _with(f'"n":{value}'), past)
        # The ceiling is lowered to the model's: that much is offered, no more is held.
        for member in ("max_tokens", "max_completion_tokens"):
            body = turn(**{member: value})
            yield Case(f"{member} of about 2^{value.bit_length()}", _said(body), Must((frozenset({200, 400, 402}),),
                       turns=_MAYBE), "more than a model gives is lowered to that, or refused")  # fmt: skip
    for value in ("1e308", "-1e308", "1e-400", "1" + "0" * 400, "0." + "3" * 5000):
        yield Case(
            f"temperature of {value[:6]}",
            _said(turn()[:-1] + f',"temperature":{value}}}'.encode()),
            Must((frozenset({200, 400}),), turns=_MAYBE),
            "a number; its range is the provider's to say",
        )
    for value in ("9" * 5000, "-1", "0", "1e999", "-1e999", "1e300", "[]", '"12x"', "1" + "0" * 30):
        yield _refuse(f"a latency of {value[:8]}", _with(f'"penstock":{{"max_latency_ms":{value}}}'), past)


def _members(more: str) -> bytes:
    return (
        b'{"model":"mock","messages":[{"role":"user","content":"' + SMUGGLED.encode() + b'",' + more.encode() + b"}]}"
    )


def repeated() -> Iterator[Case]:
    """One member, two values: what we judge must be what the provider reads."""
    why = "RFC 8259, 4: nobody knows which one counts"
    model, other = b'"model":"mock"', b'"model":"other"'
    yield _refuse("two models", b"{" + other + b"," + model + b"," + _MESSAGES + b"}", why)
    yield _refuse("two models alike", b"{" + model + b"," + model + b"," + _MESSAGES + b"}", why)
    yield _refuse("two models, one of them escaped", rb'{"mod\u0065l":"other",' + model + b"," + _MESSAGES + b"}", why)
    yield _refuse(
        "two models, far apart", b"{" + model + b" , " + _MESSAGES + b' , "user" : "u" , ' + other + b"}", why
    )
    yield _refuse("two lists of messages", b"{" + model + b',"messages":[],' + _MESSAGES + b"}", why)
    yield _refuse("two ceilings", _with('"max_tokens":1,"max_tokens":100'), why)
    yield _refuse("two streams", _with('"stream":true,"stream":false'), why)
    yield _refuse("two hints", _with('"penstock":{"tags":[]},"penstock":{"data_class":"public"}'), why)
    yield _refuse("a member twice that we do not know", _with('"xyz":1,"xyz":2'), why)
    inner = "where providers read it, we do not: both are looked at, neither is trusted"
    part = '{"type":"image_url","image_url":{"url":"data:,"}}'
    for name, body in (
        ("two contents", turn().replace(b'"role"', b'"content":"x","role"')),
        ("two contents, one an image", turn().replace(b'"role"', f'"content":[{part}],"role"'.encode())),
        ("two roles", turn().replace(b'"role"', b'"role":"system","role"')),
    ):
        yield Case(name, _said(body), Must((frozenset({200, 400, 403}),), turns=_MAYBE), inner)


def deep() -> Iterator[Case]:
    """Nesting without end."""
    why = "nobody means it, and those behind us may break on it"
    for depth in (10_000, 100_000):
        for name, open_, close in (("arrays", "[", "]"), ("objects", '{"a":', "}"), ("both", '[{"a":', "}]")):
            value = open_ * depth + ("1" if open_ != "[" else "") + close * depth
            yield _refuse(f"{depth} {name}", value.encode(), why)
            for member in ("tools", "metadata", "penstock", "response_format", "xyz", "stop"):
                yield _refuse(f"{depth} {name} in {member}", _with(f'"{member}":{value}'), why)
            yield _refuse(f"{depth} {name} as a message", f'{{"model":"mock","messages":{value}}}'.encode(), why)
            yield _refuse(
                f"{depth} {name} as a content", turn().replace(b'"' + MARK.encode() + b'"', value.encode()), why
            )
            yield _refuse(f"{depth} {name} beside a message", _members(f'"x":{value}'), why)
    yield _refuse("10,000 arrays that never end", b"[" * 10_000, why)
    yield _large("15 million arrays that never end", lambda: b"[" * 15_000_000, why)
    yield _large("2 million objects that never end", lambda: b'{"a":' * 2_000_000, why)
    yield _large("7 million arrays in a tool", lambda: _with(b'"tools":' + b"[" * 7_000_000 + b"]" * 7_000_000), why)
    schema: dict[str, object] = {"type": "string"}
    for _ in range(20):
        schema = {"type": "object", "properties": {"a": schema}}
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    yield Case("a tool's schema of 40 levels", _said(turn(tools=[tool])), served(), "deep, and somebody means it")


def wide() -> Iterator[Case]:
    """A great many of something small."""
    why = "so much is never meant; refused before it is made into objects"
    tiny = b'{"type":"text","text":"a"}'

    def turn_of(messages: bytes) -> bytes:
        return b'{"model":"mock","messages":[' + messages + b"]}"

    def listed(item: bytes, count: int) -> bytes:
        return b",".join([item] * count)

    message = b'{"role":"user","content":"a"}'
    yield _large("half a million tiny parts",
                 lambda: turn_of(b'{"role":"user","content":[' + listed(tiny, 500_000) + b"]}"), why)  # fmt: skip
    yield _large(
        "half a million tiny parts, the last no text",
        lambda: turn_of(
            b'{"role":"user","content":[' + listed(tiny, 500_000) + b',{"type":"image_url","image_url":{}}]}'
        ),
        why,
    )
    yield _large("five million empty parts",
                 lambda: turn_of(b'{"role":"user","content":[' + listed(b"{}", 5_000_000) + b"]}"), why)  # fmt: skip
    yield _large("half a million messages", lambda: turn_of(listed(message, 500_000)), why)
    yield _large("five million empty messages", lambda: turn_of(listed(b"{}", 5_000_000)), why)
    yield _large("seven million numbers as messages", lambda: turn_of(listed(b"0", 7_000_000)), why)
    yield _large(
        "a million messages, the last one wrong", lambda: turn_of(listed(b'{"role":""}', 1_000_000) + b",0"), why
    )
    yield _large("half a million messages with parts",
                 lambda: turn_of(listed(b'{"role":"u","content":[{}]}', 500_000)), why)  # fmt: skip
    for name, value in (
        ("seven million stops", lambda: b'"stop":[' + listed(b"0", 7_000_000) + b"]"),
        ("a million logit biases", lambda: b'"logit_bias":{' + _numbered(1_000_000) + b"}"),
        ("a million entries of metadata", lambda: b'"metadata":{' + _numbered(1_000_000) + b"}"),
        ("a million tags", lambda: b'"penstock":{"tags":[' + listed(b'"a"', 1_000_000) + b"]}"),
        ("a million hints", lambda: b'"penstock":{' + _numbered(1_000_000) + b"}"),
        ("a million modalities", lambda: b'"modalities":[' + listed(b'"text"', 1_000_000) + b"]"),
        ("a million members", lambda: _numbered(1_000_000)),
        ("a million members of one name", lambda: listed(b'"a":1', 1_000_000)),
        ("a number of 10 million digits", lambda: b'"seed":' + b"9" * 10_000_000),
        ("a ceiling of 10 million digits", lambda: b'"max_tokens":' + b"9" * 10_000_000),
        ("a number of 10 million places", lambda: b'"temperature":0.' + b"3" * 10_000_000),
        ("a member's name of 10 MB", lambda: b'"' + b"k" * 10_000_000 + b'":1'),
        ("a user's name of 10 MB", lambda: b'"user":"' + b"u" * 10_000_000 + b'"'),
        ("10 MB of space", lambda: b" " * 10_000_000 + b'"a":1'),
        ("a tier of 10 MB", lambda: b'"service_tier":"' + b"u" * 10_000_000 + b'"'),
    ):
        yield _large(name, lambda value=value: _with(value()), why)


def _numbered(count: int) -> bytes:
    return b",".join(b'"%d":1' % at for at in range(count))


def long() -> Iterator[Case]:
    """Much of what may be much: within the bound of a body it is handed on, whether a model takes it or not."""
    why = "no longer than a body may be; what a model makes of it is its provider's to say"
    handed_on = Must((frozenset({200, 400, 402, 413}),), turns=_MAYBE, seconds=20)
    mark = MARK.encode()
    for name, body in (
        ("a message of 15 MB", lambda: turn(MARK + "x" * 15_000_000)),
        ("a message of 15 MB of emoji", lambda: turn().replace(mark, mark + "\U0001f600".encode() * 3_700_000)),
        ("a message of 15 MB of escapes", lambda: turn().replace(mark, mark + rb"\u0041" * 2_500_000)),
        (
            "a message of 15 MB and an emoji",
            lambda: turn().replace(mark, mark + b"x" * 15_000_000 + b"\xf0\x9f\x98\x80"),
        ),
        ("a message of 15 MB of braces", lambda: turn(MARK + "{" * 15_000_000)),
        ("a million tools", lambda: turn(tools=[{}] * 1_000_000)),
    ):
        yield Case(name, _made(body), handed_on, why, quick=False)
    cards = Must((frozenset({200, 400, 403, 413}),), turns=_MAYBE, seconds=20)
    yield Case("a message of 15 MB of card numbers", _made(lambda: turn(MARK + "4111111111111111 " * 880_000)), cards,
               "looked through, though not to the end", quick=False)  # fmt: skip


def names() -> Iterator[Case]:
    """Models nobody has declared."""
    why = "no such model, and nothing of its name but in the answer"
    for told, name in (
        ("empty", ""),
        ("in other letters", "\u30e2\u30c7\u30eb"),
        ("with a NUL", "mock\x00"),
        ("with a line end", "mock\r\nX-Injected: y"),
        ("in wide letters", "\uff4d\uff4f\uff43\uff4b"),
        ("with a joiner", "mo\u200dck"),
        ("written backwards", "\u202ekcom"),
        ("beyond the first plane", "\U0001f600"),
        ("as a path", "../../../etc/passwd"),
        ("as a query", "' OR '1'='1"),
        ("as a template", "{{7*7}}${jndi:ldap://x}"),
        ("with a percent", "%s%n%00"),
        ("of 100 KB", "m" * 100_000),
    ):
        body = json.dumps({"model": name, "messages": [{"role": "user", "content": SMUGGLED}]}).encode()
        yield _refuse(f"a model's name {told}", body, why, 400, 404)
    for told, value in (("null", "null"), ("a number", "5"), ("a list", '["mock"]'), ("an object", "{}")):
        yield _refuse(f"a model's name that is {told}", b'{"model":' + value.encode() + b"," + _MESSAGES + b"}", why)
    for told, value in (
        ("a NUL", '"a\\u0000b"'),
        ("128 emoji", '"' + "\U0001f600" * 128 + '"'),
        ("10 KB", '"' + "u" * 10_000 + '"'),
    ):
        yield _refuse(
            f"a use case of {told}", _with(f'"penstock":{{"use_case":{value}}}'), "no such use case", 400, 403
        )
        body = turn()[:-1] + f',"penstock":{{"tags":[{value}]}}}}'.encode()
        yield Case(f"a tag of {told}", _said(body), Must((frozenset({200, 400}),), turns=_MAYBE), "a label")
    for told, value in (("null", "null"), ("true", "true"), ("an object", "{}"), ("empty", "[]"), ("of null", "[null]"),
                        ("of a number", "[1]"), ("of text", '["x"]'), ("without a role", '[{"content":"x"}]'),
                        ("with a number as its content", '[{"role":"user","content":5}]'),
                        ("with a number as its role", '[{"role":5,"content":"x"}]'),
                        ("with numbers as its parts", '[{"role":"user","content":[1]}]')):  # fmt: skip
        yield _refuse(f"messages: {told}", f'{{"model":"mock","messages":{value}}}'.encode(), "no list of messages")
    for member, value in (("stream", '"yes"'), ("stream", "1"), ("stream_options", "[]"), ("stream_options", "5"),
                          ("modalities", '"text"'), ("service_tier", "5"), ("service_tier", '"flex"'),
                          ("metadata", '{"a":{}}'), ("metadata", "[]"), ("penstock", "[]"), ("penstock", '"x"'),
                          ("penstock", '{"data_class":[]}'), ("penstock", '{"data_class":"secret"}'),
                          ("penstock", '{"tags":5}'), ("best_of", "5"), ("chat_template", '"x"')):  # fmt: skip
        yield _refuse(f"{member} of {value}", _with(f'"{member}":{value}'), "another type or value than it has")


def coded() -> Iterator[Case]:
    """Bodies in a coding."""
    why = "RFC 9110, 8.4: 415 for a coding that is not read here; nothing is unpacked"
    body = turn(SMUGGLED)
    squeezed = zlib.compressobj(9, zlib.DEFLATED, 31)
    bomb = b"".join(squeezed.compress(b" " * 1_000_000) for _ in range(300)) + squeezed.flush()
    yield Case("a bomb of gzip, 300 MB of it", (post(bomb, _TYPE, "Content-Encoding: gzip"),), answered(415), why)
    yield Case("a bomb of gzip in gzip", (post(gzip.compress(bomb), _TYPE, "Content-Encoding: gzip, gzip"),),
               answered(415), why)  # fmt: skip
    for coding, data in (
        ("gzip", gzip.compress(body)),
        ("deflate", zlib.compress(body)),
        ("br", body),
        ("zstd", body),
        ("x-unknown", body),
        ("identity, gzip", gzip.compress(body)),
        ("GZIP", gzip.compress(body)),
    ):
        yield Case(f"a body in {coding}", (post(data, _TYPE, f"Content-Encoding: {coding}"),), answered(415), why)
    yield Case("a body in identity", (post(turn(), _TYPE, "Content-Encoding: identity"),), served(), "no coding")
    yield Case("gzip for the control plane", (head("POST /api/keys HTTP/1.1", _TYPE, f"Content-Length: {len(bomb)}",
               "Content-Encoding: gzip") + bomb,), answered(400, 403, 415, 422), "nothing is unpacked")  # fmt: skip
    yield Case("a bomb without a name", _said(bomb), answered(400), "no JSON")
    for kind in ("text/plain", "application/json; charset=utf-16", "multipart/form-data; boundary=x", "x" * 1000):
        yield Case(f"JSON as {kind[:32]}", (post(turn(), f"Content-Type: {kind}"),), Must((frozenset({200, 415}),),
                   turns=_MAYBE), "the endpoint reads JSON, whatever it is called")  # fmt: skip


def documents() -> Iterator[Case]:
    """All of them."""
    for made in (no_json, text, numbers, repeated, deep, wide, long, names, coded):
        yield from made()
