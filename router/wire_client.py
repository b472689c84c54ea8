"""Providers over HTTP. The only file that knows aiohttp; it never retries, follows redirects or keeps cookies.

aiohttp itself sends a POST once: it repeats idempotent methods alone on a stale connection. A request that meets
one is therefore an error here, and the turn's plan decides what is tried next.
"""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from types import SimpleNamespace

import aiohttp

from kernel import ChatReply, Chunk, Clock
from router.dispatch import Dispatch, UpstreamSettings
from router.errors import UpstreamBroken, UpstreamError, UpstreamTimeout, UpstreamUnreachable
from router.openai import AnswerReader, bounded_id, encode, read_refusal, read_reply, read_retry_after
from router.sse import EventParser

_OK = 200
_DONE = b"[DONE]"
_WRITTEN_AT_ONCE_BYTES_MAX = 1024 * 1024  # a longer body is written in pieces, so that others get their turn


class _Journey:
    """One request under way: what has left, which limit ends it next, and what a failure therefore means."""

    def __init__(self, dispatch: Dispatch) -> None:
        self.dispatch = dispatch
        self.sent = False
        self._provider = dispatch.provider
        self._target = dispatch.target.name
        self._total_at = self._now() + self._provider.total_seconds
        self._next_at, self._phase = self._now() + self._provider.answer_seconds, "answer"

    def depart(self) -> None:
        """The first byte leaves."""
        if not self.sent:
            self.sent = True
            self.dispatch.call.sent()

    def progress(self) -> None:
        """An event was taken: the next one has its own time, which begins when somebody waits for it."""
        self._next_at, self._phase = self._now() + self._provider.event_seconds, "event"

    @contextmanager
    def failures_told(self) -> Iterator[None]:
        """Everything that aiohttp raises inside, as an UpstreamError."""
        try:
            yield
        except aiohttp.ConnectionTimeoutError as error:
            raise UpstreamTimeout(self._target, "connect", sent=self.sent) from error
        except TimeoutError as error:
            phase = self._phase if self._next_at < self._total_at else "total"
            raise UpstreamTimeout(self._target, phase, sent=self.sent) from error
        except (aiohttp.ClientError, OSError) as error:
            if self.sent:
                raise UpstreamBroken(f"The answer of the target `{self._target}` was cut or malformed.") from error
            raise UpstreamUnreachable(f"The target `{self._target}` cannot be reached.") from error

    def in_time(self) -> asyncio.Timeout:
        """The limit that ends the present phase; never held across a yield, where it would hit the wrong task."""
        return asyncio.timeout_at(min(self._next_at, self._total_at))

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


