"""Each wire that callers speak, as the edge uses it: how a body is read, and how events and errors are told.

A door decides nothing; all of them lead to the same five beats.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from http import HTTPStatus
from types import MappingProxyType

import msgspec

from cost import Turn
from gateway.dialect import read_chat, read_completion, read_embedding
from gateway.errors import encode_error
from gateway.messages import read_count, read_message
from kernel import Chunk, ModelRequest, PlatformError, format_usd

_NO_THREADS = "thread_unsupported_request"
_MESSAGES_ERRORS: Mapping[int, str] = MappingProxyType(
    {
        400: "invalid_request_error",
        401: "authentication_error",
        402: "billing_error",
        403: "permission_error",
        404: "not_found_error",
        409: "conflict_error",
        413: "request_too_large",
        429: "rate_limit_error",
        503: "overloaded_error",
        504: "timeout_error",
    }
)


@dataclass(frozen=True, slots=True)
class Door:
    """One wire.

    read: raises PlatformError. event: the bytes of an event, none for one that the caller did not ask for. ending:
    what ends a stream that is whole. error: a refusal as a body, given the request's id; broken: the same as the event
    that ends a stream. id_header: where this wire's clients look for the request's id, if not in x-request-id.
    """

    read: Callable[[bytes, Mapping[str, str]], ModelRequest]
    event: Callable[[Chunk, ModelRequest, Turn | None], bytes]
    ending: bytes
    error: Callable[[PlatformError, str], bytes]
    broken: bytes
    id_header: str | None = None


def _chat_event(chunk: Chunk, request: ModelRequest, turn: Turn | None) -> bytes:
    """Usage is asked of every provider, for the books, and told only to who asked, with what the turn cost."""
    data = chunk.data
    if chunk.usage_only:
        if not request.include_usage:
            return b""
        data = _with_cost(data, turn)
    return b"data: %b\n\n" % data


def _message_event(chunk: Chunk, _request: ModelRequest, turn: Turn | None) -> bytes:
    """Anthropic's events have names; the last one says what the turn cost."""
    data = _with_cost(chunk.data, turn) if chunk.event == "message_stop" else chunk.data
    return b"event: %b\ndata: %b\n\n" % (chunk.event.encode(), data)


def _with_cost(data: bytes, turn: Turn | None) -> bytes:
    assert turn is not None, "what carries usage was said in a turn"
    cost = msgspec.json.encode({"cost_usd": format_usd(turn.cost_nano_usd)})
    return b'%b,"penstock":%b}' % (data.rstrip()[:-1], cost)


def _message_error(error: PlatformError, turn_id: str) -> bytes:
    """Anthropic's error object; `code` and `param` are ours, as at OpenAI's doors.

    Its SDKs ask for threads by themselves, and go on without where they are told so by this code.
    """
    status = error.status
    kind = _MESSAGES_ERRORS.get(
        status, "api_error" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"
    )
    details = {"error_code": _NO_THREADS if error.param == "thread" else error.code}
    told = {"type": kind, "message": error.message, "details": details, "code": error.code, "param": error.param}
    return msgspec.json.encode({"type": "error", "error": told, "request_id": turn_id})


CHAT = Door(read_chat, _chat_event, b"data: [DONE]\n\n", lambda error, _: encode_error(error), b"data: %b\n\n")
COMPLETIONS = replace(CHAT, read=read_completion)
EMBEDDINGS = replace(CHAT, read=read_embedding)
MESSAGES = Door(read_message, _message_event, b"", _message_error, b"event: error\ndata: %b\n\n", "request-id")
COUNT_TOKENS = replace(MESSAGES, read=read_count)
