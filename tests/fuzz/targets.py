"""What is fuzzed: one function per reader of bytes that come from outside; it raises where a promise does not hold.

Plain functions of bytes, so that the same ones run under a fuzzer, over the committed corpora and by hand. A refusal
that the reader promises is its answer and no finding; any other exception is one.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from time import process_time
from types import MappingProxyType, SimpleNamespace
from typing import Any

from cost import InvalidInvoice, read_csv, read_jsonl
from gateway.dialect import read_chat, read_completion, read_embedding
from gateway.errors import InvalidRequest, UnsupportedEncoding
from gateway.messages import read_count, read_message
from governance import declarations
from governance.errors import TooLarge
from kernel import Chunk, Component, InvalidDeclaration, ModelRequest, Operation, Target, Usage
from router import anthropic, openai
from router.errors import UpstreamBroken, UpstreamOverlong
from router.sse import EventParser
from tests.fuzz.http import spoken

_EVENT_BYTES_MAX = 64
_LONG_BYTES = 256 * 1024
_SECONDS_MAX = 2.0  # linear is a tenth of it, quadratic a minute
_KINDS = ("department", "app", "policy", "model")
_TARGET = Target("t", "p", "upstream", context_tokens=8192, output_tokens_max=256)
_PROVIDER: Any = SimpleNamespace(dialect="anthropic", output_limit_field="max_completion_tokens")
_READERS = (read_chat, read_completion, read_embedding, read_message, read_count)
_ANTHROPIC = frozenset({Operation.MESSAGES, Operation.COUNT_TOKENS})


class Broken(Exception):
    """A promise that does not hold; the message says which."""


def require(holds: object, promise: str) -> None:
    """Raise Broken unless it holds; not by `assert`, which may be switched off."""
    if not holds:
        raise Broken(promise)


def pieces(data: bytes) -> tuple[int, bytes]:
    """A number from the first byte, and the rest."""
    return (data[0], data[1:]) if data else (0, b"")


def cut(stream: bytes, size: int) -> Iterator[bytes]:
    """The stream in blocks of that size."""
    return (stream[at : at + size] for at in range(0, len(stream), size))


def sse(data: bytes) -> None:
    """Any split gives the same events and the same refusal."""
    told, stream = pieces(data)
    whole = _events([stream])
    for size in {1, 1 + told % 7, 1 + told}:
        require(_events(cut(stream, size)) == whole, f"blocks of {size} give other events")


def require_linear(data: bytes) -> None:
    """Again and again the same, in small blocks, takes an event parser no longer than its bytes do.

    Beside `sse`, because it takes long even so.
    """
    stream = data[1:] or b"data"
    began = process_time()
    _events(cut(stream * (_LONG_BYTES // len(stream) + 1), 16), bytes_max=2 * _LONG_BYTES)
    require(process_time() - began < _SECONDS_MAX, "its time is not linear in the bytes")


def _events(blocks: Iterable[bytes], bytes_max: int = _EVENT_BYTES_MAX) -> tuple[list[bytes], bool]:
    parser, events = EventParser(bytes_max), list[bytes]()
    try:
        for block in blocks:
            for event in parser.feed(block):
                events.append(event)
    except UpstreamOverlong:
        return events, True
    require(all(events), "an event without data was given out")
    return events, False


def answer(data: bytes) -> None:
    """A streamed answer in either wire: read or refused, and what callers are told of an event is that event."""
    told, stream = pieces(data)
    reader = openai.AnswerReader(choices=1 + told // 2 % 3) if told % 2 else anthropic.AnswerReader()
    events, _ = _events([stream], bytes_max=1 << 20)
    try:
        for event in events:
            _check_chunk(reader.read(event), event)
        reader.require_whole()
        reader.require_finished()
    except UpstreamBroken:
        return


def _check_chunk(chunk: Chunk, event: bytes) -> None:
    framed, _ = _events([b"event: %b\ndata: %b\n\n" % (chunk.event.encode(), chunk.data)], bytes_max=1 << 20)
    require(framed == [chunk.data], "a caller would be told another event, or several")
    require(_read(chunk.data) == _read(event), "a caller would be told another event")
    _check_counts(chunk.usage)


def reply(data: bytes) -> None:
    """A whole answer or refusal of a provider: read as it stands, its tokens split into parts that add up."""
    told, body = pieces(data)
    operation = tuple(Operation)[told % 5]
    openai.read_refusal(_TARGET, (400, 413, 422, 500)[told // 5 % 4], body=body, credential="sk-1")
    try:
        if operation in _ANTHROPIC:
            read = anthropic.read_reply(body, None, operation)
        else:
            read = openai.read_reply(body, None, operation)
    except UpstreamBroken:
        return
    require(read.body is body, "the body was changed")
    _check_counts(read.usage)
    usage = (_read(body) or {}).get("usage")
    if read.usage is not None and isinstance(usage, dict) and "components" not in usage:
        _check_sums(operation, read.usage, {name: _count(value) for name, value in usage.items()}, usage)


def _check_sums(operation: Operation, usage: Usage, told: Mapping[str, int], raw: Mapping[str, Any]) -> None:
    """Every token that the provider told of is in one of the parts, and no other is."""
    into, out = usage.input_tokens, usage.output_tokens
    if operation is Operation.MESSAGES:
        parts = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
        more = into - sum(told.get(part, 0) for part in parts)
        require(more >= 0 if raw.get("cache_creation") else more == 0, "input does not add up")
        require(out == told["output_tokens"], "output does not add up")
    elif operation is Operation.EMBEDDINGS:
        require(into == max(told.get("prompt_tokens", 0), told.get("total_tokens", 0)), "input does not add up")
        require(out == 0, "output was made up")
    elif operation is not Operation.COUNT_TOKENS:
        require(into == told["prompt_tokens"], "input does not add up")
        require(out == max(told["completion_tokens"], told.get("total_tokens", 0) - into), "output does not add up")


def _count(value: object) -> int:
    return value if type(value) is int and value >= 0 else 0


def _check_counts(usage: Usage | None) -> None:
    for part, count in () if usage is None else usage.tokens.items():
        require(isinstance(part, Component) and type(count) is int and count >= 0, "a count is none")


def body(data: bytes) -> None:
    """A caller's body at each door: refused, or JSON for everybody that is handed on member by member."""
    told, sent = pieces(data)
    try:
        request = _READERS[told % 5](sent, {})
    except (InvalidRequest, UnsupportedEncoding):
        return
    members = _members(sent)
    require(request.model == members["model"], "another model is asked for")
    require(request.fields.keys() <= members.keys(), "a member was made up")
    for name, raw in request.fields.items():
        if name == "metadata" and members[name] is not None:
            require(_json(bytes(raw)).items() <= members[name].items(), "metadata says something else")
        elif name != "service_tier":
            require(_json(bytes(raw)) == members[name], f"{name[:20]} was changed")
    if request.input_tokens_max:
        prompt = sum(len(text.encode(errors="replace")) for text in _texts(members.get("messages", [])))
        require(request.input_tokens_max >= prompt, "the bound is below the prompt's bytes")
    _check_sent(request, members)


