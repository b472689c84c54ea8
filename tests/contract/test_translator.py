"""The translator as a process: what it promises in its first lines, against a provider that follows a script."""

import asyncio
import base64
import io
import struct
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.fakes.scripted_upstream import (
    CUT,
    DONE,
    EVENTS,
    FIN,
    HOLD,
    LAST_CHUNK,
    REPLY,
    RESET,
    ROLE,
    STREAM_HEAD,
    ScriptedUpstream,
    Wait,
    chunked,
    event,
    finished,
    said,
    whole,
)
from tests.fakes.translators import Answered, RunningTranslator, running_translator

CHAT, MESSAGES, COUNT = "/v1/chat/completions", "/v1/messages", "/v1/messages/count_tokens"
HELLO = {"model": "m-1", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 16}
STREAMED = HELLO | {"stream": True}
WHOLE_STREAM = (STREAM_HEAD, chunked(*EVENTS), LAST_CHUNK)


@pytest.fixture(scope="module")
def translator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningTranslator]:
    environment = {
        "OPENAI_API_KEY": "from-the-environment",
        "HTTPS_PROXY": "http://127.0.0.1:9",
        "LITELLM_LOG": "DEBUG",
    }
    with running_translator(tmp_path_factory.mktemp("translator"), environment) as running:
        yield running


@pytest.fixture
async def provider() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream() as scripted:
        scripted.will(whole(REPLY, "x-request-id: req-7"))
        yield scripted


@pytest.fixture
def ask(translator: RunningTranslator, provider: ScriptedUpstream) -> Any:
    async def asking(body: object = HELLO, path: str = CHAT, **headers: str) -> Answered:
        return await translator.ask(path, body, translator.headers("openai", provider.url, **headers))

    return asking


async def test_a_call_carries_the_credential_and_the_headers_it_was_given(ask, provider) -> None:
    told = {"X_Penstock_Headers": '{"X-Team": "blue"}', "X_Client_Request_Id": "turn_1/1"}
    answer = await ask(**told)
    assert (answer.status, answer.text, answer.headers["x-request-id"]) == (200, "Hello there", "req-7")
    asked = provider.requests[0]
    assert asked.line == "POST /v1/chat/completions HTTP/1.1"
    seen = {name: asked.headers[name] for name in ("authorization", "x-team", "x-client-request-id", "accept-encoding")}
    assert seen == {
        "authorization": "Bearer sim-key",
        "x-team": "blue",
        "x-client-request-id": "turn_1/1",
        "accept-encoding": "identity",
    }
    assert asked.json["model"] == "m-1"


@pytest.mark.parametrize("credential", [None, '{"aws_region_name": "eu-central-1"}'])
async def test_no_credential_comes_from_the_environment(translator, provider, credential: str | None) -> None:
    headers = translator.headers("openai", provider.url)
    del headers["X-Penstock-Credential"]
    if credential is not None:  # of several parts, none of which OpenAI has a use for
        headers["X-Penstock-Credential"] = credential
    await translator.ask(CHAT, HELLO, headers)
    assert not any("from-the-environment" in value for each in provider.requests for value in each.headers.values())


async def test_usage_is_counted_from_the_providers_own_words(ask, provider) -> None:
    details = {"cached_tokens": 3, "cache_write_tokens": 2, "audio_tokens": 1}
    raw = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13, "prompt_tokens_details": details}
    raw["completion_tokens_details"] = {"reasoning_tokens": 3}
    provider.will(whole(REPLY | {"usage": raw}))
    usage = (await ask()).json["usage"]
    parts = {"input": 3, "cached_input": 3, "cache_write": 2, "audio_input": 1, "output": 1, "reasoning": 3}
    assert usage["components"] == parts
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (9, 4, 13)


async def test_where_the_provider_told_no_usage_none_is_made_up(ask, provider) -> None:
    provider.will(whole({name: value for name, value in REPLY.items() if name != "usage"}))
    assert "usage" not in (await ask()).json
    provider.will(STREAM_HEAD, chunked(ROLE, said("Hello"), finished(), DONE), LAST_CHUNK)
    answer = await ask(STREAMED)
    assert answer.events[-1] == "[DONE]"
    assert not any(each.get("usage") for each in answer.events[:-1])


async def test_a_stream_ends_with_its_usage_and_done(ask, provider) -> None:
    provider.will(*WHOLE_STREAM)
    answer = await ask(STREAMED)
    assert answer.text == "Hello there"
    *chunks, last, done = answer.events
    assert (done, last["choices"], last["usage"]["components"]) == ("[DONE]", [], {"input": 7, "output": 2})
    assert not any("usage" in each for each in chunks)
    assert [each["choices"][0].get("finish_reason") for each in chunks][-1] == "stop"
    assert provider.requests[0].json["stream_options"] == {"include_usage": True}


