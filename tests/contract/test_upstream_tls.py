"""TLS to providers: whom we trust, what we show, and that a handshake that fails has sent nothing."""

import asyncio
import json
import socket
import ssl
import threading
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Self

import pytest

from kernel import Target
from router import (
    Catalogue,
    UpstreamBroken,
    UpstreamError,
    Upstreams,
    UpstreamSettings,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from tests.fakes.certificates import Certified, authority
from tests.fakes.routing import TARGET, Sent, chat, document, upstreams_of
from tests.fakes.scripted_upstream import (
    CUT,
    HOLD,
    LAST_CHUNK,
    REPLY,
    RESET,
    STREAM_HEAD,
    Drip,
    ScriptedUpstream,
    chunked,
    whole,
)
from tests.fakes.upstream_subjects import CARRIERS, WHOLE_STREAM, taken

OURS = authority()
OTHERS = authority("Somebody else's authority")
SERVER = OURS.signs()
CLIENT = OURS.signs("penstock.test")


@pytest.fixture
def serving(tmp_path: Path) -> Callable[..., object]:
    """Opens a server with this certificate that will answer."""

    @asynccontextmanager
    async def opened(shown: Certified = SERVER, **settings: object) -> AsyncIterator[ScriptedUpstream]:
        async with ScriptedUpstream(tls=shown.serves(tmp_path, **settings)) as server:
            server.will(whole(REPLY))
            yield server

    return opened


class Strict:
    """A server in a thread of its own that tells whom it refuses in the handshake; asyncio's would not."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.accepted = 0
        self._context = context
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve)
        self.url = f"https://127.0.0.1:{self._listening.getsockname()[1]}/v1"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listening.close()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listening.accept()
                with self._context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False) as meeting:
                    try:
                        meeting.do_handshake()
                        self.accepted += 1
                    except ssl.SSLError:
                        continue


def trusting(make, server: ScriptedUpstream, **declared: object) -> Upstreams:
    return make(**{"base_url": server.url, "ca_certificates": OURS.certificate_pem, **declared})


async def replied(upstreams: Upstreams, sent: Sent | None = None) -> bool:
    reply = await upstreams.complete(TARGET, chat(), (sent or Sent()).call())
    return json.loads(reply.body) == REPLY


async def unreachable(upstreams: Upstreams) -> None:
    sent = Sent()
    with pytest.raises(UpstreamUnreachable) as caught:
        await replied(upstreams, sent)
    assert (caught.value.unbilled, caught.value.curable, caught.value.retryable) == (True, True, True)
    assert sent.times == 0


class TestATrustedServer:
    async def test_is_asked_again_and_again_over_one_connection(self, make, serving):
        async with serving() as server:
            upstreams = trusting(make, server)
            assert all([await replied(upstreams) for _ in range(5)])
            assert server.connections == 1

    async def test_of_tls_1_2_is_asked_again_and_again_over_one_connection(self, make, serving):
        async with serving() as server:
            server.tls.maximum_version = ssl.TLSVersion.TLSv1_2
            upstreams = trusting(make, server)
            assert all([await replied(upstreams) for _ in range(5)])
            assert server.connections == 1

    async def test_by_name_is_asked(self, make, serving):
        async with serving(OURS.signs("localhost")) as server:
            assert await replied(trusting(make, server, base_url=f"https://localhost:{server.port}/v1"))

    async def test_streams(self, make, serving):
        async with serving() as server:
            server.will(Drip(WHOLE_STREAM, 50))
            upstreams = trusting(make, server)
            for _ in range(3):
                chunks, error = await taken(upstreams.stream(TARGET, chat(stream=True), Sent().call()))
                assert (len(chunks), error) == (5, None)

    async def test_takes_and_gives_megabytes(self, make, serving):
        async with serving() as server:
            body = json.dumps({**REPLY, "pad": "x" * 5_000_000}).encode()
            server.will(whole(body))
            reply = await trusting(make, server).complete(TARGET, chat("y" * 5_000_000), Sent().call())
            assert reply.body == body
            assert len(server.requests[0].json["messages"][0]["content"]) == 5_000_000

    async def test_is_asked_by_fifty_at_a_time(self, make, serving):
        async with serving() as server:
            upstreams = trusting(make, server)
            assert all(await asyncio.gather(*(replied(upstreams) for _ in range(50))))
            assert server.connections <= 50

    @pytest.mark.parametrize("end", [CUT, RESET])
    async def test_that_cuts_its_answer_is_broken(self, make, serving, end):
        async with serving() as server:
            server.will(STREAM_HEAD + chunked(b"data: {"), end)
            _, error = await taken(trusting(make, server).stream(TARGET, chat(stream=True), Sent().call()))
            assert type(error) is UpstreamBroken

    async def test_that_closed_is_asked_over_another_connection(self, make, serving):
        async with serving() as server:
            server.will(whole(REPLY), CUT)
            upstreams = trusting(make, server)
            for _ in range(3):
                assert await replied(upstreams)
                await asyncio.sleep(0.02)
            assert (server.connections, len(server.heads)) == (3, 3)

    async def test_that_nobody_waits_for_is_hung_up_on(self, make, serving):
        async with serving() as server:
            server.will(STREAM_HEAD + chunked(b": ping\n\n"), HOLD, LAST_CHUNK)
            waiting = asyncio.ensure_future(
                anext(trusting(make, server).stream(TARGET, chat(stream=True), Sent().call()))
            )
            await asyncio.wait_for(server.asked.wait(), 1)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            await asyncio.wait_for(server.hung_up.wait(), 1)

    async def test_takes_sixteen_megabytes_without_holding_others_up(self, make, serving):
        async with serving() as server:
            upstreams, loop = trusting(make, server), asyncio.get_running_loop()
            await replied(upstreams)
            late = []

            async def watch() -> None:
                while True:
                    began = loop.time()
                    await asyncio.sleep(0.001)
                    late.append(loop.time() - began)

            watching = asyncio.ensure_future(watch())
            await upstreams.complete(TARGET, chat("y" * 16_000_000), Sent().call())
            watching.cancel()
            assert len(late) > 5


class TestAServerThatIsNotTrusted:
    @pytest.mark.parametrize(
        "shown",
        [
            pytest.param(OURS.signs("elsewhere.test"), id="for another host"),
            pytest.param(OURS.signs("localhost"), id="for a name, asked by its address"),
            pytest.param(OURS.signs(valid_from_days=-9, valid_days=3), id="expired"),
            pytest.param(OURS.signs(valid_from_days=3), id="not valid yet"),
            pytest.param(authority("127.0.0.1"), id="self-signed"),
            pytest.param(OTHERS.signs(), id="signed by somebody else"),
        ],
    )
    async def test_is_sent_nothing(self, make, serving, shown):
        async with serving(shown) as server:
            upstreams = trusting(make, server)
            for _ in range(2):
                await unreachable(upstreams)
            assert not server.heads

    async def test_by_the_systems_authorities_is_sent_nothing(self, make, serving):
        async with serving() as server:
            await unreachable(trusting(make, server, ca_certificates=None))
            assert not server.heads

    async def test_since_it_speaks_only_old_tls_is_sent_nothing(self, make, serving):
        async with serving() as server:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of old versions, which are what this is about
                server.tls.minimum_version = ssl.TLSVersion.TLSv1_1
                server.tls.maximum_version = ssl.TLSVersion.TLSv1_1
            server.tls.set_ciphers("DEFAULT@SECLEVEL=0")
            await unreachable(trusting(make, server))
            assert not server.heads


class TestAHandshake:
    @staticmethod
    @asynccontextmanager
    async def accepting(accepted: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]):
        server = await asyncio.start_server(accepted, "127.0.0.1", 0)
        async with server:
            yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    @pytest.mark.parametrize("reply", [b"", b"\x15\x03\x03\x00\x02\x02\x28", b"HTTP/1.1 400 X\r\n\r\n"])
    async def test_that_ends_halfway_has_sent_nothing(self, make, reply):
        async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(100)
            writer.write(reply)
            writer.close()

        async with self.accepting(accepted) as url:
            await unreachable(make(base_url=url))

    @pytest.mark.parametrize(
        ("limits", "phase"), [({"connect_seconds": 0.1}, "connect"), ({"total_seconds": 0.1}, "total")]
    )
    async def test_that_stalls_runs_out_of_time_and_hangs_up(self, make, limits, phase):
        hung_up = asyncio.Event()

        async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while await reader.read(65536):
                pass
            hung_up.set()
            writer.close()

        async with self.accepting(accepted) as url:
            sent = Sent()
            with pytest.raises(UpstreamTimeout, match=f"`{phase}`") as caught:
                await replied(make(base_url=url, **limits), sent)
            assert (caught.value.unbilled, sent.times) == (True, 0)
            await asyncio.wait_for(hung_up.wait(), 1)

    async def test_that_nobody_waits_for_is_given_up(self, make):
        asked, hung_up = asyncio.Event(), asyncio.Event()

        async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while await reader.read(65536):
                asked.set()
            hung_up.set()
            writer.close()

        async with self.accepting(accepted) as url:
            waiting = asyncio.ensure_future(replied(make(base_url=url)))
            await asyncio.wait_for(asked.wait(), 2)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            await asyncio.wait_for(hung_up.wait(), 1)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
class TestAServerThatAsksForOurCertificate:
    @pytest.fixture
    async def mutual(self, serving, version) -> AsyncIterator[ScriptedUpstream]:
        async with serving(asks_for=OURS) as server:
            server.tls.minimum_version = server.tls.maximum_version = version
            yield server

    async def test_is_shown_it(self, make, mutual, secrets):
        secrets["mutual"] = CLIENT.pem
        upstreams = trusting(make, mutual, client_certificate="mutual")
        assert all([await replied(upstreams) for _ in range(2)])
        assert mutual.peers == ["penstock.test"] * 2
        assert mutual.connections == 1

    @pytest.mark.parametrize("shown", [None, OTHERS.signs("penstock.test")], ids=["none", "somebody else's"])
    async def test_and_is_not_shown_it_takes_no_request(self, make, tmp_path, secrets, version, shown):
        declared = {} if shown is None else {"client_certificate": "mutual"}
        secrets["mutual"] = "" if shown is None else shown.pem
        context = SERVER.serves(tmp_path, asks_for=OURS)
        context.minimum_version = context.maximum_version = version
        with Strict(context) as strict:
            upstreams, sent = make(base_url=strict.url, ca_certificates=OURS.certificate_pem, **declared), Sent()
            for _ in range(5):
                with pytest.raises(UpstreamError) as caught:
                    await replied(upstreams, sent)
                # Since TLS 1.3 we are told after we may have begun to send, if we are told; nobody took it.
                refused = (
                    UpstreamUnreachable if version == ssl.TLSVersion.TLSv1_2 else UpstreamUnreachable | UpstreamBroken
                )
                assert isinstance(caught.value, refused)
        assert strict.accepted == 0

    @pytest.mark.parametrize(
        "sealed",
        [
            pytest.param(None, id="nothing"),
            pytest.param("sk-secret", id="no PEM"),
            pytest.param(CLIENT.certificate_pem, id="no key"),
            pytest.param(CLIENT.key_pem(), id="no certificate"),
            pytest.param(CLIENT.certificate_pem + CLIENT.key_pem(b"password"), id="a key with a password"),
            pytest.param(CLIENT.certificate_pem + SERVER.key_pem(), id="the key of another"),
            pytest.param(CLIENT.certificate_pem + CLIENT.key_pem().replace("M", "-", 1), id="a spoilt key"),
        ],
    )
    async def test_that_cannot_be_read_is_sent_nothing(self, make, mutual, secrets, sealed):
        if sealed is not None:
            secrets["mutual"] = sealed
        upstreams = trusting(make, mutual, client_certificate="mutual")
        for _ in range(2):
            await unreachable(upstreams)
        assert not mutual.heads


@pytest.mark.parametrize("carrier", CARRIERS)
async def test_providers_at_one_place_share_no_connection_if_they_show_different_certificates(serving, clock, carrier):
    async with serving(asks_for=OURS) as server:
        common = {"dialect": "openai", "base_url": server.url, "ca_certificates": OURS.certificate_pem}
        known = Catalogue.of(
            document(kind, name, **body)
            for name in ("one", "two")
            for kind, body in (("provider", {**common, "client_certificate": name}), ("model", {"provider": name}))
        )
        secrets = {name: OURS.signs(name).pem for name in ("one", "two")}
        settings = UpstreamSettings()
        upstreams = upstreams_of(known, secrets.get, clock, settings, carrier=CARRIERS[carrier](settings))
        for name in ("one", "two", "two", "one"):
            await upstreams.complete(Target(name, name, name, 1000, 100), chat(), Sent().call())
        await upstreams.close()
        assert server.peers == ["one", "two", "two", "one"]
        assert server.connections == 2
