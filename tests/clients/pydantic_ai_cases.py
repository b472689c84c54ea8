"""pydantic-ai with OpenAI's chat completions: agents, tools, typed answers, and its own errors."""

import asyncio
import base64
import contextlib
import sys
from importlib.metadata import version
from typing import Any

import pydantic
from cases import PNG, main, raised_by
from openai import AsyncOpenAI
from pydantic_ai import Agent, BinaryContent, Embedder, NativeOutput, ToolOutput
from pydantic_ai.embeddings.openai import OpenAIEmbeddingModel
from pydantic_ai.exceptions import AgentRunError, ModelAPIError, ModelHTTPError
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider


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
        with contextlib.suppress(AgentRunError):
            asyncio.run(self._ask("Good morning."))

    async def check_chat(self) -> None:
        result = await self._agent().run("Good morning.")
        assert result.output, "no output"
        assert _usage(result).output_tokens > 0

    async def check_stream(self) -> None:
        async with self._agent().run_stream("Good morning.") as result:
            told = [text async for text in result.stream_text(delta=True, debounce_by=None)]
        assert len(told) > 2, told
        assert "".join(told) == await self._ask("Good morning.")

    async def check_stream_usage(self) -> None:
        async with self._agent().run_stream("Good morning.") as result:
            await result.get_output()
        told, whole = _usage(result), _usage(await self._agent().run("Good morning."))
        assert (told.input_tokens, told.output_tokens) == (whole.input_tokens, whole.output_tokens)

    async def check_tools(self) -> None:
        agent, asked = self._agent(), list[str]()

        @agent.tool_plain
        def tide(place: str, hour: int) -> str:
            """The tide at a place, at an hour."""
            asked.append(place)
            return f"2.5 metres at {hour}"

        assert (await agent.run("How high is the tide?")).output
        assert asked, "the tool was not called"

    async def check_tools_streamed(self) -> None:
        agent, asked = self._agent(), list[str]()

        @agent.tool_plain
        def tide(place: str, hour: int) -> str:
            """The tide at a place, at an hour."""
            asked.append(place)
            return f"2.5 metres at {hour}"

        async with agent.run_stream("How high is the tide?") as result:
            assert await result.get_output()
        assert asked, "the tool was not called"

    async def check_structured(self) -> None:
        assert isinstance((await self._agent(NativeOutput(Tide)).run("The tide, please.")).output, Tide)

    async def check_structured_by_tools(self) -> None:
        assert isinstance((await self._agent(ToolOutput(Tide)).run("The tide, please.")).output, Tide)

    async def check_structured_streamed(self) -> None:
        async with self._agent(ToolOutput(Tide)).run_stream("The tide, please.") as result:
            assert isinstance(await result.get_output(), Tide)

    async def check_image(self) -> None:
        picture = BinaryContent(base64.b64decode(PNG), media_type="image/png")
        assert (await self._agent().run(["What is this?", picture])).output

    async def check_embeddings(self) -> None:
        embedder = Embedder(OpenAIEmbeddingModel(self.given.embedding_model, provider=self._provider()))
        found = await embedder.embed_documents(["The tide is low.", "The gate is open."])
        assert len(found.embeddings) == 2
        assert found.usage.input_tokens > 0

    def check_sync(self) -> None:
        assert self._agent().run_sync("Good morning.").output

    async def check_hints(self) -> None:
        hinted = {"extra_body": {"penstock": {"tags": ["clients"]}}}
        assert (await self._agent().run("Good morning.", model_settings=hinted)).output
        await self._refused(403, model_settings={"extra_body": {"penstock": {"data_class": "restricted"}}})

    async def check_error_400(self) -> None:
        await self._refused(400, model_settings={"extra_body": {"n": -1}})

    async def check_error_401(self) -> None:
        await self._refused(401, api_key=self.given.wrong_key)

    async def check_error_402(self) -> None:
        await self._refused(402, api_key=self.given.broke_key, max_retries=2)

    async def check_error_403(self) -> None:
        await self._refused(403, model=self.given.forbidden_model)

    async def check_error_404(self) -> None:
        await self._refused(404, model=self.given.missing_model)

    async def check_error_429(self) -> None:
        await self._refused(429, api_key=self.given.limited_key, tries=3)

    async def check_error_mid_stream(self) -> None:
        told: list[str] = []

        async def listen() -> None:
            async with self._agent().run_stream(self.given.cut_message) as result:
                async for text in result.stream_text(delta=True, debounce_by=None):
                    told.append(text)  # noqa: PERF401  # what came before the error counts

        await raised_by(ModelAPIError, listen)
        assert "".join(told), "nothing came before the error"

    async def check_retry(self) -> None:
        agent = self._agent(model=self.given.flaky_model, api_key=self.given.retry_key, max_retries=2)
        assert (await agent.run(self.given.once_message)).output

    async def check_no_retry(self) -> None:
        message = self.given.perhaps_billed_message
        await self._refused(502, message=message, api_key=self.given.still_key, max_retries=2)

    async def check_timeout(self) -> None:
        agent = self._agent(timeout=1, api_key=self.given.timeout_key)
        await raised_by(ModelAPIError, lambda: agent.run(self.given.slow_message))

    async def check_cancel(self) -> None:
        agent = self._agent(api_key=self.given.cancel_key)
        async with agent.run_stream(self.given.long_message) as result:
            async for _ in result.stream_text(delta=True, debounce_by=None):
                break

    def _provider(self, **other: Any) -> OpenAIProvider:
        settings = {"base_url": self.given.base_url, "api_key": self.given.api_key, "max_retries": 0, "timeout": 30}
        return OpenAIProvider(openai_client=AsyncOpenAI(**settings | other))

    def _agent(self, output_type: Any = str, *, model: str | None = None, **other: Any) -> Agent[None, Any]:
        chat = OpenAIChatModel(model or self.given.model, provider=self._provider(**other))
        return Agent(chat, output_type=output_type)

    async def _ask(self, message: str) -> str:
        return (await self._agent().run(message)).output

    async def _refused(
        self, status: int, *, message: str = "Good morning.", model_settings: Any = None, tries: int = 1, **other: Any
    ) -> None:
        """One of so many tries ends in pydantic-ai's own error with this status and OpenAI's error object."""
        agent = self._agent(**other)
        asked = lambda: agent.run(message, model_settings=model_settings)  # noqa: E731  # it is asked again
        error = await raised_by(ModelHTTPError, asked, tries=tries)
        assert error.status_code == status, error.status_code
        assert {"message", "type", "param", "code"} <= error.body.keys(), error.body


def _usage(result: Any) -> Any:
    """It was a method and became a property."""
    return result.usage() if callable(result.usage) else result.usage


if __name__ == "__main__":
    sys.exit(main(Cases, "pydantic-ai", version("pydantic-ai-slim")))