async def test_a_message_is_answered_in_anthropics_wire(ask, provider) -> None:
    answer = await ask(path=MESSAGES)
    assert answer.json["content"] == [{"type": "text", "text": "Hello there"}]
    assert answer.json["usage"]["components"] == {"input": 7, "output": 2}
    provider.will(*WHOLE_STREAM)
    streamed = await ask(STREAMED, MESSAGES)
    assert (streamed.names[0], streamed.names[-2:]) == ("message_start", ["message_delta", "message_stop"])
    usage = streamed.events[-2]["usage"]
    assert (usage["components"], usage["input_tokens"], usage["output_tokens"]) == ({"input": 7, "output": 2}, 7, 2)


@pytest.mark.parametrize("path", [CHAT, MESSAGES])
@pytest.mark.parametrize("status", [400, 401, 402, 404, 408, 409, 413, 422, 429, 500, 502, 503, 504])
async def test_an_error_has_the_providers_status_words_and_retry_after_and_is_asked_once(
    ask, provider, path: str, status: int
) -> None:
    error = {"error": {"message": "No room.", "type": "its_type", "param": "p", "code": "its_code"}}
    for body in (HELLO, STREAMED):
        provider.requests.clear()
        provider.will(whole(error, "retry-after: 7", "retry-after-ms: 6500", status=f"{status} Said"))
        answer = await ask(body, path)
        assert (answer.status, answer.json) == (status, error)
        assert (answer.headers["retry-after"], answer.headers["retry-after-ms"]) == ("7", "6500")
        assert len(provider.requests) == 1


async def test_the_credential_is_struck_from_what_a_provider_repeats(ask, provider) -> None:
    provider.will(whole({"error": {"message": "Wrong key: sim-key."}}, status="401 No"))
    assert (await ask()).json["error"]["message"] == "Wrong key: [credential]."


async def test_who_cannot_be_reached_was_not_asked(translator) -> None:
    answer = await translator.ask(CHAT, HELLO, translator.headers("openai", "http://127.0.0.1:9/v1"))
    assert (answer.status, answer.json["error"]["code"]) == (502, "upstream_unreachable")


@pytest.mark.parametrize("path", [CHAT, MESSAGES])
@pytest.mark.parametrize("body", [HELLO, STREAMED])
@pytest.mark.parametrize(
    "steps",
    [
        (CUT,),
        (RESET,),
        (whole(REPLY, length=5000), CUT),
        (whole(b'{"choices": ['),),
        (whole(b""),),
    ],
    ids=["cut", "reset", "half", "broken", "empty"],
)
async def test_what_may_have_been_billed_is_never_called_unsent_and_never_asked_twice(
    ask, provider, path: str, body: dict, steps: tuple
) -> None:
    provider.will(*steps)
    answer = await ask(body, path)
    assert len(provider.requests) == 1
    if answer.status == 200:  # what was asked for as a stream may have begun as one
        assert body is STREAMED
        assert_cut(answer)
    else:
        assert (answer.status, answer.json["error"]["code"]) == (504, "upstream_broken")


def assert_cut(answer: Answered) -> None:
    """Nobody can take it for a whole answer."""
    assert answer.cut or answer.events[-1].get("error")
    assert "[DONE]" not in answer.events
    assert "message_stop" not in answer.names


@pytest.mark.parametrize("path", [CHAT, MESSAGES])
@pytest.mark.parametrize(
    "steps",
    [
        (STREAM_HEAD, chunked(ROLE, said("Hello")), CUT),
        (STREAM_HEAD, chunked(ROLE, said("Hello")), RESET),
        (STREAM_HEAD, chunked(ROLE, said("Hello")), FIN, CUT),
        (STREAM_HEAD, chunked(ROLE, said("Hello")), LAST_CHUNK),
        (STREAM_HEAD, chunked(ROLE, said("Hello"), finished()), LAST_CHUNK),
        (STREAM_HEAD, chunked(ROLE, said("Hello"), event({"error": {"message": "Overloaded"}})), LAST_CHUNK),
        (STREAM_HEAD, chunked(ROLE, said("Hello"), b"data: {broken\n\n"), LAST_CHUNK),
    ],
    ids=["cut", "reset", "fin", "ended", "uncounted", "error", "malformed"],
)
async def test_a_stream_that_was_cut_ends_in_an_error(ask, provider, path: str, steps: tuple) -> None:
    provider.will(*steps)
    answer = await ask(STREAMED, path)
    if answer.status == 200:
        assert_cut(answer)
    else:
        assert answer.status == 504
    assert len(provider.requests) == 1


