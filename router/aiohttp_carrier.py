"""HTTP to providers by aiohttp: the carrier for proxies. The only file that knows aiohttp.

aiohttp itself sends a POST once: it repeats idempotent methods alone on a stale connection. A request that meets
one is therefore an error here, and the turn's plan decides what is tried next.
"""

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from io import BytesIO
from types import SimpleNamespace

import aiohttp
from aiohttp.connector import Connection
from aiohttp.tracing import Trace

from router.carrier import Head
from router.dispatch import UpstreamSettings
from router.journey import Journey
from router.tls import Contexts

_WRITTEN_AT_ONCE_BYTES_MAX = 1024 * 1024  # a longer body is written in pieces, so that others get their turn
_FINAL = 200


class AiohttpAnswer:
    """One answer; `carrier.Answer` says what it promises."""

    def __init__(self, carrier: "AiohttpCarrier", journey: Journey, response: aiohttp.ClientResponse) -> None:
        self.status = response.status
        self.headers: dict[str, str] = {}
        for name, value in response.headers.items():
            self.headers.setdefault(name.lower(), value)
        self._carrier = carrier
        self._journey = journey
        self._response = response
        self._left = False

    async def block(self) -> bytes:
        """What came of the body since the last time."""
        if self._journey.is_over:  # a limit on waiting never ends an answer that always has more
            raise self._journey.late("total")
        with _failures_told(self._journey):
            async with self._journey.in_time():
                return await self._response.content.readany()

    def close(self) -> None:
        """Hang up; of no effect once the body was read to its end."""
        if not self._left:
            self._left = True
            self._response.close()

    def keep(self) -> None:
        """Read what is left, beside whoever has its answer already."""
        if not self._left and not self._response.content.is_eof():
            self._left = True
            self._carrier.drain(self._response)


class AiohttpCarrier:
    """Sends POSTs by aiohttp; `carrier.Carrier` says what it promises."""

    def __init__(self, settings: UpstreamSettings) -> None:
        self._settings = settings
        self._contexts = Contexts()
        self._opened: aiohttp.ClientSession | None = None
        self._draining: set[asyncio.Task[None]] = set()

    async def post(self, journey: Journey, head: Head, own: Mapping[str, str], body: bytes) -> AiohttpAnswer:
        """Send once and wait for the head of the answer."""
        provider = journey.dispatch.provider
        with _failures_told(journey):
            async with journey.in_time():
                tls = True if head.origin.terms is None else await self._contexts.of(head.origin.terms)
                response = await self._session().post(
                    head.url,
                    data=body if len(body) <= _WRITTEN_AT_ONCE_BYTES_MAX else BytesIO(body),
                    headers={**head.headers, **own},
                    allow_redirects=False,
                    ssl=tls,
                    proxy=provider.proxy,
                    timeout=aiohttp.ClientTimeout(total=None, connect=provider.connect_seconds),
                    trace_request_ctx=journey,
                )
        answer = AiohttpAnswer(self, journey, response)
        coding = answer.headers.get("transfer-encoding", "chunked").strip().lower()
        if answer.status < _FINAL or coding != "chunked":  # another protocol, or a body that nobody can read
            answer.close()
            raise journey.broken()
        return answer

    async def close(self) -> None:
        """Let go of all connections."""
        for task in self._draining:
            task.cancel()
        await asyncio.gather(*self._draining, return_exceptions=True)
        if self._opened is not None:
            await self._opened.close()

    def drain(self, response: aiohttp.ClientResponse) -> None:
        """Read what is left of a body and close it; having been read to its end, the connection is kept."""
        task = asyncio.get_running_loop().create_task(_drained(response, self._settings.drain_seconds))
        self._draining.add(task)
        task.add_done_callback(self._draining.discard)
        task.add_done_callback(lambda _: response.close())  # also of a task that is cancelled before it began

    def _session(self) -> aiohttp.ClientSession:
        # Made with the first request, because it belongs to the loop that is running then.
        if self._opened is None:
            traces = aiohttp.TraceConfig()
            traces.on_request_headers_sent.append(_departed)
            self._opened = aiohttp.ClientSession(
                connector=_Connector(
                    limit=0,  # of all providers together: one that stalls would keep the others waiting
                    limit_per_host=0,
                    keepalive_timeout=self._settings.keepalive_seconds,
                ),
                cookie_jar=aiohttp.DummyCookieJar(),  # one caller's cookie must not travel with another's request
                headers={"User-Agent": "penstock"},
                trace_configs=[traces],
                trust_env=False,
                auto_decompress=False,
            )
        return self._opened


class _Connector(aiohttp.TCPConnector):
    """Gives out no connection on which something came unasked, which would be taken for the next answer."""

    async def connect(
        self,
        req: aiohttp.ClientRequest,
        traces: list[Trace],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 - its own
    ) -> Connection:
        while True:
            connection = await super().connect(req, traces, timeout)
            if connection.protocol is None or not connection.protocol.should_close:
                return connection
            connection.close()


async def _departed(_session: aiohttp.ClientSession, context: SimpleNamespace, _sent: object) -> None:
    context.trace_request_ctx.depart()


@contextmanager
def _failures_told(journey: Journey) -> Iterator[None]:
    """Everything that aiohttp raises inside, as an UpstreamError."""
    try:
        yield
    except aiohttp.ConnectionTimeoutError as error:
        raise journey.late("connect") from error
    except TimeoutError as error:
        raise journey.late() from error
    except (aiohttp.ClientError, OSError, ValueError) as error:  # the last for a key or a host that cannot be read
        raise journey.broken(error) from error


async def _drained(response: aiohttp.ClientResponse, seconds: float) -> None:
    with suppress(TimeoutError, aiohttp.ClientError, OSError):
        async with asyncio.timeout(seconds):
            while await response.content.readany():
                pass