class WireClient:
    """Talks OpenAI's chat wire to any provider that speaks it."""

    def __init__(self, clock: Clock, settings: UpstreamSettings) -> None:
        self._clock = clock
        self._settings = settings
        self._opened: aiohttp.ClientSession | None = None

    async def complete(self, dispatch: Dispatch) -> ChatReply:
        """The whole answer. Raises UpstreamError."""
        journey = _Journey(dispatch)
        with journey.failures_told():
            async with journey.in_time():
                response = await self._send(journey, accept="application/json")
                try:
                    await self._require_ok(journey, response)
                    body = await _read(response, self._settings.reply_bytes_max)
                finally:
                    response.close()  # of no effect once the body was read to its end
        if body is None:
            raise UpstreamBroken(f"The provider sent a reply of more than {self._settings.reply_bytes_max} bytes.")
        return read_reply(body, _request_id(response))

    async def stream(self, dispatch: Dispatch) -> AsyncGenerator[Chunk, None]:
        """The answer by events; it ends after [DONE], or without it where nothing can be missing."""
        journey = _Journey(dispatch)
        with journey.failures_told():
            async with journey.in_time():
                response = await self._send(journey, accept="text/event-stream")
        try:
            with journey.failures_told():
                async with journey.in_time():
                    await self._require_ok(journey, response)
            reader, parser = AnswerReader(_request_id(response)), EventParser(self._settings.event_bytes_max)
            while block := await _next_block(journey, response, reader):
                for data in parser.feed(block):
                    if data == _DONE:
                        await self._end(response, reader)
                        return
                    yield reader.read(data)
                    journey.progress()
            if not reader.whole:
                raise UpstreamBroken("The provider ended the stream before [DONE].")
        finally:
            response.close()

    async def close(self) -> None:
        """Close the connections."""
        if self._opened is not None:
            await self._opened.close()

    async def _end(self, response: aiohttp.ClientResponse, reader: AnswerReader) -> None:
        if not reader.finished:
            raise UpstreamBroken("The provider said [DONE] before every choice was finished.")
        # Many servers write the end of the body a moment after [DONE]; having read it, the connection is kept.
        with suppress(TimeoutError, aiohttp.ClientError, OSError):
            async with asyncio.timeout(self._settings.drain_seconds):
                while await response.content.readany():
                    pass

    async def _send(self, journey: _Journey, accept: str) -> aiohttp.ClientResponse:
        dispatch = journey.dispatch
        headers = {
            **dispatch.provider.headers,
            "Content-Type": "application/json",
            "Accept": accept,
            "Accept-Encoding": "identity",  # a compressor on the way would hold events back
            "X-Client-Request-Id": dispatch.call.reference,
        }
        if dispatch.credential is not None:
            headers["Authorization"] = f"Bearer {dispatch.credential}"
        body = encode(dispatch.request, dispatch.target, dispatch.provider)
        return await self._session().post(
            f"{dispatch.provider.base_url}/chat/completions",
            data=body if len(body) <= _WRITTEN_AT_ONCE_BYTES_MAX else BytesIO(body),
            headers=headers,
            allow_redirects=False,
            timeout=aiohttp.ClientTimeout(total=None, connect=dispatch.provider.connect_seconds),
            trace_request_ctx=journey,
        )

    async def _require_ok(self, journey: _Journey, response: aiohttp.ClientResponse) -> None:
        if response.status == _OK:
            return
        dispatch, body = journey.dispatch, b""
        with suppress(aiohttp.ClientError, OSError):  # the status says enough, whatever became of the body
            body = await _read(response, self._settings.error_bytes_max) or b""
        raise read_refusal(
            dispatch.target,
            response.status,
            body=body,
            retry_after_seconds=read_retry_after(response.headers, self._clock.now()),
            credential=dispatch.credential,
        )

    def _session(self) -> aiohttp.ClientSession:
        # Made with the first request, because it belongs to the loop that is running then.
        if self._opened is None:
            traces = aiohttp.TraceConfig()
            traces.on_request_headers_sent.append(_departed)
            self._opened = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=self._settings.connections_max,
                    limit_per_host=0,
                    keepalive_timeout=self._settings.keepalive_seconds,
                ),
                cookie_jar=aiohttp.DummyCookieJar(),  # one caller's cookie must not travel with another's request
                headers={"User-Agent": "penstock"},
                trace_configs=[traces],
                trust_env=False,
            )
        return self._opened


async def _departed(_session: aiohttp.ClientSession, context: SimpleNamespace, _sent: object) -> None:
    context.trace_request_ctx.depart()


async def _next_block(journey: _Journey, response: aiohttp.ClientResponse, reader: AnswerReader) -> bytes:
    try:
        with journey.failures_told():
            async with journey.in_time():
                return await response.content.readany()
    except UpstreamError:
        if reader.whole:
            return b""
        raise


async def _read(response: aiohttp.ClientResponse, bytes_max: int) -> bytes | None:
    """The body, or None where it is longer than bytes_max."""
    body = bytearray()
    while block := await response.content.readany():
        body += block
        if len(body) > bytes_max:
            return None
    return bytes(body)


def _request_id(response: aiohttp.ClientResponse) -> str | None:
    return bounded_id(response.headers.get("x-request-id"))
