"""langchain-openai: ChatOpenAI and OpenAIEmbeddings, which call the OpenAI SDK in ways of their own."""

import asyncio
import contextlib
import sys
from importlib.metadata import version
from typing import Any

import openai
import pydantic
from cases import PNG, main, raised
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings


class Tide(pydantic.BaseModel):
    """The tide at a place."""

    place: str
    metres: float


@tool
def tide(place: str, hour: int) -> str:
    """The tide at a place, at an hour."""
    return f'{{"metres": 2.5, "place": "{place}", "hour": {hour}}}'


class Cases:
    """All cases: the methods check_*."""

    def __init__(self, given: Any) -> None:
        self.given = given
        self.chat = self._chat()

    def calm(self) -> None:
        """One plain call: a gateway lets a target rest that failed too often in a row, and the checks make it fail."""
        with contextlib.suppress(openai.OpenAIError):
            self.chat.invoke("Good morning.")

    def check_chat(self) -> None:
        reply = self.chat.invoke("Good morning.")
        assert reply.content, "no content"
        assert reply.response_metadata["finish_reason"] == "stop", reply.response_metadata
        assert reply.usage_metadata["total_tokens"] > 0

    def check_stream(self) -> None:
        chunks = list(self.chat.stream("Good morning."))
        assert len(chunks) > 2, f"{len(chunks)} chunks"
        assert "".join(chunk.content for chunk in chunks) == self.chat.invoke("Good morning.").content

    def check_stream_usage(self) -> None:
        told = sum(self._chat(stream_usage=True).stream("Good morning."), start=_Nothing())
        assert told.usage_metadata == self.chat.invoke("Good morning.").usage_metadata, told.usage_metadata

    def check_tools(self) -> None:
        bound, asked = self.chat.bind_tools([tide]), HumanMessage("How high is the tide?")
        called = bound.invoke([asked])
        call = called.tool_calls[0]
        assert call["name"] == "tide", call
        answer = ToolMessage(tide.invoke(call["args"]), tool_call_id=call["id"])
        final = bound.invoke([asked, called, answer])
        assert not final.tool_calls
        assert final.content

    def check_tools_streamed(self) -> None:
        told = sum(self.chat.bind_tools([tide]).stream("How high is the tide?"), start=_Nothing())
        assert isinstance(told.tool_calls[0]["args"]["hour"], int), told.tool_calls

    def check_structured(self) -> None:
        assert isinstance(self._structured("json_schema"), Tide)

    def check_structured_by_tools(self) -> None:
        assert isinstance(self._structured("function_calling"), Tide)

    def check_image(self) -> None:
        picture = {"type": "image", "base64": PNG, "mime_type": "image/png"}
        assert self.chat.invoke([HumanMessage([{"type": "text", "text": "What is this?"}, picture])]).content

    def check_embeddings(self) -> None:
        found = self._embeddings().embed_documents(["The tide is low.", "The gate is open."])
        assert len(found) == 2
        assert self._embeddings().embed_query("The tide is low.") == found[0]

    def check_async(self) -> None:
        async def ask() -> tuple[str, str]:
            chat = self._chat()
            whole = await chat.ainvoke("Good morning.")
            return "".join([chunk.content async for chunk in chat.astream("Good morning.")]), whole.content

        joined, whole = asyncio.run(ask())
        assert joined == whole

    def check_batch(self) -> None:
        assert all(reply.content for reply in self.chat.batch(["Good morning."] * 4))

    def check_headers(self) -> None:
        told = self._chat(include_response_headers=True).invoke("Good morning.").response_metadata["headers"]
        assert told["x-request-id"], told

    def check_penstock_headers(self) -> None:
        told = self._chat(include_response_headers=True).invoke("Good morning.").response_metadata["headers"]
        assert told["x-penstock-model"] == self.given.model, told

    def check_hints(self) -> None:
        assert self._chat(extra_body={"penstock": {"tags": ["clients"]}}).invoke("Good morning.").content
        self._refused(openai.PermissionDeniedError, 403, extra_body={"penstock": {"data_class": "restricted"}})

    def check_error_400(self) -> None:
        self._refused(openai.BadRequestError, 400, temperature=0.5, extra_body={"n": -1})

    def check_error_401(self) -> None:
        self._refused(openai.AuthenticationError, 401, api_key=self.given.wrong_key)

    def check_error_402(self) -> None:
        error = self._refused(openai.APIStatusError, 402, api_key=self.given.broke_key, max_retries=2)
        assert error.response.request.headers["x-stainless-retry-count"] == "0", "it was retried"

    def check_error_403(self) -> None:
        self._refused(openai.PermissionDeniedError, 403, model=self.given.forbidden_model)

    def check_error_404(self) -> None:
        self._refused(openai.NotFoundError, 404, model=self.given.missing_model)

    def check_error_429(self) -> None:
        chat = self._chat(api_key=self.given.limited_key)
        error = raised(openai.RateLimitError, lambda: chat.invoke("Good morning."), tries=3)
        assert float(error.response.headers["retry-after"]) >= 1

    def check_error_mid_stream(self) -> None:
        told: list[str] = []

        def ask() -> None:
            told.extend(chunk.content for chunk in self.chat.stream(self.given.cut_message))

        assert raised(openai.APIError, ask).message
        assert "".join(told), "nothing came before the error"

    def check_retry(self) -> None:
        chat = self._chat(api_key=self.given.retry_key, model=self.given.flaky_model, max_retries=2)
        assert chat.invoke(self.given.once_message).content

    def check_no_retry(self) -> None:
        chat = self._chat(api_key=self.given.still_key, max_retries=2)
        raised(openai.InternalServerError, lambda: chat.invoke(self.given.perhaps_billed_message))

    def check_timeout(self) -> None:
        chat = self._chat(timeout=1, api_key=self.given.timeout_key)
        raised(openai.APITimeoutError, lambda: chat.invoke(self.given.slow_message))

    def check_cancel(self) -> None:
        stream = self._chat(api_key=self.given.cancel_key).stream(self.given.long_message)
        for _, _ in zip(range(3), stream, strict=False):
            pass
        stream.close()

    def _chat(self, **other: Any) -> ChatOpenAI:
        return ChatOpenAI(**self._settings("model") | {"timeout": 30} | other)

    def _embeddings(self) -> OpenAIEmbeddings:
        # Its own check of lengths would fetch a tokenizer's table from the internet.
        return OpenAIEmbeddings(**self._settings("embedding_model"), check_embedding_ctx_length=False)

    def _structured(self, method: str) -> Any:
        return self.chat.with_structured_output(Tide, method=method).invoke("The tide, please.")

    def _settings(self, model: str) -> dict[str, Any]:
        return {
            "model": getattr(self.given, model),
            "base_url": self.given.base_url,
            "api_key": self.given.api_key,
            "max_retries": 0,
        }

    def _refused(self, expected: type[openai.APIStatusError], status: int, **other: Any) -> openai.APIStatusError:
        error = raised(expected, lambda: self._chat(**other).invoke("Good morning."))
        assert error.status_code == status, error.status_code
        assert {"message", "type", "param", "code"} <= error.body.keys(), error.body
        return error


class _Nothing:
    """What a sum of chunks begins with."""

    def __add__(self, other: Any) -> Any:
        return other


if __name__ == "__main__":
    sys.exit(main(Cases, "langchain-openai", version("langchain-openai")))
