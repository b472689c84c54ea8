"""Anthropic's SDK against the simulator."""

import asyncio
import sys
import time
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import anthropic
from anthropic import Anthropic, AsyncAnthropic
from anthropic.types import Message, MessageTokensCount, RawMessageStreamEvent
from anthropic.types.shared import ErrorResponse
from verdicts import PARAMETERS, PIXEL, Checks, data_of, main, raised, scripted, strict

TOOL = {"name": "tide", "description": "The tide at a place.", "input_schema": PARAMETERS}
THINKING = {"type": "enabled", "budget_tokens": 1024}
# The status, the SDK's class for it, and the type in the body where the SDK knows one.
ERRORS = (
    (400, anthropic.BadRequestError, "invalid_request_error"),
    (401, anthropic.AuthenticationError, "authentication_error"),
    (402, getattr(anthropic, "PaymentRequiredError", anthropic.APIStatusError), "billing_error"),  # since 2.12
    (403, anthropic.PermissionDeniedError, "permission_error"),
    (404, anthropic.NotFoundError, "not_found_error"),
    (409, anthropic.ConflictError, "conflict_error"),
    (413, anthropic.ContentTooLargeError, "request_too_large"),
    (429, anthropic.RateLimitError, "rate_limit_error"),
    (500, anthropic.InternalServerError, "api_error"),
    (504, anthropic.GatewayTimeoutError, "timeout_error"),
    (529, anthropic.OverloadedError, "overloaded_error"),
)


