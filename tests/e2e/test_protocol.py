"""Raw sockets against the edge: what is not a request, or never becomes one."""

import asyncio
import json
import socket
import time

from tests.prove.books import open_holds
from tests.prove.server import Gateway


async def say(gateway: Gateway, data: bytes, seconds: float = 5) -> tuple[int, dict]:
    """Send bytes and read the answer to its end; status 0 if the connection just closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(data)
    try:
        raw = await asyncio.wait_for(reader.read(), seconds)
    except OSError:  # it hung up while we were still talking
        raw = b""
    writer.close()
    head, _, body = raw.partition(b"\r\n\r\n")
    return (int(head.split()[1]), json.loads(body)) if head else (0, {})


async def test_a_head_that_never_ends_is_refused_and_costs_no_memory(gateway: Gateway) -> None:
    status, body = await say(gateway, b"GET /healthz HTTP/1.1\r\nx: " + b"a" * 20_000_000)
    assert status in {0, 431}
    status, body = await say(gateway, b"GET /healthz HTTP/1.1\r\nx: " + b"a" * 100_000 + b"\r\n\r\n")
    assert status == 431
    assert body["error"]["code"] == "headers_too_large"


async def test_what_is_not_http_is_answered_in_openais_shape(gateway: Gateway) -> None:
    status, body = await say(gateway, b"hello\r\n\r\n")
    assert (status, set(body["error"])) == (400, {"message", "type", "param", "code"})


async def test_half_a_head_is_not_waited_for_for_ever(gateway: Gateway) -> None:
    started = time.monotonic()
    status, _ = await say(gateway, b"GET /healthz HTTP/1.1\r\nx: ", seconds=15)
    assert status == 408
    assert time.monotonic() - started < 14


async def test_a_body_with_its_head_in_one_piece_is_still_welcome(gateway: Gateway) -> None:
    content = "x" * 200_000
    body = json.dumps(
        {"model": "sandbox", "messages": [{"role": "user", "content": content}], "max_tokens": 1}
    ).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        f"Authorization: Bearer {gateway.quickstart.app_key}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    status, _ = await say(gateway, head.encode() + body)
    assert status == 200


async def test_a_caller_who_does_not_read_is_dropped_and_holds_no_money(tmp_path) -> None:
    async with Gateway(tmp_path, environment={"PENSTOCK_SLOW_READER_SECONDS": "1"}) as gateway:
        content = 'sandbox: {"tokens": 4000}'
        body = json.dumps(
            {"model": "sandbox-priced", "stream": True, "n": 20, "messages": [{"role": "user", "content": content}]}
        ).encode()
        deaf = socket.socket()
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect(("127.0.0.1", gateway.port))
        deaf.sendall(
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {gateway.quickstart.app_key}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        async with asyncio.timeout(5):
            while not open_holds(gateway.data_dir):
                await asyncio.sleep(0.05)
        async with asyncio.timeout(10):
            while open_holds(gateway.data_dir):
                await asyncio.sleep(0.1)
        deaf.close()
