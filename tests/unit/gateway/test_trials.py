"""Trials: a turn like any other but for policy; booked, in the trail, and open to administrators alone."""

from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.asgi import Message
from gateway.control import caller_of, create_control
from gateway.errors import NotFound
from gateway.history import History
from gateway.models_api import routes
from gateway.trials import Report, Trials, Unjudged
from gateway.wiring import Platform
from governance import Allowance, NewKey
from kernel import Caller, Chunk, PlatformError, Role, SystemClock
from router import UpstreamBroken, UpstreamBusy, UpstreamFailed, UpstreamRefused, UpstreamTimeout, UpstreamUnreachable
from tests.fakes.chats import TAIL, WORD, Scripted, chat_with, company


@pytest.fixture
async def platform(tmp_path: Path) -> AsyncIterator[Platform]:
    async with company(tmp_path) as made:
        yield made


async def declare(platform: Platform, text: str) -> None:
    await platform.register.apply(platform.register.parse(text), by="test")
    await platform.feed.catch_up()


async def operator(platform: Platform) -> Caller:
    made = await platform.keys.create(NewKey(name="ops", roles=frozenset({Role.PLATFORM_ADMIN})), by="test")
    return platform.keys.identify(made.key)


def trials_of(platform: Platform, upstreams: Scripted, history: History | None = None) -> Trials:
    snapshot, clock = platform.snapshot, SystemClock()
    return Trials(
        chat_with(platform, upstreams),
        Unjudged(snapshot.rules, snapshot.directory, clock=clock),
        catalogue=snapshot.catalogue,
        history=history or platform.edge.history,
        clock=clock,
    )


async def trial(platform: Platform, name: str, script: Sequence[Chunk | PlatformError | str]) -> Report:
    return await trials_of(platform, Scripted(**{name: script})).run(await operator(platform), name)


async def events(platform: Platform, report: Report) -> list[str]:
    return [record.event for record in await platform.trail.of_turn(report.request_id)]


async def kept_of(platform: Platform, report: Report) -> Mapping[str, Any]:
    """What the trail keeps of the trial beside its turn."""
    [record] = [
        record
        for record in await platform.trail.recent(limit=10, event="model.tested")
        if record.body["turn"] == report.request_id
    ]
    return record.body


async def test_a_trial_reports_what_the_books_say_of_it(platform: Platform) -> None:
    report = await trial(platform, "one", [WORD, TAIL])
    assert (report.state, report.error, report.price_id, report.estimated) == ("answered", None, "one@1", False)
    assert report.tokens == {"input": 5, "output": 7}
    assert report.cost_usd == "0.000019000"
    assert (report.model, report.provider, report.upstream_model) == ("one", "s", "one")
    entries = await platform.ledger.request(report.request_id)
    assert entries is not None
    assert [(entry.kind, entry.target) for entry in entries.entries] == [("hold", "one"), ("post", "one")]
    assert {(entry.app, entry.department, entry.use_case) for entry in entries.entries} == {(None, None, "(trial)")}
    assert platform.ledger.open_holds == 0


async def test_what_the_provider_called_it_comes_from_the_books(platform: Platform) -> None:
    assert (await trial(platform, "one", [WORD, TAIL])).provider_request_id == "up-1"


async def test_a_trial_is_in_the_trail_from_its_hold_to_its_outcome(platform: Platform) -> None:
    report = await trial(platform, "one", [WORD, TAIL])
    assert await events(platform, report) == ["turn.admitted", "turn.ended"]
    admitted, _ = await platform.trail.of_turn(report.request_id)
    assert admitted.body["trial"] is True
    assert admitted.body["policy"] == {"observed": False, "targets": []}
    told = await kept_of(platform, report)
    assert (told["model"], told["state"], told["code"]) == ("one", "answered", None)
    assert told["by"] == admitted.body["key"]


