"""The official OpenAI SDK against an OpenAI-wire server: each promise of the wire is a named check.

It runs in an environment of its own that holds nothing of ours, so it imports only the SDK and the standard library.
Checks that need a state of the server (a spent budget, a hidden model) take it from arguments and are "not run"
without. Run it first against the simulator, to trust the simulator, then against the gateway.
"""

import argparse
import asyncio
import contextlib
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import openai
from cases import NotRun, checks_of, raised, run
from openai import AsyncOpenAI, OpenAI

TOOL = {
    "type": "function",
    "function": {
        "name": "tide",
        "description": "The tide at a place.",
        "parameters": {
            "type": "object",
            "properties": {"place": {"type": "string"}, "hour": {"type": "integer"}},
            "required": ["place", "hour"],
            "additionalProperties": False,
        },
    },
}


class Tide(openai.BaseModel, extra="forbid"):
    place: str
    metres: float


class Suite:
    """All checks: the methods named check_*, in the order in which they are written."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given
        self.client = self._client()

    def check_chat(self) -> None:
        reply = self._ask("Good morning.")
        assert reply.object == "chat.completion", reply.object
        assert reply.choices[0].message.role == "assistant"
        assert reply.choices[0].message.content, "no content"
        assert reply.choices[0].finish_reason == "stop", reply.choices[0].finish_reason
        assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
        assert reply.usage.completion_tokens > 0

    def check_output_ceiling_is_kept(self) -> None:
        reply = self._ask(self.given.long_message, max_tokens=16)
        assert reply.choices[0].finish_reason == "length", reply.choices[0].finish_reason
        assert reply.usage.completion_tokens <= 16, reply.usage.completion_tokens

    def check_stream(self) -> None:
        whole = self._ask("Good morning.").choices[0].message.content
        chunks = list(self._ask("Good morning.", stream=True))
        assert _text(chunks) == whole, f"joined {_text(chunks)!r}, whole {whole!r}"
        assert chunks[0].choices[0].delta.role == "assistant"
        assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
        assert len({chunk.id for chunk in chunks}) == 1, "more than one id in one stream"

    def check_stream_helper(self) -> None:
        with self.client.chat.completions.stream(**self._about("Good morning.")) as stream:
            final = stream.get_final_completion()
        assert final.choices[0].message.content

    def calm(self) -> None:
        """One plain call: a gateway lets a target rest that failed too often in a row, and the checks make it fail."""
        with contextlib.suppress(openai.OpenAIError):
            self._ask("Good morning.")

    def check_stream_usage(self) -> None:
        chunks = list(self._ask("Good morning.", stream=True, stream_options={"include_usage": True}))
        usages = [chunk for chunk in chunks if chunk.usage is not None]
        assert len(usages) == 1, f"{len(usages)} chunks carry usage"
        assert usages[0] is chunks[-1], "usage is not in the last chunk"
        assert usages[0].choices == []
        assert usages[0].usage.completion_tokens == self._ask("Good morning.").usage.completion_tokens

    def check_include_usage_off(self) -> None:
        chunks = list(self._ask("Good morning.", stream=True))
        assert all(chunk.usage is None for chunk in chunks), "usage leaks to a caller who did not ask"
        assert all(chunk.choices for chunk in chunks), "an empty chunk leaks to a caller who did not ask"

    def check_tools(self) -> None:
        reply = self._ask("How high is the tide?", tools=[TOOL])
        message = reply.choices[0].message
        assert reply.choices[0].finish_reason == "tool_calls", reply.choices[0].finish_reason
        call = message.tool_calls[0]
        assert call.function.name == "tide"
        _is_tide(call.function.arguments)
        answer = {"role": "tool", "tool_call_id": call.id, "content": '{"metres": 2.5}'}
        told = [*self._about("How high is the tide?")["messages"], message.model_dump(exclude_none=True), answer]
        final = self.client.chat.completions.create(model=self.given.model, messages=told, tools=[TOOL])
        assert final.choices[0].finish_reason == "stop", final.choices[0].finish_reason
        assert final.choices[0].message.content

    def check_tools_streamed(self) -> None:
        deltas = [
            c.choices[0].delta for c in self._ask("How high is the tide?", stream=True, tools=[TOOL]) if c.choices
        ]
        calls = [call for delta in deltas for call in delta.tool_calls or ()]
        assert calls[0].id
        assert calls[0].function.name == "tide"
        _is_tide("".join(call.function.arguments or "" for call in calls))

    def check_structured(self) -> None:
        reply = self.client.chat.completions.parse(**self._about("The tide, please."), response_format=Tide)
        assert isinstance(reply.choices[0].message.parsed, Tide), reply.choices[0].message.content

    def check_json_object(self) -> None:
        reply = self._ask("JSON, please.", response_format={"type": "json_object"})
        assert isinstance(json.loads(reply.choices[0].message.content), dict)

    def check_two_choices(self) -> None:
        whole = self._ask("Good morning.", n=2)
        assert [choice.index for choice in whole.choices] == [0, 1]
        chunks = list(self._ask("Good morning.", n=2, stream=True))
        for choice in whole.choices:
            mine = [c for c in chunks if c.choices and c.choices[0].index == choice.index]
            assert _text(mine) == choice.message.content
            assert [c.choices[0].finish_reason for c in mine if c.choices[0].finish_reason] == ["stop"]

    def check_text_beyond_ascii(self) -> None:
        said = "Grüße, 世界 🌊"
        asked = f"sim: {json.dumps({'text': said, 'split': 'byte'})}"
        assert self._ask(asked).choices[0].message.content == said
        assert _text(self._ask(asked, stream=True)) == said

    def check_async(self) -> None:
        async def ask() -> tuple[str, str]:
            async with AsyncOpenAI(**self._settings()) as client:
                whole = await client.chat.completions.create(**self._about("Good morning."))
                stream = await client.chat.completions.create(**self._about("Good morning."), stream=True)
                return _text([chunk async for chunk in stream]), whole.choices[0].message.content

        joined, whole = asyncio.run(ask())
        assert joined == whole

    def check_headers(self) -> None:
        raw = self.client.chat.completions.with_raw_response.create(**self._about("Good morning."))
        assert raw.headers["x-request-id"], "no x-request-id"
        assert raw.headers["content-type"].startswith("application/json")
        assert raw.parse()._request_id == raw.headers["x-request-id"]

    def check_models(self) -> None:
        models = [model.id for model in self.client.models.list()]
        assert self.given.model in models, models
        assert self.given.hidden_model not in models, "a hidden model is listed"

    def check_error_401(self) -> None:
        error = self._refused(openai.AuthenticationError, 401, key=self.given.wrong_key)
        assert error.code == "invalid_api_key", error.code

    def check_error_403(self) -> None:
        forbidden = self._state("forbidden")
        error = self._refused(openai.PermissionDeniedError, 403, **forbidden)
        assert error.body["message"], "no reason is given"

    def check_error_404(self) -> None:
        error = self._refused(openai.NotFoundError, 404, model=self.given.missing_model)
        assert error.code == "model_not_found", error.code

    def check_hidden_model_is_not_found(self) -> None:
        error = self._refused(openai.NotFoundError, 404, **self._state("hidden"))
        assert error.code == "model_not_found", error.code

    def check_error_400(self) -> None:
        for wrong in ({"messages": []}, {"n": -1}, {"messages": [{"role": "nobody", "content": "x"}]}):
            self._refused(openai.BadRequestError, 400, **wrong)

    def check_error_429(self) -> None:
        error = self._refused(openai.RateLimitError, 429, **self._state("limited"))
        assert float(error.response.headers["retry-after"]) >= 0

    def check_error_402(self) -> None:
        error = self._refused(openai.APIStatusError, 402, max_retries=2, **self._state("broke"))
        assert type(error) is openai.APIStatusError, type(error)
        assert error.response.request.headers["x-stainless-retry-count"] == "0", "the SDK retried"

    def check_internal_server_error(self) -> None:
        error = self._refused(openai.InternalServerError, None, message=self.given.failing_message)
        assert error.status_code >= 500

    def check_server_errors_are_retried(self) -> None:
        error = self._refused(openai.InternalServerError, None, message=self.given.failing_message, max_retries=1)
        assert error.response.request.headers["x-stainless-retry-count"] == "1", "the SDK did not retry"

    def check_error_mid_stream(self) -> None:
        error = raised(openai.APIError, lambda: list(self._ask(self.given.cut_message, stream=True)))
        assert error.message

    def check_content_before_an_error_arrives(self) -> None:
        stream = iter(self._ask(self.given.cut_message, stream=True))
        first = [next(stream), next(stream), next(stream)]
        assert _text(first), "nothing came before the error"
        raised(openai.APIError, lambda: list(stream))

    def check_timeout(self) -> None:
        client = self._client(timeout=1, api_key=getattr(self.given, "timeout_key", self.given.api_key))
        slow = self._about(self.given.slow_message)
        raised(openai.APITimeoutError, lambda: client.chat.completions.create(**slow))

    def check_stream_closed_early(self) -> None:
        stream = self._ask(self.given.long_message, stream=True)
        for _ in range(3):
            next(iter(stream))
        stream.close()
        assert self._ask("Still there?").choices[0].message.content

    def check_async_task_cancelled(self) -> None:
        async def leave() -> str:
            async with AsyncOpenAI(**self._settings()) as client:
                task = asyncio.create_task(client.chat.completions.create(**self._about(self.given.slow_message)))
                await asyncio.sleep(0.2)
                task.cancel()
                gone = await asyncio.gather(task, return_exceptions=True)
                assert isinstance(gone[0], asyncio.CancelledError), gone
                reply = await client.chat.completions.create(**self._about("Still there?"))
                return reply.choices[0].message.content

        assert asyncio.run(leave())

    def _settings(self, **other: Any) -> dict[str, Any]:
        return {"base_url": self.given.base_url, "api_key": self.given.api_key, "max_retries": 0, "timeout": 30} | other

    def _client(self, **other: Any) -> OpenAI:
        return OpenAI(**self._settings(**other))

    def _about(self, message: str) -> dict[str, Any]:
        return {"model": self.given.model, "messages": [{"role": "user", "content": message}]}

    def _ask(self, message: str, **fields: Any) -> Any:
        return self.client.chat.completions.create(**self._about(message) | fields)

    def _state(self, name: str) -> dict[str, str]:
        """The key, model or message that brings the server into the named state. Raises NotRun without any."""
        found = {kind: getattr(self.given, f"{name}_{kind}", None) for kind in ("key", "model", "message")}
        named = {kind: value for kind, value in found.items() if value}
        if not named:
            raise NotRun(f"none of --{name}-key, --{name}-model, --{name}-message was given")
        return named

    def _refused(
        self,
        expected: type[openai.APIStatusError],
        status: int | None,
        *,
        key: str | None = None,
        message: str = "Good morning.",
        max_retries: int = 0,
        **fields: Any,
    ) -> openai.APIStatusError:
        """The error of exactly this family that the request earns, in OpenAI's shape with all four keys."""
        client = self._client(api_key=key or self.given.api_key, max_retries=max_retries)
        asked = self._about(message) | fields
        error = raised(expected, lambda: client.chat.completions.create(**asked))
        assert status in (None, error.status_code), f"status {error.status_code}"
        assert isinstance(error.body, dict), f"body {error.body!r}"
        assert {"message", "type", "param", "code"} <= error.body.keys(), f"error has only {sorted(error.body)}"
        assert error.request_id, "no x-request-id"
        return error


