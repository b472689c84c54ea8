"""The bench's own two ends and its floor, over real sockets: what they count is what happened."""

import asyncio
import json
import signal
import subprocess
import sys
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from bench import mock, relay
from bench.asking import Address, answers, chat, get, set_mock
from bench.cores import tree
from bench.load import Load, Work, request_of
from tests.prove.server import free_port

ROOT = Path(__file__).parents[2]


@asynccontextmanager
async def serving(port, serve):
    task = asyncio.create_task(serve)
    try:
        await answers(port)
        yield port
    finally:
        task.cancel()
        await asyncio.wait({task})
        await asyncio.sleep(0.01)


@asynccontextmanager
async def scripted(answer):
    handling = set()

    async def handle(reader, writer):
        handling.add(asyncio.current_task())
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while await reader.readuntil(b"}]}"):
                await answer(writer)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]
        await asyncio.wait(handling)


def work(port, *, stream=False, seconds=0.3, connections=4, **more) -> Work:
    body = Address(port).body(stream=stream) if not more.pop("short", False) else b'{"messages":[{}]}'
    request = request_of(port, "/v1/chat/completions", body)
    return Work(port, request, stream, connections, seconds, **more)


async def requests_at(port) -> int:
    return json.loads((await get(port, "/")).body)["requests"]


async def test_every_request_is_counted_once_at_both_ends_of_the_relay():
    port, front = free_port(), free_port()
    async with serving(port, mock.serve(port)), serving(front, relay.serve(front, port)):
        before = await requests_at(port)
        seen = await Load(work(front)).run()
        assert seen.errors == {}
        assert seen.ended == await requests_at(port) - before > 0


async def test_a_stream_arrives_with_every_chunk_and_its_usage():
    port, front = free_port(), free_port()
    async with serving(port, mock.serve(port)), serving(front, relay.serve(front, port)):
        await set_mock(port, delay_ms=1, chunks=7)
        answer = await chat(Address(front), stream=True)
        assert (answer.status, answer.chunks, answer.ended) == (200, 7, True)
        assert b'"usage":{"prompt_tokens":217,"completion_tokens":7,"total_tokens":224}' in answer.body
        seen = await Load(work(front, stream=True)).run()
        assert seen.errors == {}
        assert seen.chunks == 7 * seen.ended > 0
        assert seen.first_chunk_ms.p50 >= 1 <= seen.latency_ms.p50


async def test_an_answer_is_about_as_long_as_promised():
    answer = mock.whole_answer(200).partition(b"\r\n\r\n")[2]
    assert 500 <= len(answer) <= 580


async def test_a_fixed_rate_counts_the_wait_behind_a_slow_answer():
    first = asyncio.Event()

    async def answer(writer):
        if not first.is_set():
            first.set()
            await asyncio.sleep(0.2)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    async with scripted(answer) as port:
        seen = await Load(work(port, connections=1, seconds=0.3, rate=100, short=True)).run()
    assert seen.ended == 30
    assert seen.latency_ms.p50 > 50, "those that were due meanwhile waited, too"


async def test_a_closed_loop_forgets_that_wait():
    async def answer(writer):
        await asyncio.sleep(0.05)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    async with scripted(answer) as port:
        seen = await Load(work(port, connections=1, short=True)).run()
    assert 50 <= seen.latency_ms.max < 100


async def test_refusals_cuts_and_quiet_ends_are_errors():
    async def refuse(writer):
        writer.write(b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 0\r\n\r\n")
        await asyncio.sleep(0.02)

    async def cut(writer):
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello")
        writer.close()

    async def end_quietly(writer):
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
        await asyncio.sleep(0.02)

    for answer, error in ((refuse, "429"), (cut, "connection lost"), (end_quietly, "ended without [DONE]")):
        async with scripted(answer) as port:
            seen = await Load(work(port, stream=True, short=True, seconds=0.1)).run()
        assert seen.ended == 0
        assert set(seen.errors) == {error}


async def test_what_is_never_answered_is_an_error_too():
    async def say_nothing(writer):
        pass

    async with scripted(say_nothing) as port:
        seen = await Load(work(port, short=True, seconds=0.05, drain_seconds=0.05)).run()
    assert seen.errors == {"unanswered": 4}


def test_a_run_that_is_interrupted_leaves_nothing_behind(tmp_path):
    command = [sys.executable, "-m", "bench", "--only", "relay,requests", "--out", str(tmp_path / "latest.json")]
    running = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert any(line.startswith("round 1") for line in running.stdout)
        while not any(b"bench.load" in Path(f"/proc/{pid}/cmdline").read_bytes() for pid in tree(running.pid)):
            assert running.poll() is None
        started = tree(running.pid)
        assert len(started) >= 4, "itself, the provider, the relay, the load"
        running.send_signal(signal.SIGINT)
        assert running.wait(20) == 130
    finally:
        running.kill()
        running.stdout.close()
    assert not [pid for pid in started if Path(f"/proc/{pid}").exists()]