def _check_sent(request: ModelRequest, members: Mapping[str, Any]) -> None:
    is_anthropic = request.operation in _ANTHROPIC
    encoded = (
        anthropic.encode(request, _TARGET, _PROVIDER) if is_anthropic else openai.encode(request, _TARGET, _PROVIDER)
    )
    sent = _json(encoded)
    require(sent["model"] == "upstream", "the provider is asked for another model")
    ours = {"model", "max_tokens", "max_completion_tokens", "stream", "stream_options", "service_tier"}
    for name in sent.keys() - ours - {"metadata"}:
        require(sent[name] == members[name], f"the provider is told another {name[:20]}")


def declared(data: bytes) -> None:
    """A declarative file: refused, or the same again after it was written out."""
    try:
        found = declarations.parse(data.decode(errors="replace"), _KINDS)
    except (InvalidDeclaration, TooLarge):
        return
    again = declarations.parse(declarations.render(found), _KINDS)
    require(sorted(map(repr, again)) == sorted(map(repr, found)), "written out and read again it is another")


def invoice(data: bytes) -> None:
    """An invoice in either form: refused as such, or lines that have a name and counts."""
    told, text = pieces(data)
    try:
        lines = (read_csv if told % 2 else read_jsonl)(text.decode(errors="replace"))
    except InvalidInvoice:
        return
    for line in lines:
        require(line.provider_request_id or line.client_request_id, "a line belongs to no call")
        _check_counts(Usage(line.tokens))


def http(data: bytes) -> None:
    """Requests of one connection: the same ones however their bytes are split, and none of them holds it up."""
    told, stream = pieces(data)
    stream = stream.replace(b"@64K@", b"x" * 65_537)
    whole = spoken([stream])
    require(not whole.is_held_up, "nothing is read any more, and nothing is answered")
    if len(stream) < len(data) and not whole.is_unread:  # what is long is refused by how much comes at once
        parts = spoken(cut(stream, 1 + told))
        require(parts.requests == whole.requests, f"blocks of {1 + told} are other requests")
        require(not parts.is_held_up, "nothing is read any more, and nothing is answered")