def _text(chunks: Iterable[Any]) -> str:
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)


def _is_tide(arguments: str) -> None:
    read = json.loads(arguments)
    assert isinstance(read["place"], str), read
    assert isinstance(read["hour"], int), read


def arguments() -> argparse.ArgumentParser:
    """What the suite must know of the server."""
    parser = argparse.ArgumentParser(description="The OpenAI SDK's promises, one by one.")
    parser.add_argument("--base-url", required=True, help="ends in /v1")
    parser.add_argument("--api-key", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default="", help="checks whose name contains this")
    parser.add_argument("--wrong-key", default="sk-wrong")
    parser.add_argument("--missing-model", default="no-such-model")
    for state in ("forbidden", "hidden", "limited", "broke"):
        for kind in ("key", "model", "message"):
            parser.add_argument(f"--{state}-{kind}")
    parser.add_argument("--failing-message", default='sim: {"status": 500}', help="earns a 5xx")
    parser.add_argument(
        "--cut-message", default='sim: {"tokens": 20, "error_at": 5}', help="earns an error in a stream"
    )
    parser.add_argument("--slow-message", default='sim: {"first_ms": 2000}', help="answered after a second or more")
    parser.add_argument("--long-message", default='sim: {"tokens": 200, "pace_ms": 5}', help="streams for a second")
    return parser


def main() -> int:
    """Run the checks; 1 when one failed."""
    given = arguments().parse_args()
    suite = Suite(given)
    names = [name for name in checks_of(Suite) if given.only in name]
    results = []
    for name in names:
        suite.calm()
        result = run(getattr(suite, name))
        results.append(result)
        print(f"{result['verdict']:8}{result['name']} {result['reason']}".rstrip())
    given.out.write_text(json.dumps({"sdk": f"openai {openai.__version__}", "checks": results}, indent=2) + "\n")
    return int(any(result["verdict"] == "fail" for result in results))


if __name__ == "__main__":
    sys.exit(main())
