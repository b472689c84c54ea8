"""Whether vLLM servers answer, and how busy they say they are: a GET of `/metrics` every few seconds by each process.

A server is looked at under its base URL, however many providers and models are declared on it. One that does not
answer is passed over, and that is all: no turn waits for a look, and a page that cannot be read says nothing. Servers
beyond a proxy are not looked at.
"""

import asyncio
import logging
import random
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

import httptools
from msgspec import Struct
from prometheus_client.parser import text_string_to_metric_families

from kernel import Target
from router.carrier import lines
from router.catalogue import Catalogue, Provider
from router.tls import Contexts, Terms

EVERY_SECONDS = 2.0
_TICKS = 8  # in which it is seen whose turn it is
_FETCH_SECONDS = 5.0
_MISSES_MAX = 2
_OK = _FINAL = 200
_FAILING = 500
_BLOCK_BYTES = 64 * 1024
_PAGE_BYTES_MAX = 4 * 1024 * 1024
_FACTS_BYTES_MAX = 64 * 1024  # some two hundred engines
_QUICK_BYTES_MAX = 128 * 1024
_CALLS_MAX = 1_000_000_000  # nobody has more; a bound for what is added up

_RUNNING, _WAITING, _CACHE = "vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"
# A page has thousands of lines and the parser takes microseconds for each: it is given the few that matter.
_FACTS = re.compile(
    rb"\nvllm:(?:num_requests_running|num_requests_waiting|kv_cache_usage_perc)[ \t{][^\n]{1,1024}(?=\n)"
)

_log = logging.getLogger("penstock.load")


class Load(Struct, frozen=True):
    """What a server reports of all its engines together. kv_cache_usage: of the fullest, from 0 to 1."""

    running: int
    waiting: int
    kv_cache_usage: float | None = None


class Seen(Struct, frozen=True):
    """What is known of a target's server. targets: all that are on it. others: calls there that are not ours."""

    is_away: bool = False
    targets: tuple[Target, ...] = ()
    others: int = 0


UNSEEN = Seen()


def never_looked(_target: Target) -> Seen:
    """What is known where nobody looks."""
    return UNSEEN


@dataclass(frozen=True, slots=True)
class ServerReading:
    """A provider's server at the last look. load: None where it is not known."""

    provider: str
    answers: bool
    load: Load | None


class _Server:
    """One base URL: who is declared on it, what was seen there, and when to look again."""

    __slots__ = ("due", "load", "misses", "providers", "seen", "targets")

    def __init__(self) -> None:
        self.providers: list[Provider] = []
        self.targets: tuple[Target, ...] = ()
        self.due = 0.0
        self.misses = 0
        self.load: Load | None = None
        self.seen = UNSEEN


class Lookout:
    """Looks at every declared vLLM server again and again, and never twice at once at the same.

    Who did not answer twice in a row is away, until the first time that it does; a status of 500 and more is no answer.
    catalogue: the one in force at this moment. fetch: the page of a provider's server, empty where it came in part or
    is kept from us, None where no answer came; it takes a bounded time and raises nothing.
    """

    def __init__(
        self,
        catalogue: Callable[[], Catalogue],
        fetch: Callable[[Provider], Awaitable[bytes | None]],
        *,
        dice: random.Random,
        every_seconds: float = EVERY_SECONDS,
    ) -> None:
        self._catalogue = catalogue
        self._fetch = fetch
        self._dice = dice
        self._every_seconds = every_seconds
        self._known: Catalogue | None = None
        self._servers: Mapping[str, _Server] = {}
        self._under_way: set[str] = set()
        self._task: asyncio.Task[None] | None = None

    def start(self, ours: Callable[[Iterable[Target]], int]) -> None:
        """Begin to look. ours: how many calls to these targets are open in this process."""
        self._task = asyncio.create_task(self._go_on(ours), name="vllm-lookout")

    async def close(self) -> None:
        """Look no more; nothing is known from then on."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def of(self, target: Target) -> Seen:
        """What is known of the target's server now."""
        if not self._servers:
            return UNSEEN
        provider = self._catalogue().providers.get(target.provider)
        server = None if provider is None else self._servers.get(_watched_at(provider))
        return UNSEEN if server is None else server.seen

    def readings(self) -> Iterator[ServerReading]:
        """Every server, once for each provider that is declared on it."""
        for server in self._servers.values():
            for provider in server.providers:
                yield ServerReading(provider.name, not server.seen.is_away, server.load)

    async def _go_on(self, ours: Callable[[Iterable[Target]], int]) -> None:
        now = asyncio.get_running_loop().time
        try:
            async with asyncio.TaskGroup() as looks:
                while True:
                    for address, server in self._current().items():
                        if server.due <= now() and address not in self._under_way:
                            self._under_way.add(address)
                            looks.create_task(self._look(address, server, ours))
                    await asyncio.sleep(self._every_seconds / _TICKS)
        finally:
            self._servers = {}  # what nobody keeps up says nothing

    async def _look(self, address: str, server: _Server, ours: Callable[[Iterable[Target]], int]) -> None:
        page = await self._fetch(server.providers[0])
        before = server.seen
        if page is None:
            server.misses += 1
            server.seen = Seen(server.misses >= _MISSES_MAX, server.targets, before.others)
            server.load = None
        else:
            server.misses, server.load = 0, await read_load(page)
            reported = server.load.running + server.load.waiting if server.load else 0
            # The report holds our own calls as of now; we know better what becomes of those until the next look.
            server.seen = Seen(targets=server.targets, others=max(0, reported - ours(server.targets)))
        if server.seen.is_away != before.is_away:
            told = "does not answer and is passed over" if server.seen.is_away else "answers again"
            _log.warning("the server of %s %s", ", ".join(provider.name for provider in server.providers), told)
        # With jitter, since the processes of a deployment must not come in step.
        server.due = asyncio.get_running_loop().time() + self._every_seconds * self._dice.uniform(0.75, 1.25)
        self._under_way.discard(address)

    def _current(self) -> Mapping[str, _Server]:
        catalogue = self._catalogue()
        if catalogue is not self._known:
            self._known, old, servers = catalogue, self._servers, dict[str, _Server]()
            for provider in catalogue.providers.values():
                if address := _watched_at(provider):
                    if address not in servers:
                        servers[address] = old.get(address) or _Server()
                        servers[address].providers, servers[address].targets = [], ()
                    servers[address].providers.append(provider)
            for target in catalogue.targets.values():
                if server := servers.get(_watched_at(catalogue.providers[target.provider])):
                    server.targets += (target,)
            self._servers = servers
        return self._servers


