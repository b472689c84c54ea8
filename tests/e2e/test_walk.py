"""The walk, told from the user's side: one real server, one real client, and what each gets to see."""

import asyncio
import json
import signal
import sqlite3
import stat
import subprocess
from pathlib import Path

import aiohttp
import pytest

from tests.prove.books import open_holds, read_attempts
from tests.prove.company import chat, chat_and_leave, found_company, scripted
from tests.prove.server import Gateway, Refused, Simulator, StartFailed

HELLO = [{"role": "user", "content": "Hello"}]


async def settled(gateway: Gateway) -> None:
    """Wait until no turn is open; the answer's last byte may be ahead of the books by one commit."""
    async with asyncio.timeout(5):
        while open_holds(gateway.data_dir):
            await asyncio.sleep(0.02)


async def test_the_first_start_leaves_keys_that_only_this_user_can_read(gateway: Gateway) -> None:
    path = gateway.data_dir / "quickstart.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert set(json.loads(path.read_text())) == {"base_url", "app_key", "admin_key", "author_key", "approver_key"}


async def test_the_printed_curl_line_works_as_it_stands(gateway: Gateway) -> None:
    async with asyncio.timeout(2):
        while "choices[0]" not in gateway.logs:
            await asyncio.sleep(0.02)
    printed = gateway.logs[gateway.logs.index("  curl") : gateway.logs.index("  from openai")]
    done = await asyncio.to_thread(subprocess.run, printed, shell=True, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["choices"][0]["message"]["content"]


async def test_a_turn_can_be_explained_afterwards(gateway: Gateway) -> None:
    key = gateway.quickstart.app_key
    answer = await chat(gateway, key, HELLO, model="sandbox-priced")
    told = await gateway.ask("GET", f"/v1/requests/{answer.headers['x-request-id']}", key=key)
    assert (told["outcome"], told["plan"]) == ("answered", ["sandbox-priced"])
    assert list(told["milliseconds"]) == ["identify", "admit", "hold", "do", "settle"]
    assert told["cost_usd"] == answer.headers["x-penstock-cost-usd"]
    [attempt] = told["attempts"]
    assert (attempt["state"], attempt["price_id"], attempt["estimated"]) == ("posted", "sandbox-priced@1", False)
    assert "Hello" not in json.dumps(told)


async def test_a_turn_of_another_app_is_as_if_it_never_was(gateway: Gateway) -> None:
    answer = await chat(gateway, gateway.quickstart.app_key, HELLO, model="sandbox")
    await gateway.apply("{apps: [{name: other, department: demo, use_cases: [trial]}]}")
    stranger = await gateway.create_key(name="stranger", app="other")
    texts = []
    for turn_id in (answer.headers["x-request-id"], "req_00000000000000000000000000"):
        with pytest.raises(Refused) as refused:
            await gateway.ask("GET", f"/v1/requests/{turn_id}", key=stranger)
        assert refused.value.status == 404
        texts.append(str(refused.value).replace(turn_id, "ID"))
    assert texts[0] == texts[1]


async def test_a_revoked_key_is_refused_at_once_and_everywhere_within_two_seconds(gateway: Gateway) -> None:
    made = await gateway.ask(
        "POST", "/api/keys", key=gateway.quickstart.admin_key, body={"name": "short", "app": "demo-app"}
    )
    assert (await chat(gateway, made["key"], HELLO, model="sandbox")).status == 200
    await gateway.ask("DELETE", f"/api/keys/{made['id']}", key=gateway.quickstart.admin_key)
    assert (await chat(gateway, made["key"], HELLO, model="sandbox")).code == "invalid_api_key"


async def test_open_streams_of_a_revoked_key_end_with_an_error_event(gateway: Gateway, simulator: Simulator) -> None:
    await found_company(gateway, simulator)
    made = await gateway.ask(
        "POST", "/api/keys", key=gateway.quickstart.admin_key, body={"name": "short", "app": "proof-app"}
    )
    stream = asyncio.create_task(chat(gateway, made["key"], scripted(tokens=200, pace_ms=50), stream=True))
    await asyncio.sleep(0.5)
    await gateway.ask("DELETE", f"/api/keys/{made['id']}", key=gateway.quickstart.admin_key)
    async with asyncio.timeout(2):
        answer = await stream
    assert '"invalid_api_key"' in answer.events[-1]
    await settled(gateway)
    [attempt] = read_attempts(gateway.data_dir).values()
    assert attempt.estimated


async def test_what_the_command_line_changes_is_in_force_within_two_seconds(gateway: Gateway, tmp_path: Path) -> None:
    made = json.loads(gateway.command("keys", "create", "by-hand", "--app", "demo-app", "--json").stdout)[0]
    async with asyncio.timeout(2):
        while (await chat(gateway, made["key"], HELLO, model="sandbox")).status != 200:
            await asyncio.sleep(0.05)
    assert gateway.command("keys", "revoke", made["id"]).returncode == 0
    async with asyncio.timeout(2):
        while (await chat(gateway, made["key"], HELLO, model="sandbox")).status != 401:
            await asyncio.sleep(0.05)


async def test_an_export_applied_again_changes_nothing(gateway: Gateway, tmp_path: Path) -> None:
    exported = gateway.command("export")
    file = tmp_path / "all.yaml"
    file.write_text(exported.stdout)
    planned = gateway.command("plan", "-f", str(file))
    assert planned.returncode == 0, planned.stderr
    assert "nothing to change" in planned.stdout


async def test_every_command_shows_and_fails_as_it_should(gateway: Gateway, tmp_path: Path) -> None:
    await chat(gateway, gateway.quickstart.app_key, HELLO, model="sandbox-priced")
    for arguments in (["budgets"], ["spend", "--by", "app,model"], ["keys", "list"], ["audit", "verify"], ["doctor"]):
        shown = gateway.command(*arguments, "--json")
        assert shown.returncode == 0, shown.stderr + shown.stdout
        assert json.loads(shown.stdout)
        assert gateway.command(*arguments).returncode == 0
    file = tmp_path / "bad.yaml"
    file.write_text("apps: [{name: a, department: nowhere, use_cases: [x]}]")
    failed = gateway.command("apply", "-f", str(file))
    assert failed.returncode == 1
    assert "nowhere" in failed.stderr
    assert "Traceback" not in failed.stderr


async def test_a_second_server_on_the_same_folder_is_refused(gateway: Gateway, tmp_path: Path) -> None:
    with pytest.raises(StartFailed, match="another penstock serves"):
        async with Gateway(tmp_path):
            pass


async def test_no_key_and_no_content_in_any_log_record_or_row(gateway: Gateway, simulator: Simulator) -> None:
    key = await found_company(gateway, simulator)
    canary = "canary-4111111111111111"
    await chat(gateway, key, [{"role": "user", "content": canary}])
    await chat(gateway, key, [{"role": "user", "content": canary}], model="no-such-model")
    await chat(gateway, key, [{"role": "user", "content": canary}], temperature="canary-4111111111111111")
    await chat(gateway, f"{key}x", [{"role": "user", "content": canary}])
    await gateway.terminate()
    logs = gateway.logs.replace(gateway.quickstart.app_key, "")  # the first start prints it on purpose
    files = b"".join(path.read_bytes() for path in gateway.data_dir.iterdir() if path.name.startswith("penstock.db"))
    for secret in (canary, key, simulator.key):
        assert secret not in logs
        assert secret.encode() not in files
    assert gateway.quickstart.admin_key.encode() not in files


async def test_the_trail_and_the_books_refuse_to_be_changed(gateway: Gateway) -> None:
    await chat(gateway, gateway.quickstart.app_key, HELLO, model="sandbox-priced")
    connection = sqlite3.connect(gateway.data_dir / "penstock.db")
    for table in ("entries", "audit", "documents", "changes"):
        for statement in (f"DELETE FROM {table}", f"UPDATE {table} SET at = at"):
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                connection.execute(statement)
    connection.close()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_caller_who_hangs_up_is_booked_and_the_upstream_is_let_go(
    gateway: Gateway, simulator: Simulator, *, stream: bool
) -> None:
    key = await found_company(gateway, simulator)
    leaving = asyncio.create_task(
        chat_and_leave(gateway, key, scripted(tokens=200, pace_ms=20), after_bytes=10**9, stream=stream)
    )
    async with asyncio.timeout(5):
        while not (await simulator.stats())["answering"]:
            await asyncio.sleep(0.02)
    leaving.cancel()
    async with asyncio.timeout(1):
        while (await simulator.stats())["answering"]:
            await asyncio.sleep(0.02)
    await settled(gateway)
    [attempt] = read_attempts(gateway.data_dir).values()
    [line] = simulator.invoice()
    assert attempt.estimated
    assert attempt.tokens["output"] >= line.tokens.output
    assert attempt.tokens["input"] >= line.tokens.input > 0


async def test_a_stop_lets_open_streams_end_and_leaves_no_hold(gateway: Gateway, simulator: Simulator) -> None:
    key = await found_company(gateway, simulator)
    streams = [asyncio.create_task(chat(gateway, key, scripted(tokens=40, pace_ms=25), stream=True)) for _ in range(20)]
    await asyncio.sleep(0.5)
    status = await gateway.process.stop(signal.SIGTERM, seconds=20)
    answers = await asyncio.gather(*streams)
    assert status == 0
    assert all(answer.events[-1] == "[DONE]" for answer in answers)
    assert open_holds(gateway.data_dir) == 0


async def test_an_unreachable_target_is_passed_over_and_a_refusal_is_passed_on(
    gateway: Gateway, simulator: Simulator
) -> None:
    more = """
aliases: [{name: pair, targets: [dead, sim-small]}]
"""
    key = await found_company(gateway, simulator)
    await gateway.apply(
        'providers: [{name: nowhere, dialect: openai, base_url: "http://127.0.0.1:9/v1"}]\n'
        "models: [{name: dead, provider: nowhere}]\n"
        'prices: [{name: dead, model: dead, usd_per_million_tokens: {input: "1", output: "1"}}]\n'
        "policies: [{name: dead, models: [dead], departments: [proof], use_cases: [proving], data_class: internal}]\n"
        + more
    )
    answer = await chat(gateway, key, HELLO, model="pair")
    assert (answer.status, answer.headers["x-penstock-model"]) == (200, "sim-small")
    assert answer.headers["x-penstock-attempts"] == "2"
    await settled(gateway)
    states = sorted(attempt.state for attempt in read_attempts(gateway.data_dir).values())
    assert states == ["post", "void"]
    refused = await chat(gateway, key, scripted(status=400), model="pair")
    assert (refused.status, refused.headers["x-should-retry"]) == (400, "false")


async def test_errors_beyond_the_table_are_in_openais_shape(gateway: Gateway) -> None:
    key, admin = gateway.quickstart.app_key, gateway.quickstart.admin_key
    for method, path, whose, status in [
        ("GET", "/v1/nothing", key, 404),
        ("GET", "/v1/chat/completions", key, 405),
        ("GET", "/", "wrong", 401),
        ("GET", "/api/export", key, 403),
        ("GET", "/api/nothing", admin, 404),
        ("POST", "/v1/chat/completions", admin, 403),
    ]:
        headers = {"Authorization": f"Bearer {whose}"}
        async with gateway.session.request(method, gateway.url + path, headers=headers) as answer:
            body = await answer.json()
            assert answer.status == status, (method, path, body)
            assert set(body["error"]) == {"message", "type", "param", "code"}
            assert answer.headers["x-should-retry"] == "false"
            assert answer.headers["x-request-id"].startswith("req_")


async def test_a_body_too_large_is_refused_before_it_is_read(gateway: Gateway) -> None:
    headers = {"Authorization": f"Bearer {gateway.quickstart.app_key}", "Content-Length": str(10**10)}
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    writer.write(f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n{lines}\r\n".encode())
    assert b" 413 " in await asyncio.wait_for(reader.readline(), 2)
    writer.close()


async def test_metrics_count_what_happened(gateway: Gateway) -> None:
    await chat(gateway, gateway.quickstart.app_key, HELLO, model="sandbox-priced")
    await chat(gateway, gateway.quickstart.app_key, HELLO, model="made-up-by-a-caller")
    async with aiohttp.ClientSession() as session, session.get(f"{gateway.url}/metrics") as answer:
        page = await answer.text()
    assert 'ai_requests_total{model="sandbox-priced",status="200"} 1.0' in page
    assert 'ai_requests_total{model="unknown",status="404"} 1.0' in page
    assert "made-up" not in page
    assert 'ai_cost_dollars_total{department="demo"}' in page or 'ai_cost_dollars{department="demo"}' in page
