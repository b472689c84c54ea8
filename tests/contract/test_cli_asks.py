"""How commands ask a gateway that runs, against a real socket: what they send, and what they make of what comes."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from gateway.cli_targets import GatewayRefused
from gateway.cli_targets import ask_gateway as ask

REFUSED = b'{"error": {"message": "This needs the role platform_admin.", "code": "permission_denied"}}'


@contextmanager
def gateway(status: int, body: bytes, **headers: str) -> Iterator[tuple[str, list[tuple[str, str | None]]]]:
    """A server that says the same to everybody: its address, and what it was asked with which authorisation."""
    asked = list[tuple[str, str | None]]()

    class Answers(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append((self.path, self.headers["authorization"]))
            self.send_response(status)
            for name, value in {"content-length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join()


def test_the_answer_is_the_object_that_came() -> None:
    with gateway(200, b'{"state": "answered"}') as (url, asked):
        assert ask(url, "key", "/api/models/a/b:c/test") == {"state": "answered"}
        assert ask(f"{url}/below/", "key", "/api") == {"state": "answered"}
    assert asked == [("/api/models/a/b:c/test", "Bearer key"), ("/below/api", "Bearer key")]


def test_a_refusal_is_told_in_the_gateways_words() -> None:
    with gateway(403, REFUSED) as (url, _), pytest.raises(GatewayRefused) as caught:
        ask(url, "key", "/api")
    assert caught.value.message == "403 permission_denied: This needs the role platform_admin."


@pytest.mark.parametrize("body", [b"<html>not a gateway</html>", b"[]", b""])
def test_what_is_no_gateway_is_told_apart(body: bytes) -> None:
    with gateway(200, body) as (url, _), pytest.raises(GatewayRefused, match="No gateway answers"):
        ask(url, "key", "/api")


def test_a_key_never_follows_a_redirect() -> None:
    with (
        gateway(200, b"{}") as (elsewhere, stolen),
        gateway(307, b"{}", location=elsewhere) as (url, asked),
        pytest.raises(GatewayRefused, match="307"),
    ):
        ask(url, "key", "/api")
    assert (len(asked), stolen) == (1, [])


def test_a_port_that_nobody_listens_on_is_told_with_the_cure() -> None:
    with gateway(200, b"{}") as (url, _):
        pass
    with pytest.raises(GatewayRefused, match="start one with penstock serve, or say with --url"):
        ask(url, "key", "/api")


def test_a_key_that_no_header_can_hold_is_refused() -> None:
    with gateway(200, b"{}") as (url, asked), pytest.raises(GatewayRefused, match="--key"):
        ask(url, "key\r\nx: y", "/api")
    assert asked == []