async def test_a_trial_can_be_explained_afterwards_like_any_turn(platform: Platform) -> None:
    caller = await operator(platform)
    report = await trials_of(platform, Scripted(one=[WORD, TAIL])).run(caller, "one")
    told = await platform.edge.history.explain(caller, report.request_id)
    assert (told["outcome"], told["cost_usd"]) == ("answered", report.cost_usd)


@pytest.mark.parametrize("name", ["shut", "secret"])
async def test_no_policy_is_asked_and_nothing_is_hidden_from_an_operator(platform: Platform, name: str) -> None:
    price = f"prices: [{{name: {name}, model: {name}, usd_per_million_tokens: {{input: '1', output: '1'}}}}]"
    await declare(platform, price)
    assert (await trial(platform, name, [WORD, TAIL])).state == "answered"


async def test_no_more_than_sixteen_tokens_are_asked_for(platform: Platform) -> None:
    upstreams = Scripted(one=[WORD, TAIL])
    await trials_of(platform, upstreams).run(await operator(platform), "one")
    assert upstreams.limits == [16]


@pytest.mark.parametrize(
    ("failure", "code", "cure"),
    [
        (UpstreamUnreachable("It is away."), "upstream_unreachable", "base_url"),
        (UpstreamFailed("one", 401), "upstream_error", "penstock credential"),
        (UpstreamBusy("one"), "rate_limit_exceeded", "provider"),
        (UpstreamTimeout("one", "answer", sent=True), "upstream_timeout", "answer_seconds"),
        (UpstreamBroken("It was cut."), "upstream_broken", "dialect"),
        (UpstreamRefused("no such model", code="model_not_found"), "model_not_found", "upstream_model"),
    ],
)
async def test_a_target_that_fails_is_a_report_with_a_cure(platform: Platform, failure, code, cure) -> None:
    report = await trial(platform, "one", [failure])
    assert report.error is not None
    assert (report.state, report.error.code, report.error.message) == ("failed", code, failure.message)
    assert cure in (report.error.cure or "")
    assert await events(platform, report) == ["turn.admitted", "turn.ended"]
    told = await kept_of(platform, report)
    assert told["code"] == code
    assert failure.message not in str(told), "those may be the provider's words"


async def test_a_call_that_may_be_billed_is_booked_though_it_failed(platform: Platform) -> None:
    report = await trial(platform, "one", [WORD, UpstreamBroken("x")])
    assert report.estimated
    assert report.cost_usd != "0.000000000"


async def test_a_model_without_a_price_is_refused_before_anything_is_sent(platform: Platform) -> None:
    upstreams = Scripted(shut=[WORD, TAIL])
    report = await trials_of(platform, upstreams).run(await operator(platform), "shut")
    assert report.error is not None
    assert (report.error.code, upstreams.asked) == ("model_unpriced", [])
    assert "unpriced: true" in (report.error.cure or "")
    assert await events(platform, report) == ["turn.refused"]
    assert (await kept_of(platform, report))["code"] == "model_unpriced"


async def test_what_drains_is_not_tried_and_says_so(platform: Platform) -> None:
    await declare(platform, "models: [{name: one, provider: s, draining: true}]")
    report = await trial(platform, "one", [WORD, TAIL])
    assert report.error is not None
    assert (report.error.code, report.milliseconds) == ("targets_resting", 0.0)
    assert "draining: false" in (report.error.cure or "")


async def test_a_budget_on_the_operators_own_key_holds(platform: Platform) -> None:
    caller, upstreams = await operator(platform), Scripted(one=[WORD, TAIL])
    await declare(platform, f"budgets: [{{name: k, scope: key, of: {caller.key_id}, period: day, limit_usd: '0'}}]")
    report = await trials_of(platform, upstreams).run(caller, "one")
    assert report.error is not None
    assert (report.error.code, upstreams.asked) == ("budget_exhausted", [])


