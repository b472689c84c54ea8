"""The translator: litellm in a process of its own, for providers whose wire nobody here speaks.

A program, not a module of ours: the interpreter of another environment runs it by its path, isolated (`python -I`). It
takes litellm, uvicorn, and translation.py and raw_usage.py, which lie beside it; nothing else of this repository.

It listens on 127.0.0.1 (`--host` for one deployed beside), writes `{"port", "pid"}` to the ready file, and wants
`Authorization: Bearer` with the token it finds in PENSTOCK_TRANSLATOR_TOKEN on every path but /healthz. With
`--with-parent` it ends when its standard input does.

    POST /v1/chat/completions, /v1/messages, /v1/messages/count_tokens, /v1/embeddings; GET /healthz, /prices

A call says all that it needs: X-Penstock-Provider (litellm's word for it), X-Penstock-Credential (an API key, or a JSON
object where a provider wants several secrets), X-Penstock-Base-Url, X-Penstock-Api-Version, X-Penstock-Headers (a JSON
object), X-Penstock-Seconds (for everything). The body is the caller's, with the provider's name for the model. Members
that translation.py does not name are refused, because litellm takes its own options from the same place.

Answers are in the wire that was asked for. `x-request-id` is the provider's. `usage` says what `usage.components`
does, which holds disjoint components counted from the provider's own words as they came over its wire; where those told
none, there is no usage. Errors are OpenAI's object, with the provider's status, message and retry-after. Besides: 400,
it cannot be translated and nothing was sent; 502, the provider was not reached; 503, too many calls; 504, the call left
and no usable answer came back, so it may be billed. A stream that was cut ends in an error event.

One call is one POST to the provider: whatever litellm or an SDK would try again, fetch or follow, the transport
refuses. It keeps nothing between calls but idle connections, logs nothing, and hangs up when its caller does.
"""

import argparse
import asyncio
import contextlib
import hmac
import importlib.util
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, MutableMapping
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import TYPE_CHECKING, Any, TypeAlias


