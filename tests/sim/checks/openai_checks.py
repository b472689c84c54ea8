"""OpenAI's SDK against the simulator, for what tests/clients/openai_suite.py does not ask; and its Azure client."""

import json
import struct
import sys
from base64 import b64decode
from collections.abc import Callable
from functools import cached_property
from typing import Any

import openai
from openai import AzureOpenAI, OpenAI
from openai.types import Completion, CreateEmbeddingResponse
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from verdicts import PARAMETERS, PIXEL, Checks, data_of, main, raised, scripted, strict

TOOL = {"type": "function", "function": {"name": "tide", "parameters": PARAMETERS}}
USAGE = {"stream_options": {"include_usage": True}}
FILTERS = ("prompt_filter_results", "content_filter_results")


class OpenAIChecks(Checks):
    """Shapes of chat, text completions, embeddings, and Azure's own ways."""

    sdk = f"openai {openai.__version__}"

    def check_chat_is_of_the_sdks_own_shape(self) -> None:
        for about in (self._about("x"), self._about("x", tools=[TOOL], n=2), self._about(scripted(tokens=2), **USAGE)):
            if "stream_options" not in about:
                raw = self.client.chat.completions.with_raw_response.create(**about)
                strict(ChatCompletion, raw.http_response.content)
            for event in self._events(self.client.chat.completions, about):
                strict(ChatCompletionChunk, event)

    def check_images_and_recordings_are_told_apart(self) -> None:
        image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}}
        recording = {"type": "input_audio", "input_audio": {"data": PIXEL, "format": "wav"}}
        content = [{"type": "text", "text": "1234"}, image, recording]
        usage = self._chat(messages=[{"role": "user", "content": content}]).usage
        assert (usage.prompt_tokens_details.image_tokens, usage.prompt_tokens_details.audio_tokens) == (258, 32)
        assert usage.prompt_tokens == 291

    def check_completion(self) -> None:
        raw = self.client.completions.with_raw_response.create(model="sim-small", prompt="Once", max_tokens=50)
        read = strict(Completion, raw.http_response.content)
        assert (read.choices[0].text[:7], read.choices[0].finish_reason) == ("This is", "stop")
        self._note(raw.headers["x-request-id"], read.usage)

    def check_completion_of_many_prompts(self) -> None:
        reply = self._complete(["one", "two", scripted(tokens=2)], n=2)
        assert [choice.index for choice in reply.choices] == [0, 1, 2, 3, 4, 5]
        assert reply.usage.completion_tokens == 12

    def check_completion_of_token_ids(self) -> None:
        assert self._complete([1, 2, 3]).usage.prompt_tokens == 3
        assert self._complete([[1, 2, 3], [4]]).usage.prompt_tokens == 4

    def check_completion_bills_all_of_which_it_gives_the_best(self) -> None:
        reply = self._complete(scripted(tokens=5), n=1, best_of=3)
        assert (len(reply.choices), reply.usage.completion_tokens) == (1, 15)

    def check_completion_without_a_ceiling_is_short(self) -> None:
        reply = self._complete(scripted(tokens=99))
        assert (reply.usage.completion_tokens, reply.choices[0].finish_reason) == (16, "length")

    def check_completion_streamed(self) -> None:
        about = {"model": "sim-small", "prompt": scripted(tokens=5), "max_tokens": 9}
        *events, last = [json.loads(event) for event in self._events(self.client.completions, about | USAGE)]
        assert [event["choices"][0]["finish_reason"] for event in events] == [None] * 5 + ["stop"]
        for event in (*events, last):
            for choice in event["choices"]:
                choice["finish_reason"] = "stop"  # of which the SDK's type knows no event without
            strict(Completion, json.dumps(event))
        whole = self._complete(**{name: value for name, value in about.items() if name != "model"})
        assert "".join(event["choices"][0]["text"] for event in events) == whole.choices[0].text
        assert (last["choices"], last["usage"]["completion_tokens"]) == ([], 5)

    def check_embedding_is_of_the_sdks_own_shape(self) -> None:
        about = {"model": "sim-embed", "input": ["12345678", "1234"], "encoding_format": "float"}
        raw = self.client.embeddings.with_raw_response.create(**about)
        read = strict(CreateEmbeddingResponse, raw.http_response.content)
        assert [each.index for each in read.data] == [0, 1]
        assert read.usage.prompt_tokens == read.usage.total_tokens == 3
        self.used[raw.headers["x-request-id"]] = {"input": 3}

    def check_embeddings_are_the_same_in_base64(self) -> None:
        about = {"model": "sim-embed", "input": "The tide."}
        plain = self._embed(**about, encoding_format="float").data[0].embedding
        packed = self._embed(**about, encoding_format="base64").data[0].embedding
        assert list(struct.unpack(f"<{len(plain)}f", b64decode(packed))) == plain
        assert self._embed(**about).data[0].embedding == plain

    def check_embeddings_have_the_dimensions_asked_for(self) -> None:
        reply = self._embed(model="sim-embed", input=["a", "b", "a"], dimensions=256)
        first, second, third = (each.embedding for each in reply.data)
        assert len(first) == 256
        assert first == third != second
        assert abs(sum(number * number for number in first) - 1) < 1e-6

    def check_embeddings_of_token_ids(self) -> None:
        assert self._embed(model="sim-embed", input=[1, 2, 3]).usage.prompt_tokens == 3
        reply = self._embed(model="sim-embed", input=[[1, 2, 3], [4]])
        assert (reply.usage.prompt_tokens, len(reply.data)) == (4, 2)

    def check_bad_embeddings_and_completions_are_refused(self) -> None:
        for bad in ({"input": ""}, {"input": []}, {"input": ["a", 1]}, {"input": "a", "dimensions": 0}):
            raised(openai.BadRequestError, lambda bad=bad: self._embed(model="sim-embed", **bad))
        for bad in ({"best_of": 1, "n": 2}, {"echo": True}, {"max_tokens": 0}):
            raised(openai.BadRequestError, lambda bad=bad: self._complete("x", **bad))
        raised(openai.NotFoundError, lambda: self._embed(model="no-such-model", input="x"))

    def check_scripted_statuses_come_from_every_door(self) -> None:
        script = scripted(status=429, retry_after=0)
        doors: tuple[Callable[[], Any], ...] = (
            lambda: self._complete(script),
            lambda: self._embed(model="sim-embed", input=script),
            lambda: self.azure.chat.completions.create(**self._about(script)),
            lambda: self.azure.embeddings.create(model="sim-embed", input=script),
        )
        for door in doors:
            assert raised(openai.RateLimitError, door).response.headers["retry-after"] == "0"

    def check_azure_chat(self) -> None:
        raw = self.azure.chat.completions.with_raw_response.create(**self._about(scripted(tokens=3, cached=2)))
        told = json.loads(raw.http_response.content)
        assert told["choices"][0]["content_filter_results"]["hate"] == {"filtered": False, "severity": "safe"}
        assert told["prompt_filter_results"][0]["prompt_index"] == 0
        read = strict(ChatCompletion, json.dumps(_unfiltered(told)))
        assert raw.headers["apim-request-id"] != raw.headers["x-request-id"]
        self._note(raw.headers["x-request-id"], read.usage)

    def check_azure_chat_streamed(self) -> None:
        about = self._about("x", tools=[TOOL], **USAGE)
        first, *others = self._events(self.azure.chat.completions, about)
        assert json.loads(first)["choices"] == []
        assert json.loads(first)["object"] == "", "its own shape, which no SDK knows"
        for event in others:
            strict(ChatCompletionChunk, json.dumps(_unfiltered(json.loads(event))))
        heard = list(self.azure.chat.completions.create(**about, stream=True))
        assert heard[-1].usage.completion_tokens > 0

    def check_azure_embeddings(self) -> None:
        reply = self.azure.embeddings.create(model="sim-embed", input="The tide.")
        assert reply.data[0].embedding == self._embed(model="sim-embed", input="The tide.").data[0].embedding

    def check_azure_errors(self) -> None:
        wrong = self._azure(api_key="wrong")
        unknown = self._about("x", model="no-such-deployment")
        error = raised(openai.AuthenticationError, lambda: wrong.chat.completions.create(**self._about("x")))
        assert error.code == "401"
        error = raised(openai.NotFoundError, lambda: self.azure.chat.completions.create(**unknown))
        assert error.code == "DeploymentNotFound"
        bad = self._about("x", n=-1)
        error = raised(openai.BadRequestError, lambda: self.azure.chat.completions.create(**bad))
        assert error.param == "n"
        cut = self._about(scripted(tokens=9, error_at=4), stream=True)
        raised(openai.APIError, lambda: list(self.azure.chat.completions.create(**cut)))

    def _settings(self, **other: Any) -> dict[str, Any]:
        return {"api_key": self.key, "max_retries": 0, "timeout": 10} | other

    @cached_property
    def client(self) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", **self._settings())

    @cached_property
    def azure(self) -> AzureOpenAI:
        return self._azure()

    def _azure(self, **other: Any) -> AzureOpenAI:
        return AzureOpenAI(azure_endpoint=self.url, api_version="2024-10-21", **self._settings(**other))

    def _about(self, message: str, **fields: Any) -> dict[str, Any]:
        return {"model": "sim-small", "messages": [{"role": "user", "content": message}]} | fields

    def _events(self, door: Any, about: dict[str, Any]) -> list[str]:
        with door.with_streaming_response.create(**about, stream=True) as response:
            return data_of(response.iter_lines())

    def _chat(self, **fields: Any) -> Any:
        return self._noted(self.client.chat.completions.create(**self._about("") | fields))

    def _complete(self, prompt: Any, **fields: Any) -> Any:
        return self._noted(self.client.completions.create(**{"model": "sim-small", "prompt": prompt} | fields))

    def _embed(self, **fields: Any) -> Any:
        reply = self.client.embeddings.create(**fields)
        self.used[reply._request_id or ""] = {"input": reply.usage.prompt_tokens}
        return reply

    def _noted(self, reply: Any) -> Any:
        self._note(reply._request_id, reply.usage)
        return reply

    def _note(self, request_id: str, usage: Any) -> None:
        went_in, came_out = usage.prompt_tokens_details, usage.completion_tokens_details
        apart = {
            "cached_input": went_in.cached_tokens,
            "cache_write": went_in.cache_write_tokens,
            "audio_input": went_in.audio_tokens,
            "image_input": went_in.image_tokens,
        }
        beside = {"reasoning": came_out.reasoning_tokens, "audio_output": came_out.audio_tokens}
        rest = {
            "input": usage.prompt_tokens - sum(apart.values()),
            "output": usage.completion_tokens - sum(beside.values()),
        }
        self.used[request_id] = apart | beside | rest


def _unfiltered(told: Any) -> Any:
    """What Azure says without what OpenAI's SDK knows nothing of."""
    if isinstance(told, list):
        return [_unfiltered(each) for each in told]
    if not isinstance(told, dict):
        return told
    return {name: _unfiltered(value) for name, value in told.items() if name not in FILTERS}


if __name__ == "__main__":
    sys.exit(main(OpenAIChecks))