class AnthropicChecks(Checks):
    """Messages whole and streamed, tools, thinking, caching, counting, errors, retries."""

    sdk = f"anthropic {anthropic.__version__}"

    def check_message(self) -> None:
        reply = self._ask("Good morning.")
        assert (reply.type, reply.role, reply.stop_reason) == ("message", "assistant", "end_turn")
        assert reply.content[0].text, "no text"
        assert reply.usage.output_tokens > 0

    def check_every_whole_answer_is_of_the_sdks_own_shape(self) -> None:
        for about in self._shapes():
            raw = self.client.messages.with_raw_response.create(**about)
            strict(Message, raw.http_response.content)

    def check_every_event_is_of_the_sdks_own_shape(self) -> None:
        for about in self._shapes():
            with self.client.messages.with_streaming_response.create(**about, stream=True) as response:
                events = data_of(response.iter_lines())
            kinds = [strict(RawMessageStreamEvent, event).type for event in events if '"ping"' not in event]
            assert (kinds[0], kinds[-2:]) == ("message_start", ["message_delta", "message_stop"]), kinds

    def check_the_sdks_own_sum_of_a_stream_is_the_whole_answer(self) -> None:
        for about in self._shapes():
            with self.client.messages.stream(**about) as stream:
                summed = stream.get_final_message()
                self._note(stream.request_id, summed.usage)
            whole = self.client.messages.create(**about)
            assert [_plain(block) for block in summed.content] == [_plain(block) for block in whole.content]
            assert summed.stop_reason == whole.stop_reason
            assert summed.usage == whole.usage, f"{summed.usage} and {whole.usage}"

    def check_cached_tokens_are_told_apart(self) -> None:
        usage = self._ask(scripted(tokens=3, cached=4, cache_write=2, cache_write_1h=5)).usage
        assert (usage.cache_read_input_tokens, usage.cache_creation_input_tokens) == (4, 7)
        assert usage.cache_creation.ephemeral_5m_input_tokens == 2
        assert usage.cache_creation.ephemeral_1h_input_tokens == 5

    def check_thinking_comes_first_and_is_among_the_output(self) -> None:
        reply = self._ask(scripted(tokens=3, reasoning=9), thinking=THINKING)
        assert [block.type for block in reply.content] == ["thinking", "text"]
        assert reply.content[0].signature
        assert (reply.usage.output_tokens, reply.usage.output_tokens_details.thinking_tokens) == (12, 9)

    def check_a_tool_is_called_and_its_result_taken(self) -> None:
        reply = self._ask("How high is the tide?", tools=[TOOL])
        call = reply.content[-1]
        assert (reply.stop_reason, call.type, call.name) == ("tool_use", "tool_use", "tide")
        assert isinstance(call.input["hour"], int), call.input
        result = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "2.5 m"}]}
        asked = self._about("How high is the tide?")
        more = [{"role": "assistant", "content": reply.content}, {"role": "user", "content": [result]}]
        final = self.client.messages.create(**asked | {"messages": asked["messages"] + more}, tools=[TOOL])
        assert final.stop_reason == "end_turn"

    def check_a_tool_may_be_forbidden_or_named(self) -> None:
        wind = TOOL | {"name": "wind"}
        forbidden = self._ask("x", tools=[TOOL], tool_choice={"type": "none"})
        named = self._ask("x", tools=[TOOL, wind], tool_choice={"type": "tool", "name": "wind"})
        assert (forbidden.stop_reason, named.content[-1].name) == ("end_turn", "wind")

    def check_an_answer_by_a_schema(self) -> None:
        output = {"format": {"type": "json_schema", "schema": PARAMETERS}}
        assert self._ask("x", output_config=output).content[0].text == '{"place":"x","hour":1}'

    def check_an_image_and_a_system_prompt_are_input(self) -> None:
        plain = self._ask("x").usage.input_tokens
        source = {"type": "base64", "media_type": "image/png", "data": PIXEL}
        content = [{"type": "image", "source": source}, {"type": "text", "text": "x"}]
        system = [{"type": "text", "text": "12345678", "cache_control": {"type": "ephemeral"}}]
        asked = self._about("x") | {"messages": [{"role": "user", "content": content}], "system": system}
        assert self.client.messages.create(**asked).usage.input_tokens == plain + 258 + 2

    def check_output_ceiling_is_kept(self) -> None:
        reply = self._ask(scripted(tokens=50), max_tokens=16)
        assert (reply.stop_reason, reply.usage.output_tokens) == ("max_tokens", 16)

    def check_tokens_are_counted(self) -> None:
        about = {key: value for key, value in self._about("12345678").items() if key != "max_tokens"}
        raw = self.client.messages.with_raw_response.count_tokens(**about)
        assert strict(MessageTokensCount, raw.http_response.content).input_tokens == 2

    def check_models_are_listed(self) -> None:
        models = list(self.client.models.list())
        assert "sim-small" in [model.id for model in models]
        assert models[0].lifecycle == "active"

    def check_each_status_has_its_error_and_type(self) -> None:
        for status, expected, kind in ERRORS:
            error = raised(expected, lambda status=status: self._ask(scripted(status=status)))
            assert (error.status_code, error.body["error"]["type"]) == (status, kind), error.body
            assert error.request_id == error.body["request_id"], "the header and the body differ"
            if kind not in {"conflict_error", "request_too_large"}:  # which the SDK's own union leaves out
                assert strict(ErrorResponse, error.response.content).error.type == kind

    def check_wrong_keys_versions_models_and_bodies_are_refused(self) -> None:
        wrong = self._client(api_key="sk-wrong")
        raised(anthropic.AuthenticationError, lambda: wrong.messages.create(**self._about("x")))
        raised(anthropic.NotFoundError, lambda: self._ask("x", model="claude-9"))
        for bad in ({"messages": []}, {"max_tokens": -1}, {"thinking": {"type": "enabled", "budget_tokens": 9}}):
            raised(anthropic.BadRequestError, lambda bad=bad: self._ask("x", **bad))
        bare = self._client(default_headers={"anthropic-version": anthropic.Omit()})
        error = raised(anthropic.BadRequestError, lambda: bare.messages.create(**self._about("x")))
        assert "anthropic-version" in error.message

    def check_a_bearer_token_is_a_key_too(self) -> None:
        bearer = self._client(api_key=None, auth_token=self.key)
        assert bearer.messages.create(**self._about("x")).content

    def check_overload_is_retried_after_the_wait_that_was_told(self) -> None:
        for status, expected in ((429, anthropic.RateLimitError), (529, anthropic.OverloadedError)):
            client, started = self._client(max_retries=1), time.perf_counter()
            about = self._about(scripted(status=status, retry_after=0.2))
            error = raised(expected, lambda client=client, about=about: client.messages.create(**about))
            assert error.response.request.headers["x-stainless-retry-count"] == "1", "the SDK did not retry"
            assert time.perf_counter() - started < 2

    def check_an_error_in_mid_stream_raises_after_what_came(self) -> None:
        stream = self._ask(scripted(tokens=20, error_at=8), stream=True)
        heard: list[str] = []

        def listen() -> None:
            for event in stream:
                heard.append(event.type)  # noqa: PERF401 - what came before the error is to be kept

        error = raised(anthropic.APIStatusError, listen)
        assert heard.count("content_block_delta") == 5, heard
        assert error.body["error"]["type"] == "api_error"

    def check_async_client(self) -> None:
        async def ask() -> tuple[str, str]:
            async with AsyncAnthropic(**self._settings()) as client:
                whole = await client.messages.create(**self._about("Good morning."))
                async with client.messages.stream(**self._about("Good morning.")) as stream:
                    return "".join([text async for text in stream.text_stream]), whole.content[0].text

        streamed, whole = asyncio.run(ask())
        assert streamed == whole

    def check_text_beyond_ascii(self) -> None:
        said = "Grüße, 世界 🌊"
        with self.client.messages.stream(**self._about(scripted(text=said, split="byte"))) as stream:
            assert stream.get_final_text() == said

    def check_stream_closed_early(self) -> None:
        with self.client.messages.stream(**self._about(scripted(tokens=200, pace_ms=5))) as stream:
            next(iter(stream.text_stream))
        assert self._ask("Still there?").content

    def check_timeout(self) -> None:
        slow = self._client(timeout=0.3)
        raised(anthropic.APITimeoutError, lambda: slow.messages.create(**self._about(scripted(first_ms=2000))))

    def _shapes(self) -> Iterator[dict[str, Any]]:
        yield self._about("Good morning.")
        yield self._about(scripted(tokens=4, cached=3, cache_write=2, cache_write_1h=1))
        yield self._about(scripted(tokens=4, reasoning=6)) | {"thinking": THINKING}
        yield self._about("x") | {"tools": [TOOL], "thinking": THINKING}
        yield self._about(scripted(tokens=50, usage="cumulative")) | {"max_tokens": 10}
        yield self._about(scripted(tokens=2, usage="duplicate"))

    def _settings(self, **other: Any) -> dict[str, Any]:
        return {"base_url": self.url, "api_key": self.key, "max_retries": 0, "timeout": 10} | other

    def _client(self, **other: Any) -> Anthropic:
        return Anthropic(**self._settings(**other))

    @cached_property
    def client(self) -> Anthropic:
        return self._client()

    def _about(self, message: str) -> dict[str, Any]:
        return {"model": "sim-small", "max_tokens": 2000, "messages": [{"role": "user", "content": message}]}

    def _ask(self, message: str, **fields: Any) -> Any:
        reply = self.client.messages.create(**self._about(message) | fields)
        if isinstance(reply, Message):
            self._note(reply._request_id, reply.usage)
        return reply

    def _note(self, request_id: str | None, usage: Any) -> None:
        thought = usage.output_tokens_details.thinking_tokens
        self.used[str(request_id)] = {
            "input": usage.input_tokens,
            "cached_input": usage.cache_read_input_tokens,
            "cache_write": usage.cache_creation.ephemeral_5m_input_tokens,
            "cache_write_1h": usage.cache_creation.ephemeral_1h_input_tokens,
            "output": usage.output_tokens - thought,
            "reasoning": thought,
        }


def _plain(block: Any) -> dict[str, Any]:
    """A block without what differs from call to call."""
    return {name: value for name, value in block.model_dump().items() if name not in {"id", "parsed_output"}}


if __name__ == "__main__":
    sys.exit(main(AnthropicChecks))
