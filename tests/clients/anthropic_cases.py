"""The Anthropic SDK for Python at /v1/messages; its base_url is the gateway's address without /v1."""

import asyncio
import contextlib
import json
import sys
from typing import Any

import anthropic
import pydantic
from anthropic import Anthropic, AsyncAnthropic
from cases import PNG, main, raised

TOOL = {
    "name": "tide",
    "description": "The tide at a place.",
    "input_schema": {
        "type": "object",
        "properties": {"place": {"type": "string"}, "hour": {"type": "integer"}},
        "required": ["place", "hour"],
    },
}


class Tide(pydantic.BaseModel):
    place: str
    metres: float


class Cases:
    """All cases: the methods check_*."""

    def __init__(self, given: Any) -> None:
        self.given = given
        self.client = self._client()

    def calm(self) -> None:
        """One plain call: a gateway lets a target rest that failed too often in a row, and the checks make it fail."""
        with contextlib.suppress(anthropic.AnthropicError):
            self._ask("Good morning.")

    def check_chat(self) -> None:
        reply = self._ask("Good morning.")
        assert (reply.type, reply.role, reply.stop_reason) == ("message", "assistant", "end_turn"), reply
        assert reply.content[0].text, "no content"
        assert reply.usage.input_tokens > 0
        assert reply.usage.output_tokens > 0

    def check_output_ceiling_is_kept(self) -> None:
        reply = self._ask(self.given.long_message, max_tokens=16)
        assert reply.stop_reason == "max_tokens", reply.stop_reason
        assert reply.usage.output_tokens <= 16, reply.usage.output_tokens

    def check_stream(self) -> None:
        whole = self._ask("Good morning.").content[0].text
        events = list(self._ask("Good morning.", stream=True))
        told = "".join(event.delta.text for event in events if event.type == "content_block_delta")
        assert told == whole, f"joined {told!r}, whole {whole!r}"
        assert (events[0].type, events[-1].type) == ("message_start", "message_stop")

    def check_stream_helper(self) -> None:
        with self.client.messages.stream(**self._about("Good morning.")) as stream:
            told = "".join(stream.text_stream)
            final = stream.get_final_message()
        assert told == final.content[0].text

    def check_stream_usage(self) -> None:
        with self.client.messages.stream(**self._about("Good morning.")) as stream:
            told = stream.get_final_message().usage
        whole = self._ask("Good morning.").usage
        assert (told.input_tokens, told.output_tokens) == (whole.input_tokens, whole.output_tokens)

    def check_tools(self) -> None:
        reply = self._ask("How high is the tide?", tools=[TOOL])
        assert reply.stop_reason == "tool_use", reply.stop_reason
        call = next(block for block in reply.content if block.type == "tool_use")
        assert call.name == "tide"
        assert isinstance(call.input["hour"], int), call.input
        result = {"type": "tool_result", "tool_use_id": call.id, "content": '{"metres": 2.5}'}
        told = [
            *self._about("How high is the tide?")["messages"],
            {"role": "assistant", "content": reply.content},
            {"role": "user", "content": [result]},
        ]
        final = self.client.messages.create(**self._about("") | {"messages": told}, tools=[TOOL])
        assert final.stop_reason == "end_turn", final.stop_reason
        assert final.content[0].text

    def check_tools_streamed(self) -> None:
        with self.client.messages.stream(**self._about("How high is the tide?"), tools=[TOOL]) as stream:
            final = stream.get_final_message()
        call = next(block for block in final.content if block.type == "tool_use")
        assert isinstance(call.input["place"], str), call.input

    def check_tool_runner(self) -> None:
        asked: list[str] = []

        @anthropic.beta_tool
        def tide(place: str, hour: int) -> str:
            """The tide at a place, at an hour."""
            asked.append(place)
            return json.dumps({"metres": 2.5, "hour": hour})

        runner = self.client.beta.messages.tool_runner(**self._about("How high is the tide?"), tools=[tide])
        final = runner.until_done()
        assert asked, "the tool was not called"
        assert final.content[0].text

    def check_structured(self) -> None:
        reply = self.client.messages.parse(**self._about("The tide, please."), output_format=Tide)
        assert isinstance(reply.parsed_output, Tide), reply.content

    def check_system_and_blocks(self) -> None:
        blocks = [{"type": "text", "text": "Good morning.", "cache_control": {"type": "ephemeral"}}]
        told = {"messages": [{"role": "user", "content": blocks}], "system": [{"type": "text", "text": "Be brief."}]}
        assert self.client.messages.create(**self._about("") | told).content[0].text

    def check_image(self) -> None:
        picture = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}
        told = [{"role": "user", "content": [picture, {"type": "text", "text": "What is this?"}]}]
        assert self._ask("", messages=told).content[0].text

    def check_thinking(self) -> None:
        asked = self._about('sim: {"reasoning": 8, "text": "Low."}') | {"thinking": {"type": "adaptive"}}
        with self.client.messages.stream(**asked) as stream:
            thought, said = stream.get_final_message().content
        assert (thought.type, said.text) == ("thinking", "Low."), (thought, said)
        assert thought.signature
        told = [*asked["messages"], {"role": "assistant", "content": [thought, said]}, *asked["messages"]]
        assert self._ask("", messages=told).content, "what was thought is not taken back"

    def check_count_tokens(self) -> None:
        about = {name: value for name, value in self._about("Good morning.").items() if name != "max_tokens"}
        counted = self.client.messages.count_tokens(**about).input_tokens
        assert counted == self._ask("Good morning.").usage.input_tokens, counted

    def check_async(self) -> None:
        async def ask() -> tuple[str, str]:
            async with AsyncAnthropic(**self._settings()) as client:
                whole = await client.messages.create(**self._about("Good morning."))
                async with client.messages.stream(**self._about("Good morning.")) as stream:
                    joined = "".join([text async for text in stream.text_stream])
                return joined, whole.content[0].text

        joined, whole = asyncio.run(ask())
        assert joined == whole

    def check_bearer_token(self) -> None:
        settings = {name: value for name, value in self._settings().items() if name != "api_key"}
        client = Anthropic(**settings, auth_token=self.given.api_key)
        assert client.messages.create(**self._about("Good morning.")).content[0].text

    def check_headers(self) -> None:
        raw = self.client.messages.with_raw_response.create(**self._about("Good morning."))
        assert raw.headers["request-id"] == raw.headers["x-request-id"], "two names for one request"
        assert raw.parse()._request_id == raw.headers["request-id"]

    def check_penstock_headers(self) -> None:
        raw = self.client.messages.with_raw_response.create(**self._about("Good morning."))
        assert raw.headers["x-penstock-model"] == self.given.model, raw.headers["x-penstock-model"]
        assert float(raw.headers["x-penstock-cost-usd"]) >= 0

    def check_hints(self) -> None:
        assert self._ask("Good morning.", extra_body={"penstock": {"tags": ["clients"]}}).content
        error = self._refused(
            anthropic.PermissionDeniedError, 403, extra_body={"penstock": {"data_class": "restricted"}}
        )
        assert error.body["error"]["code"] == "policy_denied", error.body

    def check_models(self) -> None:
        models = [model.id for model in self.client.models.list()]
        assert self.given.model in models, models
        assert self.given.hidden_model not in models, "a hidden model is listed"

    def check_beta_helpers(self) -> None:
        raw = self.client.beta.messages.with_raw_response.create(
            **self._about("Good morning."), betas=["no-such-beta-2026-01-01"]
        )
        assert raw.parse().content[0].text
        assert "no-such-beta-2026-01-01" in raw.headers["x-penstock-dropped"], "it is not said what was dropped"

    def check_error_400(self) -> None:
        for wrong in ({"messages": []}, {"max_tokens": 0}, {"messages": [{"role": "user", "content": 1}]}):
            self._refused(anthropic.BadRequestError, 400, **wrong)

    def check_error_401(self) -> None:
        self._refused(anthropic.AuthenticationError, 401, key=self.given.wrong_key)

    def check_error_402(self) -> None:
        error = self._refused(anthropic.APIStatusError, 402, key=self.given.broke_key, max_retries=2)
        assert error.body["error"]["type"] == "billing_error", error.body
        assert error.response.request.headers["x-stainless-retry-count"] == "0", "the SDK retried"

    def check_error_403(self) -> None:
        self._refused(anthropic.PermissionDeniedError, 403, model=self.given.forbidden_model)

    def check_error_404(self) -> None:
        self._refused(anthropic.NotFoundError, 404, model=self.given.missing_model)

    def check_hidden_model_is_not_found(self) -> None:
        self._refused(anthropic.NotFoundError, 404, model=self.given.hidden_model)

    def check_error_429(self) -> None:
        error = self._refused(anthropic.RateLimitError, 429, key=self.given.limited_key, tries=3)
        assert float(error.response.headers["retry-after"]) >= 1

    def check_error_mid_stream(self) -> None:
        events = iter(self._ask(self.given.cut_message, stream=True))
        first = [next(events), next(events), next(events)]
        assert first[0].type == "message_start", first
        error = raised(anthropic.APIStatusError, lambda: list(events))
        assert error.body["error"]["message"], error.body

    def check_retry(self) -> None:
        client = self._client(api_key=self.given.retry_key, max_retries=2)
        asked = self._about(self.given.once_message) | {"model": self.given.flaky_model}
        assert client.messages.create(**asked).content[0].text

    def check_no_retry(self) -> None:
        error = self._refused(
            anthropic.InternalServerError,
            None,
            key=self.given.still_key,
            message=self.given.perhaps_billed_message,
            max_retries=2,
        )
        assert error.response.headers["x-should-retry"] == "false"

    def check_timeout(self) -> None:
        client = self._client(timeout=1, api_key=self.given.timeout_key)
        slow = self._about(self.given.slow_message)
        raised(anthropic.APITimeoutError, lambda: client.messages.create(**slow))

    def check_cancel(self) -> None:
        client = self._client(api_key=self.given.cancel_key)
        with client.messages.stream(**self._about(self.given.long_message)) as stream:
            for _, _ in zip(range(3), stream.text_stream, strict=False):
                pass

    def _settings(self, **other: Any) -> dict[str, Any]:
        return {"base_url": self.given.root_url, "api_key": self.given.api_key, "max_retries": 0, "timeout": 30} | other

    def _client(self, **other: Any) -> Anthropic:
        return Anthropic(**self._settings(**other))

    def _about(self, message: str) -> dict[str, Any]:
        return {"model": self.given.model, "max_tokens": 256, "messages": [{"role": "user", "content": message}]}

    def _ask(self, message: str, **fields: Any) -> Any:
        return self.client.messages.create(**self._about(message) | fields)

    def _refused(
        self,
        expected: type[anthropic.APIStatusError],
        status: int | None,
        *,
        key: str | None = None,
        message: str = "Good morning.",
        max_retries: int = 0,
        tries: int = 1,
        **fields: Any,
    ) -> anthropic.APIStatusError:
        """The error of exactly this family that the request earns, in Anthropic's shape."""
        client = self._client(api_key=key or self.given.api_key, max_retries=max_retries)
        asked = self._about(message) | fields
        error = raised(expected, lambda: client.messages.create(**asked), tries=tries)
        assert status in (None, error.status_code), f"status {error.status_code}"
        assert isinstance(error.body, dict), f"body {error.body!r}"
        assert error.body["type"] == "error", error.body
        assert {"type", "message"} <= error.body["error"].keys(), error.body
        assert error.request_id, "no request-id"
        return error


if __name__ == "__main__":
    sys.exit(main(Cases, "anthropic (Python)", anthropic.__version__))
