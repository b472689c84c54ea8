"""OpenAI as Azure deploys it: chat and embeddings at paths, with filter results and with errors of its own."""

import re
from collections.abc import Iterator
from typing import Any

import msgspec

from tests.sim.answer import Said
from tests.sim.connection import Headers, Request
from tests.sim.openai import Chat, Embedding, error_of
from tests.sim.openai_ask import read_chat, read_embedding
from tests.sim.refusal import Refusal
from tests.sim.wire import Door, Wire, same

_PATH = re.compile(r"/openai/deployments/([^/]+)/(.+)")
_SAFE = {name: {"filtered": False, "severity": "safe"} for name in ("hate", "self_harm", "sexual", "violence")}
_PROMPT_FILTER = [{"prompt_index": 0, "content_filter_results": _SAFE}]
# What Azure itself refuses before the model sees it has a code where OpenAI's errors have their type.
_CODES = {"model_not_found": "DeploymentNotFound", "unknown_url": "404"}


class AzureChat(Chat):
    """A chat completion whose prompt and text were found harmless."""

    __slots__ = ()

    def say(self) -> Iterator[Said]:
        about_nothing = {"id": "", "object": "", "created": 0, "model": ""}
        yield about_nothing | {"choices": [], "prompt_filter_results": _PROMPT_FILTER}, 0
        yield from super().say()

    def part(self, choice: int, piece: str | None, reason: str | None) -> dict[str, Any]:
        filtered = {} if piece is None else _SAFE
        return super().part(choice, piece, reason) | {"content_filter_results": filtered}

    def choice(self, index: int) -> dict[str, Any]:
        return super().choice(index) | {"content_filter_results": _SAFE}

    def whole(self) -> dict[str, Any]:
        return super().whole() | {"prompt_filter_results": _PROMPT_FILTER}


class Azure(Wire):
    """Azure; a deployment is named as its model is."""

    end = b"data: [DONE]\n\n"
    doors = {  # noqa: RUF012 - declared in Wire
        "chat/completions": Door("POST", read_chat, AzureChat),
        "embeddings": Door("POST", read_embedding, Embedding),
    }

    def speaks(self, request: Request) -> bool:
        return request.path.startswith("/openai/")

    def admit(self, request: Request, key: str) -> None:
        if not same(request.headers.get("api-key", ""), key):
            raise Refusal(401, "Access denied due to invalid subscription key or wrong API endpoint.")

    def place(self, request: Request) -> tuple[str, str]:
        found = _PATH.fullmatch(request.path)
        if found is None or not request.query.get("api-version"):
            raise Refusal(404, "Resource not found", "unknown_url")
        return found[2], found[1]

    def request_id(self, number: str) -> str:
        return f"azure-{number}"

    def client_id(self, request: Request) -> str | None:
        return request.headers.get("x-ms-client-request-id") or super().client_id(request)

    def headers(self, number: str) -> Headers:
        return (*super().headers(number), ("apim-request-id", f"apim-{number}"))

    def error(self, refusal: Refusal, number: str) -> bytes:
        if refusal.status == 400:
            return msgspec.json.encode(error_of(refusal))
        code = _CODES.get(refusal.code or "", str(refusal.status))
        return msgspec.json.encode({"error": {"code": code, "message": refusal.message}})
