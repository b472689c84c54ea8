"""What the content scan raises, what it never does, and that nothing of what it read is in what it says."""

import itertools
import json
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, date, datetime

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from governance import KINDS, Detector, Directory, Findings, Guard
from governance.detectors import DATA_CLASSES
from governance.scanner import CANDIDATES_MAX
from kernel import Caller, DataClass, Document, InvalidDeclaration, ModelRequest

AT = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
HOLDING = {
    "card": "4111 1111 1111 1111",
    "iban": "DE89 3704 0044 0532 0130 00",
    "secret": "sk-abcdEFGH1234ijklMNOP5678",
}
CALLER = Caller("key_1", "k", "sales", "crm", data_class=DataClass.PUBLIC)
_members = msgspec.json.Decoder(dict[str, msgspec.Raw])


def document(kind, name, **body):
    return Document(kind, name, 1, body, "test", AT)


@dataclass
class Office:
    """One guard for all tests, since compiling takes a while, and what is declared around it."""

    at: datetime = AT
    directory: Directory = field(default_factory=lambda: Directory.of([]))

    def __post_init__(self):
        self.guard = Guard(lambda: self.directory, clock=self)
        self.guard.prepare()

    def now(self):
        return self.at

    def declare(self, *documents, **app):
        crm = {"department": "sales", "use_cases": ["chat"]} | app
        known = [document("department", "sales"), document("use_case", "chat", purpose="chat")]
        self.directory = Directory.of([*known, document("app", "crm", **crm), *documents])

    def found(self, text, **members):
        return dict(self.guard.inspect(CALLER, asking(text, **members))[1].counts)


@pytest.fixture(scope="module")
def compiled():
    return Office()


@pytest.fixture
def office(compiled):
    compiled.at = AT
    compiled.declare()
    return compiled


def asking(text, **members):
    body = {"model": "m", "messages": [{"role": "user", "content": text}], **members}
    return ModelRequest("m", _members.decode(msgspec.json.encode(body)))


@pytest.mark.parametrize("name", HOLDING)
def test_finding_raises_to_the_detectors_class_and_says_so(office, name):
    caller, findings = office.guard.inspect(CALLER, asking(f"here: {HOLDING[name]}."))
    expected = DATA_CLASSES[Detector(name)]
    assert caller == CALLER.raised(expected)
    assert findings == Findings({name: 1}, expected)
    assert findings.as_json() == {"found": {name: 1}, "raised_to": expected.label}


def test_the_highest_class_of_all_findings_counts(office):
    caller, findings = office.guard.inspect(CALLER, asking(" and ".join([*HOLDING.values(), HOLDING["card"]])))
    assert caller.data_class is DataClass.RESTRICTED
    assert findings.counts == {"card": 2, "iban": 1, "secret": 1}


def test_request_that_holds_nothing_changes_nothing(office):
    caller, findings = office.guard.inspect(CALLER, asking("4111 is no card, DE89 no IBAN, sk-learn no key."))
    assert caller is CALLER
    assert findings.as_json() == {"found": {}, "raised_to": None}


@given(
    holding=st.lists(st.sampled_from(sorted(HOLDING)), max_size=4),
    own=st.sampled_from(DataClass),
    declared=st.dictionaries(st.sampled_from(Detector), st.sampled_from([None, *DataClass])),
    observed=st.booleans(),
)
def test_class_never_falls_and_rises_to_exactly_what_is_declared(compiled, holding, own, declared, observed):
    rows = [document("detector", n, data_class=None if v is None else v.label) for n, v in declared.items()]
    compiled.declare(*rows, observe={"scan": "2026-11-20"} if observed else {})
    compiled.at = AT
    before = Caller("key_1", "k", "sales", "crm", data_class=own)
    after, findings = compiled.guard.inspect(before, asking(" ".join(HOLDING[name] for name in holding)))
    classes = {**DATA_CLASSES, **declared}
    asked = max([classes[Detector(n)] for n in holding if classes[Detector(n)] is not None], default=own)
    assert after.data_class is (own if observed else max(own, asked))
    assert findings.raised_to is (asked if asked > own else None)
    assert findings.observed is (observed and asked > own)
    assert findings.counts == {n: holding.count(n) for n in holding if classes[Detector(n)] is not None}


def test_observed_scan_is_recorded_and_raises_from_the_day_after(office):
    office.declare(observe={"scan": date(2026, 12, 31)})
    office.at = datetime(2026, 12, 31, 23, 59, tzinfo=UTC)
    caller, findings = office.guard.inspect(CALLER, asking(HOLDING["card"]))
    assert caller is CALLER
    assert findings.as_json() == {"found": {"card": 1}, "raised_to": "confidential", "observed": True}
    office.at = datetime(2027, 1, 1, tzinfo=UTC)
    caller, findings = office.guard.inspect(CALLER, asking(HOLDING["card"]))
    assert (caller.data_class, findings.observed) == (DataClass.CONFIDENTIAL, False)


