"""Our own connection to Redis: what it says to be let in, in which order answers come, and what makes it let go."""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta

import hiredis
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from governance import find_fault
from governance.redis import place_of
from governance.redis_wire import Connection, Refused

ECHO = "return ARGV[1]"


@asynccontextmanager
async def connected(url: str, *, scripts=(), seconds=1.0) -> AsyncIterator[Connection]:
    connection = Connection(scripts, seconds)
    await connection.open(place_of(url))
    try:
        yield connection
    finally:
        connection.drop()


@asynccontextmanager
async def scripted(answer: Callable[[bytes], bytes], tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """A server that answers what it reads as it is told to; nothing for nothing."""

    async def serve(reader, writer):
        writers.append(writer)
        with suppress(ConnectionError):
            while data := await reader.read(65_536):
                writer.write(answer(data))
        writer.close()

    writers: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    async with server:
        yield f"redis{'s' if tls else ''}://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
        for writer in writers:
            writer.transport.abort()
        await asyncio.sleep(0.01)


async def test_answers_come_in_order_whatever_they_are_and_however_they_are_cut(redis_url):
    async with connected(redis_url) as one:
        big = "x" * 300_000
        flights = [one.ask([("SET", f"k{n}", n), ("GET", f"k{n}"), ("GET", "none")]) for n in range(50)]
        flights.append(one.ask([("ECHO", big)]))
        answers = await asyncio.gather(*flights)
    assert answers[:-1] == [[b"OK", b"%d" % n, None] for n in range(50)]
    assert answers[-1] == [big.encode()]


async def test_it_logs_in_and_takes_its_database_from_the_url(mortal_redis):
    mortal_redis.say(b"CONFIG SET requirepass s%cret")
    url = f"redis://:s%25cret@127.0.0.1:{mortal_redis.port}/3"
    async with connected(url) as one:
        await one.ask([("SET", "here", 1)])
    async with connected(url.replace(":s", "default:s").removesuffix("3") + "0") as other:
        assert await other.ask([("EXISTS", "here"), ("SELECT", 3), ("EXISTS", "here")]) == [0, b"OK", 1]
    assert await find_fault(url) is None
    assert await find_fault(url.replace("cret", "")) == "WRONGPASS"
    assert await find_fault(mortal_redis.url) == "NOAUTH"
    assert "s%cret" not in repr(place_of(url))


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(secret + made.public_bytes(serialization.Encoding.PEM))
    return path


async def test_rediss_is_encrypted_and_the_server_must_prove_its_name(certificate):
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    async with scripted(lambda _: b"+PONG\r\n", context) as url:
        named = url.replace("127.0.0.1", "localhost")
        assert await find_fault(f"{named}?ssl_ca_certs={certificate}") is None
        assert await find_fault(named) == "SSLCertVerificationError"
        assert await find_fault(f"{url}?ssl_ca_certs={certificate}") == "SSLCertVerificationError"


async def test_forgotten_script_is_loaded_and_said_again_in_its_place(mortal_redis):
    async with connected(mortal_redis.url, scripts=[ECHO]) as one:
        (sha,) = await one.ask([("SCRIPT", "LOAD", ECHO)])
        echo = [("EVALSHA", sha.decode(), 0, word) for word in ("a", "b")]
        mortal_redis.say(b"SCRIPT FLUSH")
        first, second = await asyncio.gather(
            one.ask([echo[0], ("SET", "n", 1), echo[1]]), one.ask([("INCR", "n"), echo[1]])
        )
    assert (first, second) == ([b"a", b"OK", b"b"], [2, b"b"])


async def test_script_that_nobody_gave_it_is_refused(redis_url):
    async with connected(redis_url, scripts=[ECHO]) as one:
        with pytest.raises((Refused, TimeoutError)):
            await one.ask([("EVALSHA", "0" * 40, 0)])


@pytest.mark.parametrize(
    ("said", "doubt"),
    [
        (b"-OOM command not allowed\r\n", Refused),
        (b"?nonsense\r\n", hiredis.ProtocolError),
        (b"+OK\r\n+OK\r\n+OK\r\n", IndexError),
        (b"", TimeoutError),
    ],
    ids=["an error", "nonsense", "an answer too many", "silence"],
)
async def test_any_doubt_fails_all_that_wait_and_the_connection_is_of_no_use_any_more(said, doubt):
    answers = [b"+PONG\r\n", said]
    async with scripted(lambda _: answers.pop(0) if answers else b"") as url, connected(url, seconds=0.1) as one:
        flights = [one.ask([("GET", "a")]), one.ask([("GET", "b")]), one.ask([("GET", "c")])]
        started = time.monotonic()
        found = await asyncio.gather(*flights, return_exceptions=True)
        assert time.monotonic() - started < 0.15
        if doubt is IndexError:
            assert found == [[b"OK"]] * 3
            await asyncio.sleep(0.02)
        else:
            assert [type(each) for each in found] == [doubt] * 3
            with pytest.raises(doubt):
                await one.ask([("GET", "a")])


async def test_line_that_is_cut_is_heard_at_once(mortal_redis):
    async with connected(mortal_redis.url, seconds=5) as one:
        waiting = one.ask([("BLPOP", "nothing", 0)])
        mortal_redis.kill()
        with pytest.raises(ConnectionError):
            await asyncio.wait_for(waiting, 1)


async def test_server_that_takes_the_connection_and_says_nothing_is_given_up_in_time():
    async with scripted(lambda _: b"") as url:
        started = time.monotonic()
        assert await find_fault(url) == "TimeoutError"
        assert time.monotonic() - started < 0.15
