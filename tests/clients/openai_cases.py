"""The OpenAI SDK for Python: all of openai_suite.py, and what the gateway adds to OpenAI's promises."""

import asyncio
import base64
import struct
import sys

import openai
from cases import PNG, main, raised
from openai import AsyncOpenAI
from openai_suite import Suite


class Cases(Suite):
    """The suite's checks, then these."""

    def check_image(self) -> None:
        picture = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}}
        told = [{"role": "user", "content": [{"type": "text", "text": "What is this?"}, picture]}]
        assert self._ask("", messages=told).choices[0].message.content

    def check_embeddings(self) -> None:
        texts = ["The tide is low.", "The gate is open."]
        found = self.client.embeddings.create(model=self.given.embedding_model, input=texts)
        assert [each.index for each in found.data] == [0, 1]
        assert all(isinstance(number, float) for each in found.data for number in each.embedding)
        assert found.usage.prompt_tokens == found.usage.total_tokens > 0

    def check_embeddings_as_base64(self) -> None:
        about = {"model": self.given.embedding_model, "input": "The tide is low."}
        plain = self.client.embeddings.create(**about, encoding_format="float").data[0].embedding
        raw = base64.b64decode(self.client.embeddings.create(**about, encoding_format="base64").data[0].embedding)
        packed = struct.unpack(f"<{len(plain)}f", raw)
        assert max(abs(one - other) for one, other in zip(plain, packed, strict=True)) < 1e-6

    def check_embeddings_of_tokens(self) -> None:
        found = self.client.embeddings.create(model=self.given.embedding_model, input=[[1, 2, 3], [4, 5]])
        assert len(found.data) == 2

    def check_completions(self) -> None:
        about = {"model": self.given.model, "prompt": "Good morning.", "max_tokens": 32}
        whole = self.client.completions.create(**about)
        assert whole.choices[0].text
        assert whole.usage.total_tokens > 0
        told = [
            chunk.choices[0].text for chunk in self.client.completions.create(**about, stream=True) if chunk.choices
        ]
        assert "".join(told) == whole.choices[0].text

    def check_penstock_headers(self) -> None:
        raw = self.client.chat.completions.with_raw_response.create(**self._about("Good morning."))
        assert raw.headers["x-penstock-model"] == self.given.model, raw.headers["x-penstock-model"]
        assert float(raw.headers["x-penstock-cost-usd"]) >= 0
        assert raw.headers["x-penstock-attempts"] == "1"

    def check_hints(self) -> None:
        hinted = {"extra_body": {"penstock": {"task_type": "greeting", "tags": ["clients"]}}}
        assert self._ask("Good morning.", **hinted).choices[0].message.content
        asked = self._about("Good morning.") | {"extra_body": {"penstock": {"data_class": "restricted"}}}
        error = raised(openai.PermissionDeniedError, lambda: self.client.chat.completions.create(**asked))
        assert error.code == "policy_denied", error.code

    def check_beta_helpers(self) -> None:
        beta = self.client.beta
        assert beta.chat.completions.parse(**self._about("Good morning.")).choices[0].message.content

    def check_error_429(self) -> None:
        client = self._client(api_key=self.given.limited_key)
        asked = self._about("Good morning.")
        error = raised(openai.RateLimitError, lambda: client.chat.completions.create(**asked), tries=3)
        assert float(error.response.headers["retry-after"]) >= 1

    def check_retry(self) -> None:
        client = self._client(api_key=self.given.retry_key, max_retries=2)
        asked = self._about(self.given.once_message) | {"model": self.given.flaky_model}
        assert client.chat.completions.create(**asked).choices[0].message.content

    def check_no_retry(self) -> None:
        client = self._client(api_key=self.given.still_key, max_retries=2)
        asked = self._about(self.given.perhaps_billed_message)
        error = raised(openai.InternalServerError, lambda: client.chat.completions.create(**asked))
        assert error.response.headers["x-should-retry"] == "false"

    def check_cancel(self) -> None:
        client = self._client(api_key=self.given.cancel_key)
        stream = client.chat.completions.create(**self._about(self.given.long_message), stream=True)
        for _, _ in zip(range(3), stream, strict=False):
            pass
        stream.close()

    def check_cancel_async(self) -> None:
        async def leave() -> str:
            async with AsyncOpenAI(**self._settings()) as client:
                asked = self._about(self.given.long_message)
                async with await client.chat.completions.create(**asked, stream=True) as stream:
                    async for chunk in stream:
                        if chunk.choices and chunk.choices[0].delta.content:
                            break
                again = await client.chat.completions.create(**self._about("Still there?"))
                return again.choices[0].message.content

        assert asyncio.run(leave())


if __name__ == "__main__":
    sys.exit(main(Cases, "openai (Python)", openai.__version__))
