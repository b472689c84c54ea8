"""`penstock models`: what it lists, and what it says of a trial."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from gateway import cli_targets
from gateway.cli_targets import GatewayRefused, Rows, ask_gateway, commands, list_of
from gateway.wiring import Platform
from tests.conftest import StillClock
from tests.fakes.chats import company

MODELS = """
models:
  - {name: big, provider: s, upstream_model: big-2, context_tokens: 9000, output_tokens_max: 900}
  - {name: old, provider: s, lifecycle: deprecated, retires_on: "2026-12-01", successor: big}
prices:
  - {name: big-now, model: big, usd_per_million_tokens: {input: "2.50", output: "10"}}
  - {name: big-then, model: big, usd_per_million_tokens: {input: "1", output: "1"}, valid_from: "2026-12-01T00:00:00Z"}
"""
REPORT: dict[str, Any] = {
    "model": "m", "provider": "p", "upstream_model": "m-1", "state": "answered", "milliseconds": 12.5, "tokens": {},
    "cost_usd": "0.000000019", "estimated": False, "price_id": "m@1", "request_id": "req_1",
    "provider_request_id": "up-1", "error": None,
}  # fmt: skip
FAILURE = {"status": 502, "code": "upstream_error", "message": "It answered with status 401.", "cure": "Seal it again."}


class Printed:
    """Where commands show their rows."""

    def __init__(self) -> None:
        self.rows = Rows()
        self.as_json = False

    def __call__(self, rows: Rows, *, as_json: bool) -> None:
        self.rows, self.as_json = rows, as_json


@pytest.fixture
async def platform(tmp_path: Path) -> AsyncIterator[Platform]:
    async with company(tmp_path) as made:
        await made.register.apply(made.register.parse(MODELS), by="test")
        await made.feed.catch_up()
        yield made


async def test_a_row_has_what_is_declared_and_the_price_in_force(platform: Platform, clock: StillClock) -> None:
    rows = {row["model"]: row for row in list_of(platform, clock)}
    assert list(rows) == sorted(rows)
    assert rows["big"] == {
        "model": "big", "provider": "s", "upstream_model": "big-2", "base": None, "lifecycle": "active",
        "retires_on": None, "successor": None, "price": "big-now@1", "input_usd": "2.5", "output_usd": "10",
        "context_tokens": 9_000, "output_tokens_max": 900,
    }  # fmt: skip
    assert (rows["secret"]["price"], rows["secret"]["input_usd"]) == (None, None)


async def test_the_day_decides_over_prices_and_lifecycles(platform: Platform, clock: StillClock) -> None:
    def told() -> list[tuple[str, str]]:
        rows = {row["model"]: row for row in list_of(platform, clock)}
        return [(rows["big"]["price"], rows["old"]["lifecycle"])]

    before = told()
    clock.advance(11 * 86_400)
    assert (before, told()) == ([("big-now@1", "deprecated")], [("big-then@1", "retired")])


class TestCommand:
    """`penstock models test`."""

    def run(self, report: dict[str, Any], *arguments: str) -> tuple[Any, Printed, list[tuple[str, str, str]]]:
        printed, asked = Printed(), list[tuple[str, str, str]]()

        def answer(url: str, key: str, path: str) -> dict[str, Any]:
            asked.append((url, key, path))
            return report

        app = commands(lambda _: [], printed, answer)
        return CliRunner().invoke(app, ["test", *arguments]), printed, asked

    def test_shows_what_came_of_it(self) -> None:
        done, printed, asked = self.run(REPORT, "ft:a:b/c", "--key", "k")
        assert (done.exit_code, asked) == (0, [("http://127.0.0.1:8080", "k", "/api/models/ft:a:b/c/test")])
        assert [list(row) for row in printed.rows] == [list(cli_targets._SHOWN)]

    def test_fails_with_the_cure_where_the_target_failed(self) -> None:
        done, printed, _ = self.run({**REPORT, "state": "failed", "error": FAILURE}, "m", "--key", "k")
        assert done.exit_code == 1
        assert "upstream_error: It answered with status 401. Seal it again." in done.stderr
        assert printed.rows[0]["state"] == "failed"

    def test_prints_all_of_it_as_json(self) -> None:
        report = {**REPORT, "state": "failed", "error": FAILURE}
        done, printed, _ = self.run(report, "m", "--key", "k", "--json")
        assert (done.exit_code, printed.as_json, printed.rows) == (1, True, [report])

    def test_takes_the_key_of_the_environment_or_of_the_folder(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("PENSTOCK_DATA_DIR", str(tmp_path))
        monkeypatch.delenv("PENSTOCK_KEY", raising=False)
        (tmp_path / "quickstart.json").write_bytes(msgspec.json.encode({"admin_key": "of-folder", "app_key": "x"}))
        _, _, asked = self.run(REPORT, "m")
        monkeypatch.setenv("PENSTOCK_KEY", "of-environment")
        _, _, again = self.run(REPORT, "m")
        assert [key for _, key, _ in asked + again] == ["of-folder", "of-environment"]

    @pytest.mark.parametrize("kept", [None, b"", b'{"app_key": "x"}'])
    def test_says_how_to_get_a_key_where_there_is_none(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kept: bytes | None
    ) -> None:
        monkeypatch.setenv("PENSTOCK_DATA_DIR", str(tmp_path))
        monkeypatch.delenv("PENSTOCK_KEY", raising=False)
        if kept is not None:
            (tmp_path / "quickstart.json").write_bytes(kept)
        done, _, asked = self.run(REPORT, "m")
        assert isinstance(done.exception, GatewayRefused)
        assert "penstock keys create" in done.exception.message
        assert asked == []


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8080", "ftp://127.0.0.1", "http://127.0.0.1:x", "http://[::1", "http://", ""]
)
def test_an_address_that_is_none_is_refused_before_a_key_leaves(url: str) -> None:
    with pytest.raises(GatewayRefused, match="--url is"):
        ask_gateway(url, "k", "/")
