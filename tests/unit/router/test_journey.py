"""A request under way: when it is late, and what it means that it failed."""

import asyncio
import ssl

import pytest

from router import UpstreamBroken, UpstreamUnreachable
from router.dispatch import Dispatch
from router.journey import Journey
from tests.fakes.routing import TARGET, Sent, catalogue, chat


def journey(sent: Sent, **limits: float) -> Journey:
    provider = catalogue(dialect="openai", base_url="http://x.test", **limits).provider("p")
    return Journey(Dispatch(provider, "sk-secret", TARGET, chat(), sent.call(), "PRIVATE KEY"))


def refusal() -> ssl.SSLError:
    error = ssl.SSLError(1, "x")
    error.reason = "TLSV13_ALERT_CERTIFICATE_REQUIRED"
    return error


async def test_departs_once():
    sent = Sent()
    under_way = journey(sent)
    for _ in range(3):
        under_way.depart()
    assert sent.times == 1


@pytest.mark.parametrize(
    ("departed", "cause", "kind"),
    [
        (False, None, UpstreamUnreachable),
        (False, ConnectionResetError(), UpstreamUnreachable),
        (True, None, UpstreamBroken),
        (True, ConnectionResetError(), UpstreamBroken),
        (True, ssl.SSLError(1, "decryption failed"), UpstreamBroken),
        (True, refusal(), UpstreamUnreachable),
    ],
)
async def test_a_failure_may_be_billed_once_it_departed_unless_our_certificate_was_refused(departed, cause, kind):
    under_way = journey(Sent())
    if departed:
        under_way.depart()
    error = under_way.broken(cause)
    assert type(error) is kind
    assert error.unbilled == (kind is UpstreamUnreachable)


@pytest.mark.parametrize(
    ("limits", "progressed", "phase"),
    [
        ({"answer_seconds": 1}, False, "answer"),
        ({"answer_seconds": 9, "event_seconds": 1}, True, "event"),
        ({"answer_seconds": 9, "total_seconds": 1}, False, "total"),
        ({"event_seconds": 9, "total_seconds": 1}, True, "total"),
    ],
)
async def test_names_the_limit_that_ends_the_present_phase(limits, progressed, phase):
    under_way = journey(Sent(), **limits)
    if progressed:
        under_way.progress()
    assert under_way.deadline - asyncio.get_running_loop().time() == pytest.approx(1, abs=0.1)
    assert f"`{phase}`" in under_way.late().message
    assert under_way.late().unbilled


async def test_what_is_secret_is_not_shown():
    shown = repr(journey(Sent()).dispatch)
    assert "sk-secret" not in shown
    assert "PRIVATE" not in shown
