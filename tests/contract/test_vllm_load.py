"""Looks at servers over real sockets: what is asked, what counts as an answer, and that time and size are bounded."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernel import Clock
from router import Catalogue, Health
from router.load import Load, Lookout, Pages, read_load
from tests.fakes.certificates import authority
from tests.fakes.routing import document
from tests.fakes.scripted_upstream import (
    CUT,
    HOLD,
    LAST_CHUNK,
    RESET,
    Drip,
    Repeat,
    ScriptedUpstream,
    Step,
    chunked,
    deaf_url,
    whole,
)

PAGE = b'vllm:num_requests_running{engine="0"} 3.0\nvllm:num_requests_waiting{engine="0"} 1.0\n'
FOUND = Load(3, 1)
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
SECRETS = {"key": "sk-inside"}
OURS = authority()
CLIENT = OURS.signs("penstock.test")


@pytest.fixture
async def server() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream() as made:
        made.will(whole(PAGE), HOLD)
        yield made


def declared(url: str, **provider: object) -> Catalogue:
    return Catalogue.of(
        [
            document("provider", "p", dialect="vllm", base_url=url, **provider),
            document("model", "m", provider="p"),
        ]
    )


async def fetched(url: str, *, seconds: float = 5.0, secrets: dict[str, str] = SECRETS, **provider: object):
    pages = Pages(secrets.get, seconds=seconds)
    return await pages.fetch(declared(url, **provider).provider("p"))


class TestAsking:
    async def test_the_page_is_beside_the_api_and_asked_for_as_calls_are(self, server):
        await fetched(server.url, credential="key", headers={"X-Team": "search"})
        [asked] = server.requests
        assert asked.line == "GET /metrics HTTP/1.1"
        assert asked.headers["host"] == f"127.0.0.1:{server.port}"
        assert asked.headers["authorization"] == "Bearer sk-inside"
        assert asked.headers["x-team"] == "search"
        assert asked.headers["accept-encoding"] == "identity"

    async def test_a_path_before_the_api_stays_before_the_page(self, server):
        await fetched(f"http://127.0.0.1:{server.port}/llama/v1")
        assert server.requests[0].line == "GET /llama/metrics HTTP/1.1"

    @pytest.mark.parametrize("secret", ["two\r\nX-Other: line", "gr\u00fcn"])
    async def test_a_credential_that_is_no_header_is_left_out(self, server, secret):
        assert await fetched(server.url, credential="key", secrets={"key": secret}) == PAGE
        assert "authorization" not in server.requests[0].headers

    async def test_no_connection_stays(self, server):
        await fetched(server.url)
        await asyncio.wait_for(server.hung_up.wait(), 5)
        assert (server.connections, server.closed) == (1, 1)


class TestAnswers:
    @pytest.mark.parametrize(
        "steps",
        [
            [whole(PAGE)],
            [Drip(whole(PAGE))],
            [CHUNKED, chunked(PAGE[:30], PAGE[30:]), LAST_CHUNK],
            [b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n", whole(PAGE)],
            [whole(PAGE), b"and more that nobody asked for"],
        ],
    )
    async def test_a_whole_page_is_read(self, server, steps: list[Step]):
        server.will(*steps, HOLD)
        page = await fetched(server.url)
        assert page is not None
        assert await read_load(page) == FOUND

    @pytest.mark.parametrize("status", ["204 No Content", "301 Moved", "401 Unauthorized", "404 Not Found"])
    async def test_who_hides_the_page_answers_and_its_load_is_not_known(self, server, status):
        server.will(whole(PAGE, status=status), HOLD)
        assert await fetched(server.url) == b""

    @pytest.mark.parametrize("status", ["500 Oops", "502 Bad Gateway", "503 Busy"])
    async def test_who_fails_does_not_answer(self, server, status):
        server.will(whole(PAGE, status=status), HOLD)
        assert await fetched(server.url) is None

    @pytest.mark.parametrize(
        "steps",
        [
            [CUT],
            [RESET],
            [b"HTTP/1.1 200"],
            [b"HTTP/1.1 200 OK\r\nContent-", RESET],
            [b"SSH-2.0-OpenSSH_9.2\r\n"],
            [b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n", PAGE],
        ],
    )
    async def test_what_is_no_answer_is_none(self, server, steps: list[Step]):
        server.will(*steps, CUT)
        assert await fetched(server.url) is None

    @pytest.mark.parametrize(
        "steps",
        [
            [whole(PAGE, length=500), CUT],
            [CHUNKED, chunked(PAGE), RESET],
            [CHUNKED, b"no chunk\r\n"],
            [b"HTTP/1.1 200 OK\r\n\r\n", PAGE, CUT],  # it may have been cut, and nobody would know
        ],
    )
    async def test_an_answer_that_is_not_whole_is_one_without_content(self, server, steps: list[Step]):
        server.will(*steps)
        assert await fetched(server.url, seconds=1) == b""

    @settings(max_examples=60, deadline=None)
    @given(said=st.binary(max_size=300), after=st.sampled_from([b"", b"HTTP/1.1 200 OK\r\n", CHUNKED]))
    def test_no_bytes_do_harm(self, said, after):
        async def looked() -> bytes | None:
            async with ScriptedUpstream() as server:
                server.will(after + said, CUT)
                return await fetched(server.url, seconds=2)

        found = asyncio.run(looked())
        assert found is not None or after != CHUNKED  # whose status was 200


class TestBounds:
    async def test_a_page_without_end_is_left_at_four_mebibytes(self, server):
        server.will(CHUNKED, Repeat(chunked(b"x" * 65_535 + b"\n"), 1000), HOLD)
        assert await fetched(server.url) == b""
        assert server.written < 16 * 1024 * 1024  # what is under way fills the sockets

    async def test_a_head_without_end_is_no_answer(self, server):
        server.will(b"HTTP/1.1 200 OK\r\n", Repeat(b"X-More: %b\r\n" % (b"x" * 1000), 50_000), HOLD)
        assert await fetched(server.url) is None
        assert server.written < 16 * 1024 * 1024

    @pytest.mark.parametrize("steps", [[HOLD], [b"HTTP/1.1 200 OK\r\n", HOLD]])
    async def test_a_server_that_is_silent_is_left_in_time(self, server, steps: list[Step]):
        server.will(*steps)
        began = time.monotonic()
        assert await fetched(server.url, seconds=0.2) is None
        assert time.monotonic() - began < 2

    async def test_a_page_that_does_not_come_to_its_end_in_time_is_an_answer(self, server):
        server.will(CHUNKED, chunked(PAGE), HOLD)
        assert await fetched(server.url, seconds=0.2) == b""

    async def test_where_nobody_listens_and_where_nobody_accepts(self):
        assert await fetched("http://127.0.0.1:9/v1") is None
        with deaf_url() as url:
            assert await fetched(f"{url}/v1", seconds=0.2) is None

    async def test_a_host_without_an_address(self):
        assert await fetched("http://nobody.invalid/v1", seconds=2) is None


class TestTls:
    async def test_rests_on_what_is_declared(self, tmp_path: Path):
        async with ScriptedUpstream(tls=OURS.signs().serves(tmp_path, asks_for=OURS)) as server:
            server.will(whole(PAGE), HOLD)
            shown = {"ca_certificates": OURS.certificate_pem, "client_certificate": "mutual"}
            assert await fetched(server.url, secrets={"mutual": CLIENT.pem}, **shown) == PAGE
            assert server.peers == ["penstock.test"]

    @pytest.mark.parametrize("trusted", [authority("Another").certificate_pem, None])
    async def test_a_server_that_nobody_vouches_for_is_not_asked(self, tmp_path: Path, trusted):
        async with ScriptedUpstream(tls=OURS.signs().serves(tmp_path)) as server:
            server.will(whole(PAGE), HOLD)
            assert await fetched(server.url, ca_certificates=trusted) is None
            assert server.heads == []


@pytest.fixture
def watched(clock: Clock) -> Callable[[Catalogue], tuple[Lookout, Health]]:
    def made(known: Catalogue) -> tuple[Lookout, Health]:
        pages = Pages(SECRETS.get)
        lookout = Lookout(lambda: known, pages.fetch, dice=random.Random(1), every_seconds=0.05)
        health = Health(lambda: known, dice=random.Random(1), clock=clock, seen=lookout.of)
        lookout.start(health.open_calls)
        return lookout, health

    return made


async def test_a_server_that_dies_is_passed_over_and_comes_back(server, watched):
    lookout, health = watched(declared(server.url))

    async def until(state: float) -> None:
        async with asyncio.timeout(10):
            while next(health.readings()).state != state or not server.requests:
                await asyncio.sleep(0.01)

    await until(1)
    server.will(CUT)
    await until(0)
    server.will(whole(PAGE), HOLD)
    await until(1)
    assert next(lookout.readings()).load == FOUND
    await lookout.close()
