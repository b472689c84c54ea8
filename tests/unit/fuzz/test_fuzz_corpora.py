"""What a fuzzer once found stays found: every committed input at its target, without a fuzzer."""

from time import monotonic

import pytest

from tests.fuzz import corpora
from tests.fuzz.targets import TARGETS, require_linear

SECONDS_MAX = 20.0  # all of them take one; and what interrupts a test may be caught by what it interrupts


@pytest.mark.timeout(30)
@pytest.mark.parametrize("target", TARGETS)
def test_every_committed_input_keeps_its_targets_promises(target: str) -> None:
    inputs = corpora.read(target)
    assert len(inputs) >= 7
    began = monotonic()
    for data in inputs:
        TARGETS[target].check(data)
    assert monotonic() - began < SECONDS_MAX, "one of them keeps its reader busy"


def test_an_event_parser_takes_no_longer_than_its_bytes_do() -> None:
    for data in corpora.read("sse")[:12]:
        require_linear(data)


def test_no_committed_input_stands_there_twice() -> None:
    for target in TARGETS:
        inputs = corpora.read(target)
        assert len(set(inputs)) == len(inputs), target