def test_another_apps_observation_is_not_ones_own(office):
    office.declare(observe={"scan": date(2026, 12, 31)})
    stranger = Caller("key_2", "k", "sales", "other", data_class=DataClass.PUBLIC)
    assert office.guard.inspect(stranger, asking(HOLDING["card"]))[0].data_class is DataClass.CONFIDENTIAL


@given(
    before=st.text(), name=st.sampled_from(sorted(HOLDING)), member=st.sampled_from(["tools", "user", "x", "metadata"])
)
def test_nothing_of_the_content_is_in_what_is_said(compiled, before, name, member):
    compiled.declare()
    text = f"{before} {HOLDING[name]} "
    findings = compiled.guard.inspect(CALLER, asking(text, **{member: [text]}))[1]
    said = repr(findings) + str(findings) + json.dumps(findings.as_json())
    words = {"Findings", "counts", "mappingproxy", "raised_to", "DataClass", "observed", "found", "None", "False"}
    words |= {*HOLDING, "CONFIDENTIAL", "RESTRICTED", "confidential", "restricted", "null"}
    assert set(re.findall(r"[^\W\d]\w*", said)) <= words
    assert all(len(number) == 1 for number in re.findall(r"\d+", said))


def test_findings_cannot_be_changed(office):
    findings = office.guard.inspect(CALLER, asking(HOLDING["card"]))[1]
    with pytest.raises(TypeError):
        findings.counts["card"] = 0


@pytest.mark.parametrize("member", ["tools", "response_format", "user", "metadata", "seed", "unknown"])
def test_every_member_and_the_name_of_every_member_is_looked_at(office, member):
    assert office.found("", **{member: {"deep": [{"in": HOLDING["card"]}]}}) == {"card": 1}
    assert office.found("", **{member: 4111111111111111}) == {"card": 1}
    assert office.found("", **{member: {"4111-1111-1111-1111": None}}) == {"card": 1}
    assert office.found("", **{HOLDING["iban"]: member}) == {"iban": 1}


def test_two_members_make_no_number_together(office):
    body = '{"model":"m","a":41111111,"b":11111111,"c":"4111 1111","d":"1111 1111"}'
    assert office.guard.inspect(CALLER, ModelRequest("m", _members.decode(body)))[1] == Findings()


def test_what_comes_after_too_many_candidates_counts_as_what_it_looks_like(office):
    crowd = "\n".join(f"4{number:012}" for number in range(CANDIDATES_MAX + 100))
    assert set(office.found(crowd)) == {"card"}
    found = office.found(f"{crowd} {HOLDING['iban']} {HOLDING['secret']}")
    assert (set(found), found["iban"], found["secret"]) == ({"card", "iban", "secret"}, 1, 1)
    bad = "\n".join(["4111111111111112"] * (CANDIDATES_MAX - 1))
    assert office.found(bad) == {}
    assert office.found(bad + "\n4111111111111112\n4111111111111112") == {"card": 1}


def test_escape_after_too_many_candidates_is_still_resolved(office):
    crowd = "\n".join(["4111111111111112"] * CANDIDATES_MAX)
    body = json.dumps({"messages": crowd + " HIDDEN"}).replace("HIDDEN", "\\u0034111111111111111")
    assert office.guard.inspect(CALLER, ModelRequest("m", _members.decode(body)))[1].counts == {"card": 1}


def test_many_harmless_escapes_hide_nothing(office):
    crowd = "\\u003cb\\u003e" * CANDIDATES_MAX
    body = f'{{"messages":"{crowd} {HOLDING["card"]} 4111111111111112"}}'
    assert office.guard.inspect(CALLER, ModelRequest("m", _members.decode(body)))[1].counts == {"card": 1}


def test_long_texts_are_looked_at_like_short_ones(office):
    filler = "word " * 300_000
    assert office.found(f"{filler}{HOLDING['card']} {filler}") == {"card": 1}


def test_long_texts_may_be_looked_through_in_threads(office):
    text = f"{'word ' * 300_000}{HOLDING['card']} {'word ' * 2_000_000}"
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(office.found, [text] * 8)) == [{"card": 1}] * 8


def test_detectors_are_declared_by_their_names():
    assert Directory.of([]).detectors == DATA_CLASSES
    directory = Directory.of(
        [document("detector", "card", data_class=None), document("detector", "iban", data_class="public")]
    )
    assert directory.detectors == {
        Detector.CARD: None,
        Detector.IBAN: DataClass.PUBLIC,
        Detector.SECRET: DataClass.RESTRICTED,
    }
    with pytest.raises(InvalidDeclaration, match="detector 'cards' is unknown; the detectors are card, iban, secret"):
        Directory.of([document("detector", "cards", data_class="internal")])
    with pytest.raises(ValidationError):
        KINDS["detector"].model_validate({})


def test_order_of_findings_is_the_detectors_own(office):
    for order in itertools.permutations(HOLDING.values()):
        assert list(office.found(" ".join(order))) == ["card", "iban", "secret"]
