"""Google's SDK against the simulator."""

import asyncio
import base64
import json
import sys
from functools import cached_property
from importlib.metadata import version
from typing import Any

from google import genai
from google.genai import errors, types
from verdicts import PARAMETERS, PIXEL, Checks, main, raised, scripted

TIDE = types.FunctionDeclaration(name="tide", parameters_json_schema=PARAMETERS)
TOOLS = [types.Tool(function_declarations=[TIDE])]
THOUGHTS = types.ThinkingConfig(include_thoughts=True)


class GeminiChecks(Checks):
    """Content whole and streamed, functions, thoughts, images, counting, embeddings, errors, retries."""

    sdk = f"google-genai {version('google-genai')}"

    def check_content(self) -> None:
        reply = self._ask("Good morning.")
        assert reply.text.startswith("This is")
        assert reply.candidates[0].finish_reason == types.FinishReason.STOP
        assert reply.model_version == "sim-small"

    def check_every_answer_is_of_the_sdks_own_shape(self) -> None:
        for config in (None, {"tools": TOOLS}, {"thinking_config": THOUGHTS, "candidate_count": 2}):
            asked = scripted(tokens=3, reasoning=5, cached=2, audio_output=4)
            raw = self._ask(asked, config=(config or {}) | {"should_return_http_response": True})
            assert raw.text is None
            # Its types forbid members that they do not know.
            read = types.GenerateContentResponse.model_validate_json(raw.sdk_http_response.body)
            assert read.usage_metadata.thoughts_token_count >= 5

    def check_stream(self) -> None:
        asked = scripted(tokens=6, reasoning=3)
        whole, chunks = self._ask(asked), list(self._stream(asked))
        assert "".join(chunk.text or "" for chunk in chunks) == whole.text
        assert chunks[-1].candidates[0].finish_reason == types.FinishReason.STOP
        assert chunks[-1].usage_metadata == whole.usage_metadata
        counts = [chunk.usage_metadata.candidates_token_count or 0 for chunk in chunks]
        assert counts == sorted(counts)
        assert len({chunk.response_id for chunk in chunks}) == 1

    def check_a_function_is_called_and_its_result_taken(self) -> None:
        reply = self._ask("How high is the tide?", config={"tools": TOOLS})
        (call,) = reply.function_calls
        assert (call.name, call.args) == ("tide", {"place": "x", "hour": 1})
        result = types.Part.from_function_response(name="tide", response={"metres_above": 2.5})
        contents = [
            types.Content(role="user", parts=[types.Part(text="How high is the tide?")]),
            reply.candidates[0].content,
            types.Content(role="user", parts=[result]),
        ]
        assert self._ask(contents, config={"tools": TOOLS}).text

    def check_a_streamed_function_call_comes_whole(self) -> None:
        calls = [call for chunk in self._stream("x", config={"tools": TOOLS}) for call in chunk.function_calls or ()]
        assert [call.name for call in calls] == ["tide"]

    def check_a_function_may_be_forbidden(self) -> None:
        config = {"tools": TOOLS, "tool_config": {"function_calling_config": {"mode": "NONE"}}}
        assert self._ask("x", config=config).function_calls is None

    def check_thoughts_are_shown_and_counted_beside_the_text(self) -> None:
        reply = self._ask(scripted(tokens=3, reasoning=9), config={"thinking_config": THOUGHTS})
        assert [part.thought for part in reply.candidates[0].content.parts] == [True, None]
        usage = reply.usage_metadata
        assert (usage.candidates_token_count, usage.thoughts_token_count) == (3, 9)
        assert usage.total_token_count == usage.prompt_token_count + 12

    def check_an_image_and_a_recording_are_told_apart(self) -> None:
        image = types.Part.from_bytes(data=base64.b64decode(PIXEL), mime_type="image/png")
        recording = types.Part.from_bytes(data=b"\xff\xfe\xfd", mime_type="audio/wav")
        usage = self._ask(["1234", image, recording], config={"system_instruction": "1234"}).usage_metadata
        told = {each.modality.value: each.token_count for each in usage.prompt_tokens_details}
        assert told == {"TEXT": 2, "IMAGE": 258, "AUDIO": 32}

    def check_an_answer_by_a_schema(self) -> None:
        config = {"response_mime_type": "application/json", "response_schema": {"type": "STRING", "min_length": 3}}
        said = json.loads(self._ask("x", config=config).text)
        assert said == "xxx", said

    def check_output_ceiling_is_kept(self) -> None:
        reply = self._ask(scripted(tokens=50), config={"max_output_tokens": 16})
        assert reply.candidates[0].finish_reason == types.FinishReason.MAX_TOKENS
        assert reply.usage_metadata.candidates_token_count == 16

    def check_tokens_are_counted(self) -> None:
        counted = self.client.models.count_tokens(model="sim-small", contents="12345678")
        assert counted.total_tokens == 2

    def check_embeddings(self) -> None:
        config = types.EmbedContentConfig(output_dimensionality=128)
        reply = self.client.models.embed_content(model="sim-embed", contents=["a", "b"], config=config)
        assert [len(each.values) for each in reply.embeddings] == [128, 128]
        assert reply.embeddings[0] != reply.embeddings[1]

    def check_each_status_has_its_error(self) -> None:
        for status, name in ((400, "INVALID_ARGUMENT"), (403, "PERMISSION_DENIED"), (429, "RESOURCE_EXHAUSTED")):
            error = raised(errors.ClientError, lambda status=status: self._ask(scripted(status=status, retry_after=1)))
            assert (error.code, error.status) == (status, name)
            assert error.details["error"]["details"][0]["retryDelay"] == "1s"
        for status, name in ((500, "INTERNAL"), (503, "UNAVAILABLE"), (504, "DEADLINE_EXCEEDED")):
            error = raised(errors.ServerError, lambda status=status: self._ask(scripted(status=status)))
            assert (error.code, error.status) == (status, name)

    def check_wrong_keys_models_and_data_are_refused(self) -> None:
        wrong = self._client("wrong")
        error = raised(errors.ClientError, lambda: wrong.models.generate_content(model="sim-small", contents="x"))
        assert (error.code, error.details["error"]["details"][0]["reason"]) == (400, "API_KEY_INVALID")
        error = raised(errors.ClientError, lambda: self._ask("x", model="gemini-9"))
        assert (error.code, error.status) == (404, "NOT_FOUND")

    def check_an_error_in_mid_stream_raises_after_what_came(self) -> None:
        heard: list[str] = []

        def listen() -> None:
            for chunk in self._stream(scripted(tokens=9, error_at=4)):
                heard.append(chunk.text)  # noqa: PERF401 - what came before the error is to be kept

        raised(errors.ServerError, listen)
        assert len(heard) == 4

    def check_async_client(self) -> None:
        async def ask() -> str:
            stream = await self.client.aio.models.generate_content_stream(model="sim-small", contents="x")
            return "".join([chunk.text or "" async for chunk in stream])

        assert asyncio.run(ask()) == self._ask("x").text

    @cached_property
    def client(self) -> genai.Client:
        return self._client(self.key)

    def _client(self, key: str) -> genai.Client:
        return genai.Client(api_key=key, http_options=types.HttpOptions(base_url=self.url, timeout=10_000))

    def _ask(self, contents: Any, *, model: str = "sim-small", config: Any = None) -> Any:
        reply = self.client.models.generate_content(model=model, contents=contents, config=config)
        if reply.usage_metadata:
            self._note(reply)
        return reply

    def _stream(self, contents: Any, *, config: Any = None) -> Any:
        return self.client.models.generate_content_stream(model="sim-small", contents=contents, config=config)

    def _note(self, reply: Any) -> None:
        usage = reply.usage_metadata
        went_in = {each.modality.value: each.token_count for each in usage.prompt_tokens_details or ()}
        came_out = {each.modality.value: each.token_count for each in usage.candidates_tokens_details or ()}
        cached = usage.cached_content_token_count or 0
        self.used[reply.response_id] = {
            "input": went_in.get("TEXT", 0) - cached,
            "cached_input": cached,
            "image_input": went_in.get("IMAGE", 0),
            "audio_input": went_in.get("AUDIO", 0),
            "output": came_out.get("TEXT", 0),
            "reasoning": usage.thoughts_token_count or 0,
            "audio_output": came_out.get("AUDIO", 0),
        }


if __name__ == "__main__":
    sys.exit(main(GeminiChecks))
