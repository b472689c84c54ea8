"""openai-agents, told to use chat completions, with its tracing off: it would be sent to its vendor."""

import asyncio
import contextlib
import sys
from importlib.metadata import version
from typing import Any

import openai
import pydantic
from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    RunConfig,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from cases import PNG, main, raised_by
from openai import AsyncOpenAI

set_tracing_disabled(disabled=True)


class Tide(pydantic.BaseModel):
    """The tide at a place."""

    place: str
    metres: float


class Cases:
    """All cases: the methods check_*. Each has a client of its own, because each has an event loop of its own."""

    def __init__(self, given: Any) -> None:
        self.given = given

    def calm(self) -> None:
        """One plain call: a gateway lets a target rest that failed too often in a row, and the checks make it fail."""
        with contextlib.suppress(openai.OpenAIError):
            asyncio.run(self._ask(self._agent(), "Good morning."))

    async def check_chat(self) -> None:
        result = await self._ask(self._agent(), "Good morning.")
        assert result.final_output, "no output"
        assert result.context_wrapper.usage.output_tokens > 0

    async def check_stream(self) -> None:
        told = [event.data.delta async for event in self._events(self._agent(), "Good morning.")]
        assert len(told) > 2, told
        assert "".join(told) == (await self._ask(self._agent(), "Good morning.")).final_output

    async def check_stream_usage(self) -> None:
        streamed = Runner.run_streamed(self._agent(include_usage=True), "Good morning.", run_config=self._quiet())
        async for _ in streamed.stream_events():
            pass
        told = streamed.context_wrapper.usage
        whole = (await self._ask(self._agent(), "Good morning.")).context_wrapper.usage
        assert (told.input_tokens, told.output_tokens) == (whole.input_tokens, whole.output_tokens)

    async def check_tools(self) -> None:
        asked: list[str] = []

        @function_tool
        def tide(place: str, hour: int) -> str:
            """The tide at a place, at an hour."""
            asked.append(place)
            return f"2.5 metres at {hour}"

        result = await self._ask(self._agent(tools=[tide]), "How high is the tide?")
        assert asked, "the tool was not called"
        assert result.final_output

    async def check_tools_streamed(self) -> None:
        asked: list[str] = []

        @function_tool
        def tide(place: str, hour: int) -> str:
            """The tide at a place, at an hour."""
            asked.append(place)
            return f"2.5 metres at {hour}"

        told = [event async for event in self._events(self._agent(tools=[tide]), "How high is the tide?")]
        assert asked, "the tool was not called"
        assert told

    async def check_handoff(self) -> None:
        other = self._agent(name="harbour")
        result = await self._ask(self._agent(handoffs=[other]), "How high is the tide?")
        assert result.last_agent.name == "harbour", result.last_agent.name
        assert result.final_output

    async def check_structured(self) -> None:
        result = await self._ask(self._agent(output_type=Tide), "The tide, please.")
        assert isinstance(result.final_output, Tide), result.final_output

    async def check_image(self) -> None:
        picture = {"type": "input_image", "image_url": f"data:image/png;base64,{PNG}", "detail": "auto"}
        told = [{"role": "user", "content": [{"type": "input_text", "text": "What is this?"}, picture]}]
        assert (await self._ask(self._agent(), told)).final_output

    async def check_hints(self) -> None:
        assert (await self._ask(self._agent(hints={"tags": ["clients"]}), "Good morning.")).final_output
        await self._refused(openai.PermissionDeniedError, 403, hints={"data_class": "restricted"})

    async def check_error_400(self) -> None:
        await self._refused(openai.BadRequestError, 400, hints={"max_latency_ms": -1})

    async def check_error_401(self) -> None:
        await self._refused(openai.AuthenticationError, 401, api_key=self.given.wrong_key)

    async def check_error_402(self) -> None:
        error = await self._refused(openai.APIStatusError, 402, api_key=self.given.broke_key, max_retries=2)
        assert error.response.request.headers["x-stainless-retry-count"] == "0", "it was retried"

    async def check_error_403(self) -> None:
        await self._refused(openai.PermissionDeniedError, 403, model=self.given.forbidden_model)

    async def check_error_404(self) -> None:
        await self._refused(openai.NotFoundError, 404, model=self.given.missing_model)

    async def check_error_429(self) -> None:
        await self._refused(openai.RateLimitError, 429, api_key=self.given.limited_key, tries=3)

    async def check_error_mid_stream(self) -> None:
        told: list[str] = []

        async def listen() -> None:
            async for event in self._events(self._agent(), self.given.cut_message):
                told.append(event.data.delta)  # noqa: PERF401  # what came before the error counts

        await raised_by(openai.APIError, listen)
        assert "".join(told), "nothing came before the error"

    async def check_retry(self) -> None:
        agent = self._agent(model=self.given.flaky_model, api_key=self.given.retry_key, max_retries=2)
        assert (await self._ask(agent, self.given.once_message)).final_output

    async def check_no_retry(self) -> None:
        message = self.given.perhaps_billed_message
        given = {"api_key": self.given.still_key, "max_retries": 2}
        await self._refused(openai.InternalServerError, 502, message=message, **given)

    async def check_timeout(self) -> None:
        agent = self._agent(timeout=1, api_key=self.given.timeout_key)
        await raised_by(openai.APITimeoutError, lambda: self._ask(agent, self.given.slow_message))

    async def check_cancel(self) -> None:
        agent = self._agent(api_key=self.given.cancel_key)
        streamed = Runner.run_streamed(agent, self.given.long_message, run_config=self._quiet())
        seen = 0
        async for event in streamed.stream_events():
            seen += event.type == "raw_response_event"
            if seen == 3:
                streamed.cancel()

    def _agent(
        self,
        *,
        name: str = "tides",
        model: str | None = None,
        include_usage: bool | None = None,
        hints: dict[str, Any] | None = None,
        **other: Any,
    ) -> Agent[Any]:
        """An agent with a client of its own; what neither names is the client's."""
        made = {key: other.pop(key) for key in ("tools", "handoffs", "output_type") if key in other}
        settings = {"base_url": self.given.base_url, "api_key": self.given.api_key, "max_retries": 0, "timeout": 30}
        client = AsyncOpenAI(**settings | other)
        extra = {"penstock": hints} if hints else None
        return Agent(
            name=name,
            model=OpenAIChatCompletionsModel(model=model or self.given.model, openai_client=client),
            model_settings=ModelSettings(include_usage=include_usage, extra_body=extra),
            **made,
        )

    def _quiet(self) -> RunConfig:
        return RunConfig(tracing_disabled=True)

    async def _ask(self, agent: Agent[Any], message: Any) -> Any:
        return await Runner.run(agent, message, run_config=self._quiet())

    async def _events(self, agent: Agent[Any], message: str) -> Any:
        """The pieces of text as they come."""
        streamed = Runner.run_streamed(agent, message, run_config=self._quiet())
        async for event in streamed.stream_events():
            if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
                yield event

    async def _refused(
        self,
        expected: type[openai.APIStatusError],
        status: int,
        *,
        message: str = "Good morning.",
        tries: int = 1,
        **other: Any,
    ) -> openai.APIStatusError:
        error = await raised_by(expected, lambda: self._ask(self._agent(**other), message), tries=tries)
        assert error.status_code == status, error.status_code
        return error


if __name__ == "__main__":
    sys.exit(main(Cases, "openai-agents", version("openai-agents")))
