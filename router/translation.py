"""How a call is put to litellm, and what its answer becomes in the wire that was asked for.

The middle part of the translator, whose contract translator.py tells. Nothing here listens; litellm is imported by
`load`, and the network is reached by `make_transport`'s transport alone.
"""

import array
import asyncio
import base64
import contextlib
import json
import re
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from router import raw_usage
else:
    raw_usage = sys.modules["raw_usage"]  # translator.py has put it there

CALLS_MAX = 256
_SECONDS_MAX = 86_400.0
_MESSAGE_CHARACTERS_MAX = 2000
_CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"
_COUNT, _EMBEDDINGS = "/v1/messages/count_tokens", "/v1/embeddings"
_OF_CHAT = (
    "messages max_tokens max_completion_tokens temperature top_p top_k n stop seed stream tools tool_choice "
    "parallel_tool_calls functions function_call response_format frequency_penalty presence_penalty logit_bias "
    "logprobs top_logprobs user modalities audio prediction reasoning_effort thinking verbosity prompt_cache_key "
    "safety_identifier"
)
_OF_MESSAGES = (
    "messages system max_tokens temperature top_p top_k stop_sequences stream tools tool_choice thinking metadata "
    "output_config output_format"
)
_OF_COUNTS = "messages system tools tool_choice thinking"
_OF_EMBEDDINGS = "input dimensions user"
MEMBERS: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        _CHAT: frozenset(_OF_CHAT.split()),
        MESSAGES: frozenset(_OF_MESSAGES.split()),
        _COUNT: frozenset(_OF_COUNTS.split()),
        _EMBEDDINGS: frozenset(_OF_EMBEDDINGS.split()),
    }
)
# Said about the call and not to the model; encoding_format is done here.
_NOT_HANDED_ON = frozenset({"model", "stream_options", "store", "metadata", "encoding_format", "service_tier"})
_TOOLS = frozenset({None, "function", "custom"})  # all others are run, and charged for, by their provider
_STANDARD_TIERS = frozenset({None, "auto", "default", "standard_only"})
_SECRETS = frozenset(
    {"api_key", "azure_ad_token", "aws_access_key_id", "aws_secret_access_key", "aws_session_token", "aws_region_name"}
)
_SAID_AT_ONCE = frozenset({"message_start", "content_block_start", "ping"})
_MARKS_CACHES = frozenset({"anthropic", "bedrock", "azure_ai", "databricks", "openrouter"})
_COUNT_THEMSELVES = frozenset({"anthropic", "gemini"})
_REFERENCE = "x-client-request-id"
_HANDED_BACK = ("retry-after", "retry-after-ms")


