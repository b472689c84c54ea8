"""How a request leaves for a provider: what it carries, over which connection, and when it does not leave at all."""

import asyncio
import socket
from dataclasses import replace

import pytest

from router import UpstreamBroken, UpstreamFailed, UpstreamSettings, UpstreamTimeout, UpstreamUnreachable
from tests.fakes.routing import TARGET, Sent, catalogue, chat, upstreams_of
from tests.fakes.scripted_upstream import CUT, HOLD, REPLY, deaf_url, whole
from tests.fakes.upstream_subjects import SECRET

TOO_LONG = 10.0  # a test that waits for this has failed


class TestTheRequest:
    async def test_carries_credential_reference_and_declared_headers(self, make, server):
        server.will(whole(REPLY))
        await make(headers={"x-team": "blue"}).complete(TARGET, chat(seed=7), Sent().call())
        (request,) = server.requests
        assert request.line == "POST /v1/chat/completions HTTP/1.1"
        assert request.headers["authorization"] == f"Bearer {SECRET}"
        assert request.headers["x-client-request-id"] == "turn_1/2"
        assert request.headers["x-team"] == "blue"
        assert request.headers["accept-encoding"] == "identity"
        assert request.json["seed"] == 7
        assert request.json["model"] == "big"

    async def test_of_five_megabytes_arrives_whole(self, make, server):
        server.will(whole(REPLY))
        await make().complete(TARGET, chat("x" * 5_000_000), Sent().call())
        assert len(server.requests[0].json["messages"][0]["content"]) == 5_000_000

    async def test_is_never_repeated_on_a_stale_connection(self, make, server):
        upstreams, sent = make(), Sent()
        server.will(whole(REPLY))
        await upstreams.complete(TARGET, chat(), sent.call())
        server.will(CUT)
        with pytest.raises(UpstreamBroken):
            await upstreams.complete(TARGET, chat(), sent.call())
        assert (len(server.requests), server.connections, sent.times) == (2, 1, 2)

    async def test_reuses_a_connection_that_was_closed_while_idle_never(self, make, server):
        upstreams, sent = make(), Sent()
        server.will(whole(REPLY), CUT)
        for _ in range(2):
            await upstreams.complete(TARGET, chat(), sent.call())
            await asyncio.sleep(0.02)
        assert server.connections == 2

    async def test_reuses_no_connection_that_was_idle_for_too_long(self, make, server):
        upstreams = make(UpstreamSettings(keepalive_seconds=0.05))
        server.will(whole(REPLY))
        for idle_seconds in (0, 0.2, 0):
            await upstreams.complete(TARGET, chat(), Sent().call())
            await asyncio.sleep(idle_seconds)
        assert server.connections == 2

    async def test_takes_no_proxy_from_the_environment(self, make, server, monkeypatch):
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
        monkeypatch.delenv("no_proxy", raising=False)
        server.will(whole(REPLY))
        await make().complete(TARGET, chat(), Sent().call())
        assert server.requests[0].line == "POST /v1/chat/completions HTTP/1.1"

    async def test_does_not_wait_for_those_of_a_provider_that_stalls(self, make, server):
        server.will(HOLD)
        stalled = make(answer_seconds=60, total_seconds=60)
        asked = [asyncio.ensure_future(stalled.complete(TARGET, chat(), Sent().call())) for _ in range(150)]
        async with asyncio.timeout(TOO_LONG):
            while len(server.requests) < len(asked):
                await asyncio.sleep(0.01)
        for each in asked:
            each.cancel()
        await asyncio.gather(*asked, return_exceptions=True)

    @pytest.mark.parametrize("host", ["a" * 64, "a..b"])
    async def test_to_a_host_that_cannot_be_encoded_is_unreachable(self, clock, host):
        known = catalogue(dialect="openai", base_url="http://x.test/v1")
        odd = replace(known.provider("p"), base_url=f"http://{host}/v1")  # as no declaration may have it
        upstreams, sent = upstreams_of(replace(known, providers={"p": odd}), lambda _: None, clock), Sent()
        with pytest.raises(UpstreamUnreachable):
            await upstreams.complete(TARGET, chat(), sent.call())
        await upstreams.close()
        assert sent.times == 0

    async def test_is_not_redirected(self, make, server):
        server.will(whole({}, f"Location: {server.url}/x", status="307 Go"))
        with pytest.raises(UpstreamFailed):
            await make().complete(TARGET, chat(), Sent().call())
        assert len(server.requests) == 1

    async def test_keeps_no_cookies(self, make, server):
        server.will(whole(REPLY, "Set-Cookie: a=b; Path=/"))
        upstreams = make()
        for _ in range(2):
            await upstreams.complete(TARGET, chat(), Sent().call())
        assert "cookie" not in server.requests[1].headers

    async def test_to_a_closed_port_is_unreachable_and_never_sent(self, make):
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            sent = Sent()
            upstreams = make(base_url=f"http://127.0.0.1:{closed.getsockname()[1]}/v1")
            with pytest.raises(UpstreamUnreachable) as caught:
                await upstreams.complete(TARGET, chat(), sent.call())
        assert (caught.value.unbilled, caught.value.curable, sent.times) == (True, True, 0)

    async def test_that_cannot_connect_in_time_names_the_phase(self, make):
        with deaf_url() as deaf:
            sent, upstreams = Sent(), make(base_url=deaf, connect_seconds=0.1)
            with pytest.raises(UpstreamTimeout, match="`connect`") as caught:
                await upstreams.complete(TARGET, chat(), sent.call())
        assert (caught.value.unbilled, sent.times) == (True, 0)

    async def test_without_its_credential_is_not_sent(self, make, server):
        with pytest.raises(UpstreamUnreachable) as caught:
            await make(credential="lost").complete(TARGET, chat(), Sent().call())
        assert caught.value.unbilled
        assert not server.requests
