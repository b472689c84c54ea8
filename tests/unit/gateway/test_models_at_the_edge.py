"""Models as data, from the caller's side: bases, retirement, what the list and the headers say, and trials."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.wiring import Platform
from governance import NewKey
from kernel import InvalidDeclaration, Role
from tests.fakes.chats import TAIL, WORD, RawCaller, Scripted, chat_with, company

MODELS = """
models:
  - {name: tuned, provider: s, base: one}
  - {name: "ft:one:corp::1", provider: s}
  - {name: own, provider: s, base: one}
  - {name: gone, provider: s, base: one, retires_on: "2020-01-01", successor: one}
  - {name: veiled, provider: s, base: one, hidden: true, lifecycle: retired, successor: one}
  - {name: buried, provider: s, hidden: true, lifecycle: retired, successor: one}
  - {name: leaving, provider: s, base: one, lifecycle: deprecated, retires_on: "9999-01-01", successor: two}
  - {name: early, provider: s, base: one, lifecycle: preview}
  - {name: deep, provider: s, base: secret}
aliases: [{name: mostly, targets: [gone, tuned]}, {name: graves, targets: [gone]}]
policies:
  - {name: own, models: [own, deep], departments: [d], use_cases: ["*"], data_class: internal, approval_required: true}
  - {name: deep, models: [deep], departments: [d], use_cases: ["*"], data_class: internal}