@pytest.mark.parametrize("script", [[WORD, TAIL], [UpstreamBroken("x")]], ids=["whole", "broken"])
async def test_a_keys_only_place_is_given_back_however_a_trial_ended(platform: Platform, script) -> None:
    own = NewKey(name="ops", roles=frozenset({Role.PLATFORM_ADMIN}), limits=Allowance(concurrent=1))
    caller = platform.keys.identify((await platform.keys.create(own, by="test")).key)
    tried = trials_of(platform, Scripted(one=script))
    codes = [report.error and report.error.code for report in [await tried.run(caller, "one") for _ in range(3)]]
    assert "rate_limit_exceeded" not in codes


async def test_a_keys_own_limits_hold_and_say_so(platform: Platform) -> None:
    own = NewKey(name="ops", roles=frozenset({Role.PLATFORM_ADMIN}), limits=Allowance(requests_per_minute=1))
    caller = platform.keys.identify((await platform.keys.create(own, by="test")).key)
    tried = trials_of(platform, Scripted(one=[WORD, TAIL]))
    first, second = await tried.run(caller, "one"), await tried.run(caller, "one")
    assert (first.state, second.state) == ("answered", "failed")
    assert second.error is not None
    assert (second.error.code, second.error.status) == ("rate_limit_exceeded", 429)
    assert await events(platform, second) == []
    assert (await kept_of(platform, second))["code"] == "rate_limit_exceeded"


class Impatient(History):
    """Notes how many holds were open when it was asked."""

    def __init__(self, platform: Platform) -> None:
        super().__init__(platform.ledger, platform.trail)
        self.open_holds = list[int]()

    async def explain(self, caller: Caller, turn_id: str) -> dict[str, Any]:
        self.open_holds.append(self._ledger.open_holds)
        return await super().explain(caller, turn_id)


@pytest.mark.parametrize("script", [[WORD, TAIL], [UpstreamBroken("x")]], ids=["whole", "broken"])
async def test_the_books_are_read_once_they_are_closed(platform: Platform, script) -> None:
    history = Impatient(platform)
    await trials_of(platform, Scripted(one=script), history).run(await operator(platform), "one")
    assert history.open_holds == [0]


@pytest.mark.parametrize(("name", "says"), [("nothing", "no model `nothing`"), ("both", "`both` is an alias")])
async def test_what_is_no_model_is_404_with_the_cure(platform: Platform, name: str, says: str) -> None:
    with pytest.raises(NotFound, match=says):
        await trials_of(platform, Scripted()).run(await operator(platform), name)


async def posted(platform: Platform, caller: Caller, name: str = "one") -> tuple[int, dict[str, Any]]:
    """One `POST /api/models/{name}/test` by a caller whom the edge let in."""
    app = create_control([routes(trials_of(platform, Scripted(one=[WORD, TAIL])), caller_of)])
    sent = list[Message]()

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    path = f"/api/models/{name}/test"
    scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": []}
    await app({**scope, "penstock.caller": caller, "penstock.request_id": "req_1"}, receive, send)
    return sent[0]["status"], msgspec.json.decode(b"".join(message.get("body", b"") for message in sent))


class TestRoute:
    async def test_administrators_get_the_report(self, platform: Platform) -> None:
        status, told = await posted(platform, await operator(platform))
        assert (status, told["state"], told["tokens"]) == (200, "answered", {"input": 5, "output": 7})
        assert told["error"] is None

    @pytest.mark.parametrize("roles", [frozenset(), frozenset({Role.MEMBER, Role.PROMPT_OWNER})])
    async def test_nobody_else_does(self, platform: Platform, roles: frozenset[Role]) -> None:
        status, told = await posted(platform, Caller("k", "k", "d", "a", roles=roles))
        assert (status, told["error"]["code"]) == (403, "permission_denied")

    async def test_a_name_may_hold_slashes_and_colons(self, platform: Platform) -> None:
        status, told = await posted(platform, await operator(platform), "org/ft:gpt:x")
        assert (status, told["error"]["message"]) == (404, "There is no model `org/ft:gpt:x`.")