def _beside(name: str) -> ModuleType:
    """The file of that name in this folder, which must not become a search path: there is an openai.py in it."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if TYPE_CHECKING:
    from router import raw_usage, translation
else:
    raw_usage, translation = _beside("raw_usage"), _beside("translation")

Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]

_IDLE_SECONDS = 60
_KEPT = frozenset({"PATH", "HOME", "LANG", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR"})
_ENVIRONMENT = MappingProxyType(
    {
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # it would fetch these from the network
        "LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS": "True",
        "LITELLM_LOCAL_BLOG_POSTS": "True",
        "LITELLM_MODE": "PRODUCTION",  # it would read a .env file
        "LITELLM_RUST": "False",  # it would pass by the transport that is watched here
        "MAX_IMAGE_URL_DOWNLOAD_SIZE_MB": "0",  # it would fetch what callers point to
    }
)


class Application:
    """The HTTP side, as an ASGI application: who may call, how many at a time, and who is still there."""

    def __init__(self, asking: translation.Asking, token: str, prices: bytes) -> None:
        self._asking = asking
        self._token = f"Bearer {token}".encode()
        self._prices = prices
        self._calls = 0

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """One request."""
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        try:
            await self._route(scope["method"], scope["path"], headers, receive, send)
        except translation.Refusal as refusal:
            await _reply(send, refusal.status, {"error": refusal.error}, refusal.headers)

    async def _route(self, method: str, path: str, headers: Mapping[str, str], receive: Receive, send: Send) -> None:
        if (method, path) == ("GET", "/healthz"):
            await _reply(send, 200, {"status": "ok", "calls": self._calls})
            return
        if not hmac.compare_digest(headers.get("authorization", "").encode("latin-1"), self._token):
            raise translation.Refusal(401, "The translator's token is missing or wrong.", code="invalid_token")
        if (method, path) == ("GET", "/prices"):
            await _reply(send, 200, self._prices)
        elif method == "POST" and path in translation.MEMBERS:
            await self._call(path, headers, receive, send)
        else:
            raise translation.Refusal(404, f"There is no {method} {path} here.", code="unknown_url")

    async def _call(self, path: str, headers: Mapping[str, str], receive: Receive, send: Send) -> None:
        if self._calls >= translation.CALLS_MAX:
            raise translation.Refusal(
                503, f"The translator is at its {translation.CALLS_MAX} calls.", code="overloaded"
            )
        self._calls += 1
        try:
            call = translation.Call.read(path, headers, await _body(receive))
            work = asyncio.create_task(self._answer(call, send))
            gone = asyncio.create_task(_until_gone(receive))
            try:
                await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (work, gone):
                    task.cancel()
                await asyncio.wait({work, gone})
                if call.reading.close is not None:
                    await call.reading.close()
            if not work.cancelled():
                work.result()
        finally:
            self._calls -= 1

    async def _answer(self, call: translation.Call, send: Send) -> None:
        deadline = asyncio.get_running_loop().time() + call.seconds
        try:
            async with asyncio.timeout_at(deadline):
                answer = await self._asking.ask(call)
        except TimeoutError as late:
            raise translation.read_failure(call, late) from late
        told = [("x-request-id", call.reading.request_id)] if call.reading.request_id else []
        if isinstance(answer, dict):
            await _reply(send, 200, answer, told)
        else:
            await _head(send, 200, [("content-type", "text/event-stream; charset=utf-8"), *told])
            await _stream(call, answer, send, deadline)


async def _stream(call: translation.Call, events: AsyncGenerator[bytes, None], send: Send, deadline: float) -> None:
    """Whatever goes wrong after the head, the stream says so before it ends."""
    try:
        async with asyncio.timeout_at(deadline), contextlib.aclosing(events):
            async for event in events:
                await send({"type": "http.response.body", "body": event, "more_body": True})
    except translation.Refusal as refusal:
        await _tell(call, refusal, send)
    except Exception as wrong:  # noqa: BLE001 - as in translation.Asking
        await _tell(call, translation.read_failure(call, wrong), send)
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _tell(call: translation.Call, refusal: translation.Refusal, send: Send) -> None:
    error = {"error": refusal.error}
    is_message = call.path == translation.MESSAGES
    told = (
        {"type": "error", "error": {"type": "api_error", "message": refusal.error["message"]}} if is_message else error
    )
    event = translation.write_event(told, "error" if is_message else None)
    await send({"type": "http.response.body", "body": event, "more_body": True})


async def _body(receive: Receive) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > raw_usage.BODY_BYTES_MAX:
            raise translation.Refusal(
                413, f"The body has more than {raw_usage.BODY_BYTES_MAX} bytes.", code="request_too_large"
            )
        if not message.get("more_body"):
            return bytes(body)


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _reply(send: Send, status: int, said: object, headers: Iterable[tuple[str, str]] = ()) -> None:
    body = said if isinstance(said, bytes) else json.dumps(said, ensure_ascii=False).encode(errors="surrogatepass")
    length = ("content-length", str(len(body)))
    await _head(send, status, [("content-type", "application/json"), length, *headers])
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def _head(send: Send, status: int, headers: list[tuple[str, str]]) -> None:
    raw = [(name.encode(), value.encode("latin-1", "replace")) for name, value in headers]
    await send({"type": "http.response.start", "status": status, "headers": raw})


def main() -> None:
    """Serve until SIGTERM, SIGINT, or where so told, until whoever started it is gone."""
    parser = argparse.ArgumentParser(description="Puts calls to providers whose wire Penstock does not speak.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--ready", type=Path, help='will hold {"port": ..., "pid": ...}')
    parser.add_argument("--with-parent", action="store_true", help="end when the standard input does")
    given = parser.parse_args()
    kept = {name: value for name, value in os.environ.items() if name in _KEPT}
    token = os.environ.get("PENSTOCK_TRANSLATOR_TOKEN", "")
    if not token:
        raise SystemExit("PENSTOCK_TRANSLATOR_TOKEN must hold the token that callers will show")
    os.environ.clear()
    os.environ.update({**kept, **_ENVIRONMENT})
    litellm = translation.load()
    logging.disable()  # what litellm logs may hold what callers wrote
    application = Application(translation.Asking(litellm), token, json.dumps(litellm.model_cost).encode())
    asyncio.run(_serve(application, given))


async def _serve(application: Application, given: argparse.Namespace) -> None:
    import uvicorn  # noqa: PLC0415 - of the other environment

    listening = socket.create_server((given.host, given.port), backlog=1024)
    config = uvicorn.Config(
        application, lifespan="off", log_config=None, access_log=False, ws="none", interface="asgi3",
        server_header=False, timeout_keep_alive=_IDLE_SECONDS, timeout_graceful_shutdown=5,
    )  # fmt: skip
    server = uvicorn.Server(config)
    if given.with_parent:
        asyncio.get_running_loop().add_reader(sys.stdin.fileno(), _leave_with_parent)
    if given.ready is not None:
        draft = given.ready.with_suffix(".draft")  # renamed into place, so that nobody reads half a file
        draft.write_text(json.dumps({"port": listening.getsockname()[1], "pid": os.getpid()}))
        draft.replace(given.ready)
    await server.serve(sockets=[listening])


def _leave_with_parent() -> None:
    if not os.read(sys.stdin.fileno(), 4096):
        signal.raise_signal(signal.SIGKILL)  # nobody is left who would read an answer


if __name__ == "__main__":
    main()