"""


@pytest.fixture
async def platform(tmp_path: Path) -> AsyncIterator[Platform]:
    async with company(tmp_path) as made:
        await made.register.apply(made.register.parse(MODELS), by="test")
        await made.feed.catch_up()
        made.edge.chat = chat_with(
            made, Scripted(tuned=[WORD, TAIL], leaving=[WORD, TAIL], **{"ft:one:corp::1": [TAIL]})
        )
        yield made


async def app_key(platform: Platform) -> str:
    return (await platform.keys.create(NewKey(name="k", app="a"), by="test")).key


async def ask(platform: Platform, model: str, **members: object) -> RawCaller:
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], **members}
    return await RawCaller(platform, await app_key(platform), msgspec.json.encode(body)).start().ended()


def error_of(asked: RawCaller) -> dict[str, Any]:
    return msgspec.json.decode(asked.answer)["error"]


async def entries_of(platform: Platform, model: str) -> set[tuple[str, str | None]]:
    asked = await ask(platform, model)
    assert asked.status == 200, asked.answer
    turn_id = dict(line.split(": ") for line in asked.head.decode().split("\r\n") if line)["x-request-id"]
    told = await platform.ledger.request(turn_id)
    assert told is not None
    return {(entry.target, entry.price_id) for entry in told.entries}


@pytest.mark.parametrize("model", ["tuned", "ft:one:corp::1"])
async def test_a_model_costs_what_its_base_costs_and_is_booked_under_its_own_name(
    platform: Platform, model: str
) -> None:
    assert await entries_of(platform, model) == {(model, "one@1")}


async def test_a_model_with_a_policy_of_its_own_is_governed_by_that(platform: Platform) -> None:
    asked = await ask(platform, "own")
    assert (asked.status, error_of(asked)["code"]) == (403, "approval_required")


async def test_a_retired_model_is_404_with_its_day_and_successor(platform: Platform) -> None:
    asked = await ask(platform, "gone")
    assert asked.status == 404
    assert error_of(asked) == {
        "message": "The model `gone` was retired on 2020-01-01; use `one` instead.",
        "type": "invalid_request_error",
        "param": "model",
        "code": "model_not_found",
    }


async def test_one_that_its_caller_may_not_know_of_is_as_if_it_never_was(platform: Platform) -> None:
    buried, never = await ask(platform, "buried"), await ask(platform, "never")
    assert (buried.status, never.status) == (404, 404)
    assert error_of(buried) == {**error_of(never), "message": error_of(never)["message"].replace("never", "buried")}
    veiled = await ask(platform, "veiled")  # which is hidden, but not from those who may use its base
    assert error_of(veiled)["message"] == "The model `veiled` is retired; use `one` instead."


async def test_an_alias_passes_over_what_is_retired_and_ends_with_the_last(platform: Platform) -> None:
    asked = await ask(platform, "mostly")
    assert asked.status == 200
    assert b"x-penstock-model: tuned\r\n" in asked.head
    assert "to which `graves` leads, was retired on 2020-01-01" in error_of(await ask(platform, "graves"))["message"]


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_of_a_deprecated_model_says_so(platform: Platform, *, stream: bool) -> None:
    asked = await ask(platform, "leaving", stream=stream)
    assert asked.status == 200
    assert b"x-penstock-deprecated: 9999-01-01\r\n" in asked.head
    assert b"x-penstock-successor: two\r\n" in asked.head
    assert b"x-penstock-deprecated" not in (await ask(platform, "tuned", stream=stream)).head


async def test_the_trail_says_why_as_well(platform: Platform) -> None:
    await ask(platform, "leaving")
    [record] = await platform.trail.recent(limit=10, event="turn.admitted")
    assert record.body["why"] == [
        "leaving: a model",
        "leaving is deprecated and retires on 9999-01-01; use `two` instead",
    ]
    assert record.body["policy"]["targets"][0]["judged_as"] == "one"


async def test_the_list_leaves_out_what_is_retired_or_hidden_and_says_what_is_declared(platform: Platform) -> None:
    asked = RawCaller(platform, await app_key(platform), b"", path="/v1/models", method="GET").start()
    rows = {row["id"]: row.get("penstock") for row in msgspec.json.decode((await asked.ended()).answer)["data"]}
    assert rows == {
        "both": None,
        "deep": None,  # its base is hidden from this caller
        "early": {"lifecycle": "preview", "base": "one"},
        "ft:one:corp::1": {"base": "one"},
        "leaving": {"lifecycle": "deprecated", "retires_on": "9999-01-01", "successor": "two", "base": "one"},
        "mixed": None,
        "mostly": None,
        "one": None,
        "tuned": {"base": "one"},
        "two": None,
    }


async def test_a_base_that_is_named_cannot_be_withdrawn(platform: Platform) -> None:
    models = "models: [{name: root, provider: s}, {name: leaf, provider: s, base: root}]"
    await platform.register.apply(platform.register.parse(models), by="test")
    with pytest.raises(InvalidDeclaration, match="model `leaf`: base names `root`, which is no declared model"):
        await platform.register.remove("model", "root", by="test")


class TestTrial:
    """`POST /api/models/{name}/test`, through the edge."""

    async def ask(self, platform: Platform, key: str, name: str) -> RawCaller:
        return await RawCaller(platform, key, b"", path=f"/api/models/{name}/test").start().ended()

    async def test_answers_an_operator_from_the_target_itself(self, platform: Platform) -> None:
        made = await platform.keys.create(NewKey(name="ops", roles=frozenset({Role.PLATFORM_ADMIN})), by="test")
        asked = await self.ask(platform, made.key, "ft:one:corp::1")
        told = msgspec.json.decode(asked.answer)
        assert (asked.status, told["state"], told["price_id"]) == (200, "answered", "one@1")
        assert told["tokens"]["output"] <= 16

    async def test_tells_an_operator_that_it_is_retired(self, platform: Platform) -> None:
        made = await platform.keys.create(NewKey(name="ops", roles=frozenset({Role.PLATFORM_ADMIN})), by="test")
        told = msgspec.json.decode((await self.ask(platform, made.key, "buried")).answer)
        assert told["state"] == "failed"
        assert told["error"]["message"] == "The model `buried` is retired; use `one` instead."

    async def test_is_closed_to_apps(self, platform: Platform) -> None:
        asked = await self.ask(platform, await app_key(platform), "one")
        assert (asked.status, error_of(asked)["code"]) == (403, "permission_denied")