class Refusal(Exception):
    """What a caller is told instead of an answer, in OpenAI's error shape."""

    def __init__(self, status: int, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers: list[tuple[str, str]] = []
        kind = "server_error" if status >= 500 else "invalid_request_error"  # noqa: PLR2004 - the first of that kind
        self.error = {"message": message[:_MESSAGE_CHARACTERS_MAX], "type": kind, "param": param, "code": code}


@dataclass(slots=True)
class Call:
    """One request to one provider, complete. options: litellm's arguments about how, members: those about what."""

    path: str
    provider: str
    model: str
    seconds: float
    options: dict[str, Any]
    members: dict[str, Any]
    wants_base64: bool
    reading: raw_usage.Reading = field(default_factory=raw_usage.Reading)

    @classmethod
    def read(cls, path: str, headers: Mapping[str, str], body: bytes) -> "Call":
        """The call that a request describes. headers: names in lower case. Raises Refusal."""
        said = _object(body, "The body")
        provider, model = headers.get("x-penstock-provider", ""), said.get("model")
        if not re.fullmatch("[a-z0-9_]{1,64}", provider) or not isinstance(model, str) or not model:
            raise Refusal(400, "A provider (X-Penstock-Provider) and a model must be named.")
        try:
            seconds = float(headers.get("x-penstock-seconds", "600"))
        except ValueError:
            seconds = 0.0
        if not 0 < seconds <= _SECONDS_MAX:
            raise Refusal(400, "X-Penstock-Seconds must be a number of seconds, at most a day.")
        base_url, own = headers.get("x-penstock-base-url"), _object(headers.get("x-penstock-headers", "{}"), "Headers")
        if provider == "anthropic" and base_url and base_url.endswith("/v1"):
            base_url += "/messages"  # where litellm would otherwise say /v1 again
        reference = {_REFERENCE: headers[_REFERENCE]} if _REFERENCE in headers else {}
        options = {
            **_secrets(headers.get("x-penstock-credential", "")),
            "api_base": base_url,
            "api_version": headers.get("x-penstock-api-version"),
            "extra_headers": {str(name): str(value) for name, value in own.items()} | reference,
        }
        options = {name: value for name, value in options.items() if value}
        wants_base64 = path == _EMBEDDINGS and said.get("encoding_format") == "base64"
        return cls(path, provider, model, seconds, options, _members(path, provider, said), wants_base64)

    @property
    def usage(self) -> dict[str, Any] | None:
        """What the provider told of it, in the wire that was asked for."""
        parts = self.reading.components
        return None if parts is None else raw_usage.write_usage(parts, messages=self.path == MESSAGES)

    def require_whole(self) -> None:
        """Raises Refusal where the provider's answer was cut or reported an error, whatever litellm made of it."""
        if self.reading.status and not self.reading.is_whole:
            message = self.reading.error.get("message") or "The provider ended its answer before it was complete."
            raise Refusal(504, str(message), code="upstream_broken")


def _object(text: bytes | str, what: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise Refusal(400, f"{what} must be a JSON object.")
    return value


def _secrets(credential: str) -> dict[str, str]:
    if not credential.startswith("{"):
        return {"api_key": credential or "none"}  # without one litellm would look for it elsewhere
    secrets = _object(credential, "X-Penstock-Credential")
    if not secrets.keys() <= _SECRETS:
        raise Refusal(400, f"A credential of several parts may have {', '.join(sorted(_SECRETS))}.")
    return {name: str(value) for name, value in secrets.items()}


def _members(path: str, provider: str, said: Mapping[str, Any]) -> dict[str, Any]:
    if said.get("service_tier") not in _STANDARD_TIERS:
        raise Refusal(400, "A service tier at another price cannot be asked for here.", param="service_tier")
    passed_over = _NOT_HANDED_ON - MEMBERS[path]
    members = {name: value for name, value in said.items() if value is not None and name not in passed_over}
    for name in members.keys() - MEMBERS[path]:
        raise Refusal(400, f"`{name[:100]}` cannot be translated for this provider.", param=name[:100])
    for tool in members.get("tools") or ():
        if isinstance(tool, dict) and tool.get("type") not in _TOOLS:
            raise Refusal(400, f"Tools of the type `{str(tool['type'])[:100]}` cannot be translated.", param="tools")
    # A mark to cache is advice; where caches are things of their own, litellm would make one first, by another call.
    return members if provider in _MARKS_CACHES else {name: _unmarked(value) for name, value in members.items()}


def _unmarked(value: Any) -> Any:
    if isinstance(value, list):
        return [_unmarked(each) for each in value]
    if not isinstance(value, dict):
        return value
    mark = value.get("cache_control")
    is_marked = isinstance(mark, dict) and mark.get("type") == "ephemeral"
    return {name: _unmarked(each) for name, each in value.items() if not (is_marked and name == "cache_control")}


_CURRENT: ContextVar[Call] = ContextVar("call")


def make_transport() -> Any:
    """The only way out: an httpx transport that lets each call's first POST through, and reads what comes back."""
    import httpx  # noqa: PLC0415 - of the other environment

    class Body(httpx.AsyncByteStream):  # type: ignore[misc]  # httpx is unknown where types are checked
        def __init__(self, stream: Any, reading: raw_usage.Reading) -> None:
            self._stream, self._reading = stream, reading

        async def __aiter__(self) -> AsyncIterator[bytes]:
            async for data in self._stream:
                self._reading.feed(data)
                yield data
            self._reading.finish()

        async def aclose(self) -> None:
            await self._stream.aclose()

    class Transport(httpx.AsyncHTTPTransport):  # type: ignore[misc]
        async def handle_async_request(self, request: Any) -> Any:
            reading = _CURRENT.get().reading
            if reading.sent or request.method != "POST":
                raise httpx.UnsupportedProtocol("One call is one POST to the provider.")
            reading.sent = True
            request.headers["accept-encoding"] = "identity"
            try:
                response = await super().handle_async_request(request)
            except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol):
                reading.unreached = True
                raise
            reading.begin(response.status_code, response.headers)
            reading.close = response.stream.aclose
            response.stream = Body(response.stream, reading)
            return response

        async def aclose(self) -> None:
            """Clients come and go with their calls; it stays."""

    def refuse(*_: object) -> Any:
        raise httpx.UnsupportedProtocol("Nothing here waits for the network in a thread.")

    httpx.HTTPTransport.handle_request = refuse
    return Transport(limits=httpx.Limits(max_connections=None, max_keepalive_connections=CALLS_MAX, keepalive_expiry=5))


def load() -> Any:
    """Litellm, tamed: it reaches the network by our transport only, and neither tries again, keeps, logs nor counts."""
    transport = make_transport()  # before it is imported, so that it cannot reach anything while it is
    sys.modules["litellm.proxy.proxy_server"] = None  # type: ignore[assignment]  # it looks for one with every message
    import litellm  # noqa: PLC0415 - takes seconds and 190 MiB
    from litellm.caching.llm_caching_handler import LLMClientCache  # noqa: PLC0415
    from litellm.llms.anthropic.pass_through.adapters import handler  # noqa: PLC0415
    from litellm.llms.custom_httpx.http_handler import AsyncHTTPHandler  # noqa: PLC0415

    class Forgetful(LLMClientCache):  # type: ignore[misc]  # its clients know the credentials they were made with
        def set_cache(self, *_: Any, **__: Any) -> None:
            """Keep nothing."""

    litellm.in_memory_llm_clients_cache = Forgetful()
    AsyncHTTPHandler.create_async_transport = staticmethod(lambda *_, **__: transport)
    AsyncHTTPHandler.create_httpx_proxy_mounts = staticmethod(lambda *_, **__: None)
    # OpenAI's newer wire has another path, which most that speak the older one do not have.
    adapter = handler.LiteLLMMessagesToCompletionTransformationHandler
    adapter._route_openai_thinking_to_responses_api_if_needed = staticmethod(lambda *_, **__: None)  # noqa: SLF001
    litellm.disable_hf_tokenizer_download = True
    litellm.disable_streaming_logging = True
    litellm.turn_off_message_logging = True
    litellm.suppress_debug_info = True
    litellm.drop_params = False
    litellm.telemetry = False
    return litellm


class Asking:
    """Puts calls to litellm and answers them in their own wire: a JSON object, or the events of a stream."""

    def __init__(self, litellm: Any) -> None:
        self._litellm = litellm
        self._ways: Mapping[str, Callable[[Call], Awaitable[Any]]] = {
            _CHAT: self._chat,
            MESSAGES: self._messages,
            _COUNT: self._count,
            _EMBEDDINGS: self._embeddings,
        }

    async def ask(self, call: Call) -> dict[str, Any] | AsyncGenerator[bytes, None]:
        """The answer; of a stream, at least its first event has come. Raises Refusal."""
        _CURRENT.set(call)
        try:
            answer: dict[str, Any] | AsyncGenerator[bytes, None] = await self._ways[call.path](call)
            if isinstance(answer, dict):
                call.require_whole()
                return answer
            return await _begun(answer)
        except Refusal:
            raise
        except Exception as wrong:
            raise read_failure(call, wrong) from wrong

    def _arguments(self, call: Call) -> dict[str, Any]:
        once = {"max_retries": 0, "num_retries": 0, "timeout": call.seconds, "no-log": True}
        return {**call.members, **call.options, **once, "model": f"{call.provider}/{call.model}"}

    def _generating(self, call: Call) -> dict[str, Any]:
        return self._arguments(call) | {"_skip_mcp_handler": True}  # it would run servers' tools by itself

    async def _chat(self, call: Call) -> dict[str, Any] | AsyncGenerator[bytes, None]:
        if call.members.get("stream"):
            arguments = self._generating(call) | {"stream_options": {"include_usage": True}}
            return _chunks(call, await self._litellm.acompletion(**arguments))
        said = _plain(call, await self._litellm.acompletion(**self._generating(call)))
        for choice in said["choices"]:
            choice["message"].setdefault("content", None)
        return said

    async def _messages(self, call: Call) -> dict[str, Any] | AsyncGenerator[bytes, None]:
        if "max_tokens" not in call.members:
            raise Refusal(400, "max_tokens is required.", param="max_tokens")
        from litellm.llms.anthropic.pass_through.adapters.handler import (  # noqa: PLC0415
            LiteLLMMessagesToCompletionTransformationHandler as Adapter,
        )

        # Litellm's own way in goes on reading after its caller has left.
        own = {"custom_llm_provider": call.provider}
        answer = await Adapter.async_anthropic_messages_handler(**self._generating(call) | own)
        return _events(call, answer) if call.members.get("stream") else _plain(call, answer)

    async def _embeddings(self, call: Call) -> dict[str, Any]:
        said = _plain(call, await self._litellm.aembedding(**self._arguments(call)))
        for each in said["data"] if call.wants_base64 else ():
            each["embedding"] = base64.b64encode(array.array("f", each["embedding"]).tobytes()).decode()
        return said

    async def _count(self, call: Call) -> dict[str, Any]:
        """An estimate, by the nearest tokenizer that litellm brings, in a thread: nothing is sent."""
        from litellm.llms.anthropic.pass_through.adapters.transformation import AnthropicAdapter  # noqa: PLC0415

        asked = {**call.members, "model": call.model, "max_tokens": 1}
        said, _ = AnthropicAdapter().translate_completion_input_params_with_tool_mapping(
            asked, custom_llm_provider=call.provider
        )
        told = {"model": call.model, "messages": said["messages"], "tools": said.get("tools")}
        count = await asyncio.to_thread(self._litellm.token_counter, use_default_image_token_count=True, **told)
        return {"input_tokens": count}


def _plain(call: Call, answer: Any) -> dict[str, Any]:
    said = answer if isinstance(answer, dict) else answer.model_dump(mode="json", exclude_none=True)
    said = {name: value for name, value in said.items() if not name.startswith("_")}
    usage = call.usage
    if usage is None and not call.reading.is_legible and isinstance(said.get("usage"), dict):
        # A wire of frames that cannot be read here, as Bedrock's: litellm's count is better than none.
        parts = raw_usage.read_components(said["usage"])
        usage = parts and raw_usage.write_usage(parts, messages=call.path == MESSAGES)
    said.pop("usage", None)
    return said | ({"usage": usage} if usage else {})


async def _begun(events: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """The same events, the first of which has come."""
    first = await anext(events, None)

    async def all_of_them() -> AsyncGenerator[bytes, None]:
        async with contextlib.aclosing(events):
            if first is not None:
                yield first
            async for event in events:
                yield event

    return all_of_them()


async def _chunks(call: Call, answer: Any) -> AsyncGenerator[bytes, None]:
    """Chat chunks as they come, then one with the usage, which no other has."""
    last: dict[str, Any] = {}
    async for each in answer:
        chunk = _plain(call, each)
        counted = chunk.pop("usage", None)
        last = {name: chunk.get(name) for name in ("id", "object", "created", "model")} | {"usage": counted}
        choices = chunk.get("choices") or ()
        for choice in choices:
            choice.setdefault("finish_reason", None)
        if any(choice.get("finish_reason") or _says(choice.get("delta") or {}) for choice in choices):
            yield write_event(chunk)
    call.require_whole()
    if last.get("usage"):
        yield write_event(last | {"choices": []})
    yield b"data: [DONE]\n\n"


def _says(delta: Mapping[str, Any]) -> bool:
    return any(value not in (None, "", [], {}) for value in delta.values())


async def _events(call: Call, answer: Any) -> AsyncGenerator[bytes, None]:
    """The events of a message as they come, but for the first, which litellm says before it has asked, and the last.

    The first wait for what the provider says, since it may be an error; the last until the usage is certain.
    """
    first: list[dict[str, Any]] = []
    last: list[dict[str, Any]] = []
    async for data in _data_of(answer):
        said = json.loads(data)
        if said["type"] == "error":
            raise ConnectionError(str(said["error"].get("message")))
        if last or said["type"] == "message_delta":
            last.append(said)
        elif said["type"] in _SAID_AT_ONCE and not call.reading.status:
            first.append(said)
        else:
            for each in (*first, said):
                yield write_event(each, each["type"])
            first.clear()
    call.require_whole()
    for said in (*first, *last):
        usage = {"usage": call.usage or said.get("usage", {})} if said["type"] == "message_delta" else {}
        yield write_event(said | usage, said["type"])


async def _data_of(stream: Any) -> AsyncIterator[bytes]:
    rest = b""
    async for piece in stream:
        *lines, rest = (rest + (piece if isinstance(piece, bytes) else str(piece).encode())).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:]


def write_event(said: Mapping[str, Any], name: str | None = None) -> bytes:
    """One server-sent event."""
    data = json.dumps(said, separators=(",", ":"), ensure_ascii=False).encode(errors="surrogatepass")
    return (f"event: {name}\n".encode() if name else b"") + b"data: " + data + b"\n\n"


def read_failure(call: Call, wrong: Exception) -> Refusal:
    """What went wrong, by what came over the wire: litellm's own exceptions say little of whether it may be billed."""
    reading = call.reading
    own = getattr(wrong, "message", None) or str(wrong)
    message = str(reading.error.get("message") or own)
    for name, secret in call.options.items():
        if name in _SECRETS:
            message = message.replace(str(secret), "[credential]")
    if not reading.sent:
        return Refusal(400, message, code="not_translated")
    if reading.unreached:
        return Refusal(502, f"The provider cannot be reached ({type(wrong).__name__}).", code="upstream_unreachable")
    if reading.status < 400:  # noqa: PLR2004 - the first error status
        code = "upstream_timeout" if isinstance(wrong, TimeoutError) else "upstream_broken"
        return Refusal(504, f"The provider gave no usable answer ({type(wrong).__name__}).", code=code)
    error = reading.error
    refusal = Refusal(reading.status, message, param=_text(error.get("param")), code=_text(error.get("code")))
    refusal.error["type"] = _text(error.get("type")) or _text(error.get("status")) or refusal.error["type"]
    refusal.headers = [(name, reading.headers[name]) for name in _HANDED_BACK if name in reading.headers]
    if not refusal.headers and reading.retry_after is not None:
        refusal.headers = [("retry-after", reading.retry_after)]
    return refusal


def _text(value: object) -> str | None:
    return str(value) if isinstance(value, str | int) and value else None
