"""Where each operation of each dialect goes, with what, and what is read from its answer; over each carrier."""

import asyncio
from collections.abc import AsyncIterator, Callable

import msgspec
import pytest

from kernel import Chunk, Component, ModelRequest, Operation
from router import Address, UpstreamBroken, Upstreams, UpstreamSettings, UpstreamUnreachable
from tests.fakes.routing import TARGET, Sent, catalogue, chat, upstreams_of
from tests.fakes.scripted_upstream import CUT, LAST_CHUNK, REPLY, STREAM_HEAD, ScriptedUpstream, chunked, whole
from tests.fakes.upstream_subjects import CARRIERS, PATIENT, SECRET

MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "content": [{"type": "text", "text": "hi"}],
    "usage": {
        "input_tokens": 3,
        "output_tokens": 9,
        "cache_read_input_tokens": 20,
        "cache_creation_input_tokens": 7,
        "cache_creation": {"ephemeral_5m_input_tokens": 5, "ephemeral_1h_input_tokens": 2},
        "output_tokens_details": {"thinking_tokens": 4},
    },
}
COUNTED = {
    Component.INPUT: 3,
    Component.CACHED_INPUT: 20,
    Component.CACHE_WRITE: 5,
    Component.CACHE_WRITE_1H: 2,
    Component.OUTPUT: 5,
    Component.REASONING: 4,
}
EMBEDDED = {"object": "list", "data": [], "model": "big", "usage": {"prompt_tokens": 8, "total_tokens": 8}}
START = {"type": "message_start", "message": {"id": "msg_1", "usage": {**MESSAGE["usage"], "output_tokens": 1}}}
EVENTS = [
    START,
    {"type": "ping"},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "hi"}},
    {"type": "content_block_stop", "index": 0},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 9}},
    {"type": "message_stop"},
]
TRANSLATED_BY = "translator-token"


def asked(operation: Operation, *, stream: bool = False, **headers: str) -> ModelRequest:
    return msgspec.structs.replace(chat(stream=stream, limit=50), operation=operation, headers=headers)


def named(*events: dict) -> bytes:
    return b"".join(b"event: %b\ndata: %b\n\n" % (each["type"].encode(), msgspec.json.encode(each)) for each in events)


async def exhaust(stream: AsyncIterator[Chunk]) -> None:
    async for _ in stream:
        pass


@pytest.fixture(params=CARRIERS)
async def made(request, server: ScriptedUpstream, clock) -> AsyncIterator[Callable[..., Upstreams]]:
    opened: list[Upstreams] = []

    def make(**provider: object) -> Upstreams:
        async def address() -> Address:
            return Address(server.url, TRANSLATED_BY)

        settings = UpstreamSettings()
        known = catalogue(**{"base_url": server.url, "credential": "key", **PATIENT, **provider})
        carrier = CARRIERS[request.param](settings)
        opened.append(upstreams_of(known, lambda _: SECRET, clock, settings, carrier=carrier, translator=address))
        return opened[-1]

    yield make
    for upstreams in opened:
        await upstreams.close()


@pytest.mark.parametrize(
    ("dialect", "operation", "path"),
    [
        ("openai", Operation.CHAT, "/v1/chat/completions"),
        ("openai", Operation.COMPLETIONS, "/v1/completions"),
        ("openai", Operation.EMBEDDINGS, "/v1/embeddings"),
        ("vllm", Operation.CHAT, "/v1/chat/completions"),
        ("vllm", Operation.MESSAGES, "/v1/messages"),
        ("vllm", Operation.COUNT_TOKENS, "/v1/messages/count_tokens"),
        ("anthropic", Operation.MESSAGES, "/v1/messages"),
        ("anthropic", Operation.COUNT_TOKENS, "/v1/messages/count_tokens"),
    ],
)
async def test_a_native_operation_goes_to_the_provider_as_it_came(made, server, dialect, operation, path) -> None:
    reply = {Operation.MESSAGES: MESSAGE, Operation.COUNT_TOKENS: {"input_tokens": 5}}.get(operation, REPLY)
    server.will(whole(reply))
    told = await made(dialect=dialect).complete(TARGET, asked(operation), Sent().call())
    (request,) = server.requests
    assert request.line == f"POST {path} HTTP/1.1"
    key = "x-api-key" if dialect == "anthropic" else "authorization"
    assert request.headers[key].removeprefix("Bearer ") == SECRET
    assert ("authorization" in request.headers) is (dialect != "anthropic")
    assert not [name for name in request.headers if name.startswith("x-penstock")]
    assert request.json["model"] == "big"
    unlimited = {Operation.EMBEDDINGS, Operation.COUNT_TOKENS}
    assert request.json.get("max_tokens") == (None if operation in unlimited else 50)
    assert msgspec.json.decode(told.body) == reply


@pytest.mark.parametrize(
    ("declared", "operation", "path", "order"),
    [
        ({"dialect": "openai"}, Operation.MESSAGES, "messages", {"provider": "openai"}),
        ({"dialect": "openai"}, Operation.COUNT_TOKENS, "messages/count_tokens", {"provider": "openai"}),
        ({"dialect": "anthropic"}, Operation.CHAT, "chat/completions", {"provider": "anthropic"}),
        (
            {"dialect": "translated", "translate_as": "azure", "api_version": "2026-01-01", "headers": {"x-team": "b"}},
            Operation.EMBEDDINGS,
            "embeddings",
            {"provider": "azure", "api-version": "2026-01-01", "headers": '{"x-team":"b"}'},
        ),
        (
            {"dialect": "translated", "translate_as": "gemini"},
            Operation.CHAT,
            "chat/completions",
            {"provider": "gemini"},
        ),
    ],
)
async def test_anything_else_is_ordered_from_the_translator(made, server, declared, operation, path, order) -> None:
    server.will(whole(MESSAGE if operation is Operation.MESSAGES else REPLY))
    await made(**declared).complete(TARGET, asked(operation), Sent().call())
    (request,) = server.requests
    assert request.line == f"POST /v1/{path} HTTP/1.1"
    assert request.headers["authorization"] == f"Bearer {TRANSLATED_BY}"
    told = {name.removeprefix("x-penstock-"): value for name, value in request.headers.items() if "x-penstock" in name}
    assert told == {"credential": SECRET, "base-url": server.url, "seconds": "10", **order}