@pytest.mark.parametrize("steps", [(HOLD,), (STREAM_HEAD, chunked(ROLE, said("Hello")), HOLD)], ids=["head", "middle"])
@pytest.mark.parametrize("path", [CHAT, MESSAGES])
@pytest.mark.parametrize("body", [HELLO, STREAMED])
async def test_when_its_caller_hangs_up_so_does_it(translator, provider, steps: tuple, path: str, body: dict) -> None:
    provider.will(*steps)
    async with aiohttp.ClientSession() as session:
        call = asyncio.create_task(
            session.post(translator.url + path, json=body, headers=translator.headers("openai", provider.url))
        )
        await asyncio.wait_for(provider.asked.wait(), 10)
        await asyncio.sleep(0.2)
        if call.done():
            call.result().close()
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
    begun = time.monotonic()
    await asyncio.wait_for(provider.hung_up.wait(), 5)
    assert time.monotonic() - begun < 1
    assert await calls_end(translator)


async def calls_end(translator: RunningTranslator) -> bool:
    async with aiohttp.ClientSession() as session:
        for _ in range(100):
            async with session.get(f"{translator.url}/healthz") as answer:
                if (await answer.json())["calls"] == 0:
                    return True
            await asyncio.sleep(0.02)
    return False


@pytest.mark.parametrize("steps", [(HOLD,), (STREAM_HEAD, chunked(ROLE, said("Hello")), HOLD)])
async def test_a_call_ends_with_its_seconds(ask, provider, steps: tuple) -> None:
    provider.will(*steps)
    answer = await ask(STREAMED, X_Penstock_Seconds="0.5")
    if answer.status == 200:
        assert "error" in answer.events[-1]
    else:
        assert (answer.status, answer.json["error"]["code"]) == (504, "upstream_timeout")
    await asyncio.wait_for(provider.hung_up.wait(), 2)


@pytest.mark.parametrize(
    "extra",
    [
        {"api_base": "http://127.0.0.1:1"},
        {"mock_response": "bought"},
        {"fallbacks": ["other"]},
        {"num_retries": 3},
        {"extra_body": {"x": 1}},
        {"custom_llm_provider": "openai"},
        {"api_key": "mine"},
        {"service_tier": "priority"},
        {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
        {"tools": [{"type": "mcp", "server_url": "litellm_proxy"}]},
        {"context_management": {"edits": [{"type": "compact_20260112"}]}},
    ],
    ids=lambda extra: next(iter(extra)),
)
@pytest.mark.parametrize("path", [CHAT, MESSAGES, COUNT])
async def test_what_cannot_be_translated_is_refused_before_anything_is_sent(
    ask, provider, path: str, extra: dict
) -> None:
    body = {name: value for name, value in HELLO.items() if path != COUNT or name != "max_tokens"}
    answer = await ask(body | extra, path)
    assert (answer.status, answer.json["error"]["param"]) == (400, next(iter(extra)))
    assert not provider.heads


@pytest.mark.parametrize(
    "body",
    [
        b"no json",
        b"[]",
        {"messages": []},
        {"model": "m-1"},
        HELLO | {"messages": "Hello"},
        HELLO | {"messages": [{"role": "nobody", "content": 7}]},
        HELLO | {"temperature": "hot", "messages": None},
    ],
    ids=repr,
)
async def test_a_malformed_call_is_a_400(ask, provider, body: object) -> None:
    answer = await ask(body)
    assert answer.status == 400 or (answer.status == 200 and provider.requests)  # or the provider's to judge
    assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X-Penstock-Provider", "nobody_knows"),
        ("X-Penstock-Provider", "../etc"),
        ("X-Penstock-Seconds", "soon"),
        ("X-Penstock-Seconds", "nan"),
        ("X-Penstock-Seconds", "-1"),
        ("X-Penstock-Headers", "[]"),
        ("X-Penstock-Credential", '{"aws_profile_name": "root"}'),
    ],
)
async def test_a_call_without_what_it_needs_is_a_400(translator, provider, name: str, value: str) -> None:
    answer = await translator.ask(CHAT, HELLO, translator.headers("openai", provider.url) | {name: value})
    assert answer.status == 400
    assert not provider.heads


async def test_what_a_provider_has_no_word_for_is_a_400_that_says_so(translator, provider) -> None:
    headers = translator.headers("anthropic", provider.url)
    answer = await translator.ask(CHAT, HELLO | {"logit_bias": {"5": 1}, "n": 1}, headers)
    assert answer.status == 400
    assert "logit_bias" in answer.json["error"]["message"]
    assert not provider.heads