def _watched_at(provider: Provider) -> str:
    """The address under which a provider is looked at; empty where it is not."""
    return provider.base_url or "" if provider.dialect == "vllm" and provider.proxy is None else ""


async def read_load(page: bytes) -> Load | None:
    """What a page in Prometheus' text format reports, or None where it does not say, or nonsense."""
    # One engine's page takes a millisecond; those of seventy would keep the loop too long.
    return _read(page) if len(page) <= _QUICK_BYTES_MAX else await asyncio.to_thread(_read, page)


def _read(page: bytes) -> Load | None:
    facts = b"".join(fact[0] for fact in _FACTS.finditer(b"\n%b\n" % page))
    if len(facts) > _FACTS_BYTES_MAX:
        return None
    calls, cache = dict[str, int](), list[float]()
    try:
        for family in text_string_to_metric_families(facts.decode()):
            for sample in family.samples:
                if not 0 <= sample.value <= _CALLS_MAX:  # nor is it NaN
                    return None
                if sample.name == _CACHE:
                    cache.append(float(sample.value))
                else:
                    calls[sample.name] = calls.get(sample.name, 0) + int(sample.value)
    except (ValueError, IndexError, OverflowError):  # all of which the parser raises for one nonsense or another
        return None
    if _RUNNING not in calls or _WAITING not in calls:
        return None
    return Load(calls[_RUNNING], calls[_WAITING], max(cache, default=None))


class Pages:
    """Fetches servers' pages, over a connection for each look, with what is declared and sealed for their calls.

    credentials: the opened credential of that name, or None. seconds: what one look may take; a server whose loop is
    busy answers late, and must not be taken for a dead one.
    """

    def __init__(self, credentials: Callable[[str], str | None], *, seconds: float = _FETCH_SECONDS) -> None:
        self._credentials = credentials
        self._seconds = seconds
        self._contexts = Contexts()

    async def fetch(self, provider: Provider) -> bytes | None:
        """The page as `Lookout` wants it."""
        page = _Page()
        with suppress(OSError, ValueError, httptools.HttpParserError, httptools.HttpParserUpgrade):
            async with asyncio.timeout(self._seconds):
                await self._receive(provider, page)
        return page.judged()

    async def _receive(self, provider: Provider, page: "_Page") -> None:
        url = urlsplit(f"{_watched_at(provider).removesuffix('/v1')}/metrics")
        is_tls = url.scheme == "https"
        terms = Terms(provider.ca_certificates, self._opened(provider.client_certificate))
        tls = await self._contexts.of(terms) if is_tls else None
        reader, writer = await asyncio.open_connection(url.hostname, url.port or (443 if is_tls else 80), ssl=tls)
        try:
            writer.write(b"GET %b HTTP/1.1\r\n%b\r\n" % (url.path.encode(), lines(self._headers(provider, url.netloc))))
            while page.wants_more and (block := await reader.read(_BLOCK_BYTES)):
                page.take(block)
        finally:
            writer.transport.abort()

    def _headers(self, provider: Provider, host: str) -> dict[str, str]:
        headers = {"Host": host, **provider.headers, "User-Agent": "penstock", "Accept": "text/plain"}
        headers |= {"Accept-Encoding": "identity", "Connection": "close"}
        credential = self._opened(provider.credential)
        if credential is not None and credential.isascii() and credential.isprintable():
            headers["Authorization"] = f"Bearer {credential}"
        return headers

    def _opened(self, name: str | None) -> str | None:
        return None if name is None else self._credentials(name)


class _Page:
    """An answer as it comes."""

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._status = 0
        self._is_complete = False
        self._received_bytes = 0
        self._body = bytearray()

    @property
    def wants_more(self) -> bool:
        """Whether it has not come to its end, nor to its bound."""
        return not self._is_complete and self._received_bytes <= _PAGE_BYTES_MAX

    def take(self, block: bytes) -> None:
        """More of it came. Raises httptools' errors."""
        self._received_bytes += len(block)
        self._parser.feed_data(block)

    def judged(self) -> bytes | None:
        """The body; empty if it is not whole or kept from us, for who refuses answers too; None for no answer."""
        del self._parser  # it and this hold each other
        if not _FINAL <= self._status < _FAILING:
            return None
        return bytes(self._body) if self._is_complete and self._status == _OK else b""

    # httptools' callbacks

    def on_headers_complete(self) -> None:
        self._status = self._parser.get_status_code()

    def on_body(self, data: bytes) -> None:
        self._body += data

    def on_message_complete(self) -> None:
        self._is_complete = self._status >= _FINAL  # else an interim answer