async def test_without_a_translator_nothing_is_sent_and_the_cure_is_named(server, clock) -> None:
    known = catalogue(dialect="translated", translate_as="gemini", base_url=server.url)
    upstreams, sent = upstreams_of(known, lambda _: None, clock), Sent()
    with pytest.raises(UpstreamUnreachable, match="translator"):
        await upstreams.complete(TARGET, asked(Operation.CHAT), sent.call())
    assert (sent.times, server.requests) == (0, [])


async def test_the_version_is_handed_on_and_flags_only_where_they_are_declared(made, server) -> None:
    server.will(whole(MESSAGE))
    headers = {"anthropic-version": "2026-10-21", "anthropic-beta": "one, two,three"}
    await made(dialect="anthropic", betas=["three", "one"]).complete(
        TARGET, asked(Operation.MESSAGES, **headers), Sent().call()
    )
    (request,) = server.requests
    assert request.headers["anthropic-version"] == "2026-10-21"
    assert request.headers["anthropic-beta"] == "one,three"


async def test_usage_is_read_from_each_wire(made, server) -> None:
    server.will(whole(MESSAGE))
    anthropic = made(dialect="anthropic")
    assert (await anthropic.complete(TARGET, asked(Operation.MESSAGES), Sent().call())).usage.tokens == COUNTED
    server.will(whole({"input_tokens": 5}))
    assert (await anthropic.complete(TARGET, asked(Operation.COUNT_TOKENS), Sent().call())).usage.tokens == {}
    server.will(whole(EMBEDDED))
    told = await made(dialect="openai").complete(TARGET, asked(Operation.EMBEDDINGS), Sent().call())
    assert told.usage.tokens == {Component.INPUT: 8, Component.OUTPUT: 0}


async def test_the_translators_own_count_comes_first(made, server) -> None:
    counted = {"input": 1, "cache_write_1h": 2, "output": 3}
    server.will(whole({**REPLY, "usage": {**REPLY["usage"], "components": counted}}))
    told = await made(dialect="anthropic").complete(TARGET, asked(Operation.CHAT), Sent().call())
    assert told.usage.tokens == counted


async def test_a_stream_of_named_events_is_handed_on_with_their_names(made, server) -> None:
    server.will(STREAM_HEAD + chunked(named(*EVENTS)) + LAST_CHUNK)
    stream = made(dialect="anthropic").stream(TARGET, asked(Operation.MESSAGES, stream=True), Sent().call())
    chunks = [chunk async for chunk in stream]
    assert [chunk.event for chunk in chunks] == [each["type"] for each in EVENTS]
    assert [chunk.content for chunk in chunks] == [False, False, False, True, False, True, True]
    assert [chunk.event for chunk in chunks if chunk.usage] == ["message_delta"]
    assert chunks[5].usage.tokens == COUNTED
    assert [chunk.final for chunk in chunks] == [False] * 5 + [True] * 2
    assert {chunk.provider_request_id for chunk in chunks} == {"req-7"}
    assert server.requests[0].headers["accept"] == "text/event-stream"
    assert "stream_options" not in server.requests[0].json
    assert server.requests[0].json["service_tier"] == "standard_only"


@pytest.mark.parametrize("events", range(len(EVENTS)))
async def test_a_stream_of_named_events_that_is_cut_never_ends_quietly(made, server, events: int) -> None:
    server.will(STREAM_HEAD + chunked(named(*EVENTS[:events])), CUT)
    stream = made(dialect="anthropic").stream(TARGET, asked(Operation.MESSAGES, stream=True), Sent().call())
    if events == len(EVENTS) - 1:  # only that it is over was not said
        chunks = [chunk async for chunk in stream]
        assert [chunk.event for chunk in chunks] == [each["type"] for each in EVENTS], "callers wait for its end"
        assert chunks[-1].final
        return
    with pytest.raises(UpstreamBroken):
        await exhaust(stream)


@pytest.mark.parametrize(
    "wrong",
    [
        {"type": "error", "error": {"type": "overloaded_error", "message": "x"}},
        {"type": "two\nlines"},
        {"no": "type"},
        "[DONE]",
    ],
)
async def test_an_error_or_nonsense_among_named_events_breaks_the_stream(made, server, wrong) -> None:
    data = wrong.encode() if isinstance(wrong, str) else msgspec.json.encode(wrong)
    server.will(STREAM_HEAD + chunked(named(START) + b"data: " + data + b"\n\n") + LAST_CHUNK)
    stream = made(dialect="anthropic").stream(TARGET, asked(Operation.MESSAGES, stream=True), Sent().call())
    with pytest.raises(UpstreamBroken):
        await asyncio.wait_for(exhaust(stream), 5)


async def test_a_connection_is_used_again_after_the_last_named_event(made, server) -> None:
    server.will(STREAM_HEAD + chunked(named(*EVENTS)) + LAST_CHUNK)
    upstreams = made(dialect="anthropic")
    async for _ in upstreams.stream(TARGET, asked(Operation.MESSAGES, stream=True), Sent().call()):
        pass
    server.will(whole(MESSAGE))
    await upstreams.complete(TARGET, asked(Operation.MESSAGES), Sent().call())
    assert server.connections == 1