@pytest.mark.parametrize("provider_name", ["openai", "gemini", "anthropic"])
async def test_addresses_that_callers_name_are_not_fetched(translator, provider, provider_name: str) -> None:
    picture = f"{provider.url}/picture.png"
    content = [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": picture}}]
    body = HELLO | {"messages": [{"role": "user", "content": content}]}
    await translator.ask(CHAT, body, translator.headers(provider_name, provider.url))
    assert not any(asked.line.startswith("GET") for asked in provider.requests)


async def test_a_redirect_is_not_followed(ask, provider) -> None:
    provider.will(whole({}, f"location: {provider.url}/elsewhere", status="307 Over there"))
    answer = await ask()
    assert (answer.status, len(provider.requests)) == (504, 1)


async def test_embeddings_come_as_they_were_asked_for(ask, provider) -> None:
    vectors = [{"object": "embedding", "index": 0, "embedding": [0.5, -1.0]}]
    usage = {"prompt_tokens": 8, "total_tokens": 8}
    provider.will(whole({"object": "list", "data": vectors, "model": "e", "usage": usage}))
    asked = {"model": "e", "input": ["Hello"]}
    plain = await ask(asked, "/v1/embeddings")
    assert (plain.json["data"][0]["embedding"], plain.json["usage"]["components"]) == ([0.5, -1.0], {"input": 8})
    packed = (await ask(asked | {"encoding_format": "base64"}, "/v1/embeddings")).json["data"][0]["embedding"]
    assert struct.unpack("<2f", base64.b64decode(packed)) == (0.5, -1.0)


async def test_tokens_are_counted_without_asking_anyone(ask, provider) -> None:
    short = (await ask({"model": "gpt-5", "messages": [{"role": "user", "content": "Hello"}]}, COUNT)).json
    long = (await ask({"model": "gpt-5", "messages": [{"role": "user", "content": "Hello " * 500}]}, COUNT)).json
    assert 1 <= short["input_tokens"] < 20
    assert 500 <= long["input_tokens"] < 1000
    assert not provider.heads


@pytest.mark.parametrize("token", ["", "Bearer wrong", "translator-token"])
async def test_without_the_token_nothing_is_told(translator, token: str) -> None:
    async with aiohttp.ClientSession(headers={"Authorization": token}) as session:
        for method, path in (("GET", "/prices"), ("POST", CHAT), ("GET", "/nowhere")):
            async with session.request(method, translator.url + path) as answer:
                assert answer.status == 401
        async with session.get(f"{translator.url}/healthz") as answer:
            assert answer.status == 200


async def test_the_map_of_prices_is_litellms_own(translator) -> None:
    headers = {"Authorization": f"Bearer {translator.token}"}
    async with aiohttp.ClientSession(headers=headers) as session:
        async with session.get(f"{translator.url}/prices") as answer:
            prices = await answer.json()
        async with session.get(f"{translator.url}/nowhere") as answer:
            assert answer.status == 404
    assert len(prices) > 2000
    assert prices["gpt-4o"]["input_cost_per_token"] > 0


async def test_a_body_beyond_the_bound_is_a_413(ask, provider) -> None:
    answer = await ask(io.BytesIO(b"x" * (32 * 1024 * 1024 + 1)))
    assert answer.status == 413
    assert not provider.heads


async def test_calls_beyond_the_limit_are_a_503_and_the_others_go_on(translator, provider) -> None:
    provider.will(Wait(2.0), whole(REPLY))
    headers = translator.headers("openai", provider.url)
    answers = await asyncio.gather(*[translator.ask(CHAT, HELLO, headers) for _ in range(300)])
    statuses = [answer.status for answer in answers]
    assert (statuses.count(200), statuses.count(503)) == (256, 44)
    assert await calls_end(translator)


async def test_a_call_to_another_model_that_says_its_own_words_is_not_cached(ask, provider) -> None:
    first, second = await ask(), await ask()
    assert (first.text, second.text, len(provider.requests)) == ("Hello there", "Hello there", 2)


async def test_it_ends_when_its_parent_does(tmp_path) -> None:
    with running_translator(tmp_path) as running:
        assert running.process.stdin is not None
        running.process.stdin.close()
        assert await asyncio.to_thread(running.process.wait, 5) == -9


def test_its_secrets_are_not_in_its_arguments(translator) -> None:
    assert translator.token.encode() not in Path(f"/proc/{translator.pid}/cmdline").read_bytes()
