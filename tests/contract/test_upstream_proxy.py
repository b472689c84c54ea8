"""Providers behind a proxy, as they are declared."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Self

import pytest

from router import Upstreams, UpstreamTimeout, UpstreamUnreachable
from tests.fakes.certificates import authority
from tests.fakes.routing import TARGET, Sent, chat
from tests.fakes.scripted_upstream import HOLD, REPLY, ScriptedUpstream, whole
from tests.fakes.upstream_subjects import WHOLE_STREAM, taken

OURS = authority()


class Tunnel:
    """A proxy that connects whoever asks to one port, whatever host they name; or says something else."""

    def __init__(self, port: int, says: bytes = b"HTTP/1.1 200 Connected\r\n\r\n") -> None:
        self.asked: list[str] = []
        self._port = port
        self._says = says

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            self.asked.append(head.split(b"\r\n")[0].decode())
            writer.write(self._says)
            if b" 200 " in self._says:
                there, out = await asyncio.open_connection("127.0.0.1", self._port)
                await asyncio.gather(self._pump(reader, out), self._pump(there, writer))
        writer.close()

    @staticmethod
    async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()


@pytest.fixture
async def secure(tmp_path: Path) -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream(tls=OURS.signs("provider.test").serves(tmp_path)) as made:
        made.will(whole(REPLY))
        yield made


@pytest.fixture
def make(make_over) -> Callable[..., Upstreams]:
    """Upstreams as they are wired: the declaration alone says that there is a proxy."""
    return partial(make_over, "http1", ca_certificates=OURS.certificate_pem, base_url="https://provider.test/v1")


async def test_a_plain_request_goes_to_the_proxy_with_its_whole_address(make, server):
    server.will(whole(REPLY))
    upstreams = make(base_url="http://provider.test/v1", ca_certificates=None, proxy=f"http://127.0.0.1:{server.port}")
    for _ in range(2):
        assert json.loads((await upstreams.complete(TARGET, chat(), Sent().call())).body) == REPLY
    assert {request.line for request in server.requests} == {"POST http://provider.test/v1/chat/completions HTTP/1.1"}
    assert server.requests[0].headers["host"] == "provider.test"
    assert server.connections == 1


async def test_tls_goes_through_the_proxy_unread(make, secure):
    async with Tunnel(secure.port) as proxy:
        upstreams = make(proxy=proxy.url)
        for _ in range(2):
            assert json.loads((await upstreams.complete(TARGET, chat(), Sent().call())).body) == REPLY
        assert proxy.asked == ["CONNECT provider.test:443 HTTP/1.1"]
        await upstreams.close()
    assert "authorization" in secure.requests[0].headers


async def test_a_stream_goes_through_the_proxy(make, secure):
    secure.will(WHOLE_STREAM)
    async with Tunnel(secure.port) as proxy:
        upstreams = make(proxy=proxy.url)
        chunks, error = await taken(upstreams.stream(TARGET, chat(stream=True), Sent().call()))
        await upstreams.close()
    assert (len(chunks), error) == (5, None)


async def test_the_hosts_name_is_checked_behind_the_proxy_too(make, secure):
    async with Tunnel(secure.port) as proxy:
        sent, upstreams = Sent(), make(proxy=proxy.url, base_url="https://elsewhere.test/v1")
        with pytest.raises(UpstreamUnreachable):
            await upstreams.complete(TARGET, chat(), sent.call())
    assert (sent.times, secure.heads) == (0, [])


@pytest.mark.parametrize("status", ["403 Forbidden", "407 Proxy Authentication Required", "502 Bad Gateway"])
async def test_a_proxy_that_does_not_connect_means_unreachable_and_nothing_sent(make, secure, status):
    async with Tunnel(secure.port, f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode()) as proxy:
        sent, upstreams = Sent(), make(proxy=proxy.url)
        with pytest.raises(UpstreamUnreachable) as caught:
            await upstreams.complete(TARGET, chat(), sent.call())
    assert (caught.value.unbilled, sent.times, secure.heads) == (True, 0, [])


async def test_a_proxy_that_is_away_means_unreachable_and_nothing_sent(make, unused_tcp_port):
    sent, upstreams = Sent(), make(proxy=f"http://127.0.0.1:{unused_tcp_port}")
    with pytest.raises(UpstreamUnreachable):
        await upstreams.complete(TARGET, chat(), sent.call())
    assert sent.times == 0


async def test_a_proxy_that_says_nothing_runs_out_of_time(make, server):
    server.will(HOLD)
    sent, upstreams = Sent(), make(proxy=f"http://127.0.0.1:{server.port}", connect_seconds=0.2)
    with pytest.raises(UpstreamTimeout, match="`connect`") as caught:
        await upstreams.complete(TARGET, chat(), sent.call())
    assert (caught.value.unbilled, sent.times) == (True, 0)
