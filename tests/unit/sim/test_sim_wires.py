"""Every wire tells the same script: its own usage, read here from its own words, is the invoice's by component."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.sim.answer import Answer
from tests.sim.connection import Request
from tests.sim.invoice import Finish, Tokens
from tests.sim.provider import WIRES
from tests.sim.refusal import Refusal
from tests.sim.subjects import SUBJECTS, Subject, completion_body, gemini_body
from tests.sim.tokens import AUDIO_TOKENS, IMAGE_TOKENS

subjects = pytest.mark.parametrize("subject", SUBJECTS.values(), ids=SUBJECTS)
small = st.integers(0, 40)
scripts = st.fixed_dictionaries(
    {
        "tokens": small,
        "cached": small,
        "cache_write": small,
        "cache_write_1h": small,
        "reasoning": small,
        "audio_output": small,
        "usage": st.sampled_from(["normal", "duplicate", "cumulative", "zero"]),
    }
)


def ask(subject: Subject, text: str, **how: Any) -> Answer:
    path, body = subject.request(text, **how)
    path, _, query = path.partition("?")
    request = Request("POST", path, dict(each.split("=") for each in query.split("&") if each), subject.headers, body)
    wire = next(wire for wire in WIRES if wire.speaks(request))
    wire.admit(request, "sim-key")
    return wire.answer(request, "1", 1)


def scripted(**script: Any) -> str:
    return "sim: " + json.dumps(script)


def events_of(answer: Answer) -> list[dict[str, Any]]:
    return [json.loads(event.data) for event in answer.events()]


@subjects
@given(script=scripts, ceiling=st.integers(1, 60))
def test_the_usage_told_is_the_usage_billed_component_by_component(subject, script, ceiling):
    whole = ask(subject, scripted(**script), ceiling=ceiling)
    billed = whole.tokens(whole.total)
    assert subject.tokens(subject.usage(json.loads(whole.body()))) == billed
    streamed = ask(subject, scripted(**script), ceiling=ceiling, stream=True)
    assert subject.tokens(subject.stream_usage(events_of(streamed))) == billed == streamed.tokens(streamed.total)


@given(script=scripts, ceiling=st.integers(1, 60))
def test_no_answer_is_longer_than_its_ceiling_on_any_wire(script, ceiling):
    for subject in SUBJECTS.values():
        answer = ask(subject, scripted(**script), ceiling=ceiling)
        assert answer.tokens(answer.total).completion <= ceiling


def test_all_wires_bill_the_same_text_alike():
    billed = {}
    for name, subject in SUBJECTS.items():
        answer = ask(subject, scripted(tokens=7, reasoning=3, cached=4, cache_write=2))
        tokens = answer.tokens(answer.total)
        billed[name] = (tokens.prompt - tokens.image_input - tokens.audio_input, tokens.completion)
    # An image that the wire tells nothing of is plain input there.
    assert billed["anthropic"][0] - IMAGE_TOKENS == billed["chat"][0]
    assert billed["chat"] == billed["azure"] == billed["gemini"] == billed["completions"]
    assert {completion for _, completion in billed.values()} == {10}


def test_images_and_recordings_are_told_where_the_wire_can():
    told = {name: ask(subject, "hello").tokens(0) for name, subject in SUBJECTS.items()}
    for name in ("chat", "azure", "gemini"):
        assert (told[name].image_input, told[name].audio_input) == (IMAGE_TOKENS, AUDIO_TOKENS)
    assert told["anthropic"] == Tokens(input=2 + IMAGE_TOKENS)


def test_cache_writes_are_told_where_the_wire_can():
    told = {
        name: ask(subject, scripted(cached=3, cache_write=2, cache_write_1h=4)).tokens(0)
        for name, subject in SUBJECTS.items()
    }
    written = {name: (tokens.cached_input, tokens.cache_write, tokens.cache_write_1h) for name, tokens in told.items()}
    assert written == {
        "chat": (3, 2, 0),
        "completions": (3, 2, 0),
        "azure": (3, 2, 0),
        "anthropic": (3, 2, 4),
        "gemini": (3, 0, 0),
    }


@subjects
def test_a_stream_says_how_much_was_generated_and_ends_at_all_of_it(subject):
    answer = ask(subject, scripted(tokens=5), stream=True)
    generated = [event.generated for event in answer.events()]
    assert generated == sorted(generated)
    assert (generated[0], generated[-1]) == (0, 5) or subject.body in {completion_body, gemini_body}
    assert generated[-1] == answer.total == 5


@subjects
def test_missing_usage_is_told_nowhere(subject):
    whole, streamed = (ask(subject, scripted(usage="missing"), stream=stream) for stream in (False, True))
    for said in (whole.body(), *(event.data for event in streamed.events())):
        assert b'"usage":{' not in said
        assert b'"usageMetadata"' not in said


@subjects
def test_a_huge_event_costs_no_token_more(subject):
    sizes = [len(event.data) for event in ask(subject, scripted(tokens=2, event_bytes=50_000), stream=True).events()]
    assert sizes[0] > 50_000 > max(sizes[1:])


@subjects
def test_the_ceiling_ends_the_answer(subject):
    answer = ask(subject, scripted(tokens=50), ceiling=20)
    assert (answer.total, answer.finish) == (20, Finish.LENGTH)
    assert any(reason in answer.body() for reason in (b'"length"', b'"max_tokens"', b'"MAX_TOKENS"'))


@subjects
def test_a_script_with_a_slip_is_refused(subject):
    with pytest.raises(Refusal) as caught:
        ask(subject, "sim: {}}")
    assert caught.value.status == 400


@subjects
def test_no_wire_takes_the_key_of_another(subject):
    request = Request("POST", subject.path.partition("?")[0], {}, subject.headers)
    wire = next(wire for wire in WIRES if wire.speaks(request))
    wire.admit(request, "sim-key")
    headers = {name: value for name, value in subject.headers.items() if name == "anthropic-version"}
    for wrong in (headers, headers | dict.fromkeys(subject.headers, "wrong")):
        with pytest.raises(Refusal) as caught:
            wire.admit(Request("POST", subject.path, {}, wrong), "sim-key")
        assert caught.value.status in {400, 401, 403}