def _json(text: bytes) -> Any:
    return json.loads(text.decode())


def _members(text: bytes) -> dict[str, Any]:
    """The body's own members. Raises Broken where one is there twice."""
    names: list[str] = []

    def of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names[:] = [name for name, _ in pairs]  # the outermost object is the last one to be read
        return dict(pairs)

    members: dict[str, Any] = json.loads(text.decode(), object_pairs_hook=of)
    require(len(names) == len(members), "a member is there twice, and nobody knows which is meant")
    return members


def _read(text: bytes) -> Any:
    """What a provider said, which is handed on as it came; None where what nobody reads here is no JSON."""
    try:
        return _json(text)
    except ValueError:
        return None


def _texts(value: object) -> Iterator[str]:
    """Every string of a value that a template could show."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _texts(each)
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each)


@dataclass(frozen=True, slots=True)
class Fuzzed:
    """A target, and the words of its language, which no fuzzer should have to guess."""

    check: Callable[[bytes], None]
    words: tuple[bytes, ...]


def _names(*names: str) -> tuple[bytes, ...]:
    return tuple(f'"{name}":'.encode() for name in names)


_JSON_WORDS = (b"null", b"true", b"1e5", b'"\\ud800"', b"[]", b"{}", b'""', b"-1", b"9" * 20)
_OPENAI_WORDS = _names(
    "id", "choices", "index", "delta", "content", "finish_reason", "usage", "error", "prompt_tokens",
    "completion_tokens", "total_tokens", "prompt_tokens_details", "cached_tokens", "completion_tokens_details",
    "reasoning_tokens", "components", "text", "message", "code", "param",
)  # fmt: skip
_ANTHROPIC_WORDS = _names(
    "type", "message", "content_block", "delta", "stop_reason", "input_tokens", "output_tokens", "cache_creation",
    "cache_read_input_tokens", "cache_creation_input_tokens", "ephemeral_1h_input_tokens",
)  # fmt: skip
_BODY_WORDS = _names(
    "model", "messages", "role", "content", "type", "text", "stream", "stream_options", "include_usage", "n",
    "max_tokens", "max_completion_tokens", "service_tier", "metadata", "penstock", "tags", "data_class",
    "max_latency_ms", "use_case", "tools", "prompt", "input", "store", "modalities", "system", "best_of",
)  # fmt: skip
_FRAME_WORDS = (b"data: ", b"\n\n", b"\r\n", b"\r", b"event: ", b": ", b"\xef\xbb\xbf", b"data", b"[DONE]")
_HTTP_WORDS = (
    b"GET ", b"POST ", b"HEAD ", b"OPTIONS ", b"CONNECT ", b" HTTP/1.1\r\n", b" HTTP/1.0\r\n", b"host: a\r\n",
    b"content-length: 3\r\n", b"transfer-encoding: chunked\r\n", b"connection: close\r\n", b"upgrade: h2c\r\n",
    b"expect: 100-continue\r\n", b"\r\n\r\n", b"0\r\n\r\n", b"3\r\nabc\r\n", b"10001\r\n@64K@\r\n", b"@64K@",
    b"content-length: 65537\r\n", b"http://a/", b"%41", b"trailer: x\r\n",
)  # fmt: skip

TARGETS: Mapping[str, Fuzzed] = MappingProxyType(
    {
        "sse": Fuzzed(sse, _FRAME_WORDS),
        "answer": Fuzzed(answer, (*_FRAME_WORDS, *_JSON_WORDS, *_OPENAI_WORDS, *_ANTHROPIC_WORDS)),
        "reply": Fuzzed(reply, (*_JSON_WORDS, *_OPENAI_WORDS, *_ANTHROPIC_WORDS)),
        "body": Fuzzed(body, (*_JSON_WORDS, *_BODY_WORDS)),
        "declared": Fuzzed(declared, (b"apps:", b"- name: ", b"!!", b"!!int ", b"&a ", b"*a", b"? ", b"|\n ", b"<<: ")),
        "invoice": Fuzzed(invoice, (*_names("tokens", "client_request_id", "input"), b"provider_request_id,input\n")),
        "http": Fuzzed(http, _HTTP_WORDS),
    }
)
