"""The fault driver does to processes and connections what its verbs say, and nothing else."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest

from tests.chaos.postgres import PostgresServer, plain
from tests.chaos.proxy import Proxy
from tests.chaos.redis import RedisServer
from tests.conftest import skipped_where_not_run


@asynccontextmanager
async def echoing(workdir: Path) -> AsyncIterator[Proxy]:
    """A proxy in front of a server that says everything back."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with server, Proxy(workdir, server.sockets[0].getsockname()[1]) as proxy:
        yield proxy


async def said(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, seconds: float = 5) -> bytes:
    writer.write(b"hello")
    async with asyncio.timeout(seconds):
        return await reader.readexactly(5)


async def test_proxy_forwards_holds_back_and_forwards_again_what_it_held(tmp_path: Path) -> None:
    async with echoing(tmp_path) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        assert await said(reader, writer) == b"hello"
        await proxy.black_hole()
        with pytest.raises(TimeoutError):
            await said(reader, writer, seconds=0.2)
        late = await asyncio.open_connection("127.0.0.1", proxy.port)  # accepted all the same
        late[1].write(b"there")
        await proxy.let_pass()
        assert await asyncio.wait_for(reader.readexactly(5), 5) == b"hello"
        assert await asyncio.wait_for(late[0].readexactly(5), 5) == b"there"
        for each in (writer, late[1]):
            each.close()


async def test_proxy_delays_and_throttles_by_what_it_is_told(tmp_path: Path) -> None:
    async with echoing(tmp_path) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        await proxy.delay(100)
        began = time.monotonic()
        await said(reader, writer)
        assert time.monotonic() - began >= 0.2  # there and back
        await proxy.throttle(20_000)
        began = time.monotonic()
        writer.write(bytes(8_000))
        await asyncio.wait_for(reader.readexactly(8_000), 5)
        assert 0.35 <= time.monotonic() - began <= 3
        writer.close()


async def test_proxy_refuses_and_resets(tmp_path: Path) -> None:
    async with echoing(tmp_path) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        await said(reader, writer)
        await proxy.rst_all()
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(1), 5)
        reader, again = await asyncio.open_connection("127.0.0.1", proxy.port)
        assert await said(reader, again) == b"hello"
        await proxy.refuse()
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(1), 5)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", proxy.port)
        await proxy.let_pass()
        reader, last = await asyncio.open_connection("127.0.0.1", proxy.port)
        assert await said(reader, last) == b"hello"
        for each in (writer, again, last):
            each.close()


async def test_postgres_killed_loses_nothing_that_was_committed(mortal_postgres: PostgresServer) -> None:
    server = mortal_postgres
    connection = await asyncpg.connect(plain(server.url))
    assert await connection.fetchval("SHOW synchronous_commit") == "on"
    assert await connection.fetchval("SHOW restart_after_crash") == "off"
    await connection.execute("CREATE TABLE kept (number int)")
    acknowledged = 0

    async def write() -> None:
        nonlocal acknowledged
        while True:
            await connection.execute("INSERT INTO kept VALUES ($1)", acknowledged)
            acknowledged += 1

    writing = asyncio.create_task(write())
    await asyncio.sleep(0.3)
    await server.kill9()
    with pytest.raises((OSError, asyncpg.PostgresError, asyncpg.InterfaceError)):
        await writing
    await server.start()
    connection = await asyncpg.connect(plain(server.url))
    assert await connection.fetchval("SELECT count(*) FROM kept") in {acknowledged, acknowledged + 1}
    assert acknowledged > 0
    await connection.close()


async def test_redis_forgets_when_flushed_and_when_killed(tmp_path: Path) -> None:
    with skipped_where_not_run():
        server = RedisServer(tmp_path)
    async with server:
        for forget in (server.flushall, server.kill9):
            await server.command("SET", "key", "kept")
            assert await server.command("GET", "key") == "$4"
            await forget()
            if forget == server.kill9:
                with pytest.raises(ConnectionRefusedError):
                    await server.command("PING")
                await server.start()
            assert await server.command("GET", "key") == "$-1"
