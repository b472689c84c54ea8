"""Whatever is valid is found however it is written, and what is not valid is not found, by references of our own."""

import base64
import json
import random
import string
import sys

import msgspec
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from governance import Directory, Guard
from kernel import Caller, ModelRequest, SystemClock

CALLER = Caller("key_1", "k", "sales", "crm")
GAPS = ["", " ", "-", "\u00a0", "\u202f"]
# A few issuers' beginnings with a length that they issue.
ISSUED = [("4", 13), ("4", 16), ("4", 19), ("51", 16), ("55", 16), ("2221", 16), ("2720", 16), ("34", 15), ("37", 15)]
ISSUED += [("36", 14), ("300", 14), ("38", 16), ("3528", 16), ("3589", 19), ("1800", 15), ("2131", 15), ("2200", 16)]
ISSUED += [("6011", 16), ("65", 19), ("62", 17), ("5018", 18), ("6759", 19), ("2204", 19)]
GROUPINGS = {13: [(4, 4, 4, 1), (4, 3, 3, 3)], 14: [(4, 6, 4), (4, 4, 4, 2)], 15: [(4, 6, 5), (4, 4, 4, 3)]}
GROUPINGS |= {16: [(4, 4, 4, 4)], 17: [(4, 4, 4, 4, 1)], 18: [(4, 4, 4, 4, 2)], 19: [(4, 4, 4, 4, 3), (6, 13)]}
# Bank account forms: digits n, capitals a, either c.
IBANS = {"DE": "n18", "GB": "a4n14", "FR": "n10c11n2", "NL": "a4n10", "NO": "n11", "MT": "a4n5c18", "IT": "a1n10c12"}
IBANS |= {"CH": "n5c12", "PL": "n24", "BE": "n12", "LC": "a4c24", "RU": "n14c15"}
SIGNS = {"n": string.digits, "a": string.ascii_uppercase, "c": string.digits + string.ascii_uppercase}


def luhn(digits):
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 + place % 2)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def card(draw, prefix, length):
    body = prefix + "".join(draw.choices(string.digits, k=length - 1 - len(prefix)))
    return next(body + last for last in string.digits if luhn(body + last))


def grouped(draw, number, sizes, gaps):
    parts, at = [], 0
    for size in sizes:
        parts.append(number[at : at + size])
        at += size
    return "".join(part + (draw.choice(gaps) if part is not parts[-1] else "") for part in parts)


def written_card(draw):
    prefix, length = draw.choice(ISSUED)
    number = card(draw, prefix, length)
    if prefix == "1800" or draw.random() < 0.3:
        return number
    return grouped(draw, number, draw.choice(GROUPINGS[length]), GAPS[1:])


def iban(draw, country):
    form = IBANS[country]
    parts = form.replace("a", " a").replace("n", " n").replace("c", " c").split()
    account = "".join("".join(draw.choices(SIGNS[part[0]], k=int(part[1:]))) for part in parts)
    rest = int("".join(str(int(sign, 36)) for sign in f"{account}{country}00")) % 97
    return f"{country}{98 - rest:02}{account}"


def written_iban(draw):
    number = iban(draw, draw.choice(sorted(IBANS)))
    gaps = [draw.choice(GAPS)] if draw.random() < 0.8 else GAPS
    return grouped(draw, number, [4] * 9, gaps)


def signs(draw, count, of=string.ascii_letters + string.digits):
    return "".join(draw.choices(of, k=count - 3)) + "aB3"


def token(draw):
    def part(claims):
        return base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=").decode()

    return ".".join([part({"alg": "HS256", "typ": "JWT"}), part({"sub": signs(draw, 9)}), signs(draw, 43)])


def private_key(draw, kind="", headers=""):
    lines = "\n".join("".join(draw.choices(string.ascii_letters + string.digits + "+/", k=64)) for _ in range(6))
    return f"-----BEGIN {kind}PRIVATE KEY-----\n{headers}{lines}\n-----END {kind}PRIVATE KEY-----"


URL = string.ascii_letters + string.digits + "-_"
SECRETS = {
    "openai": lambda draw: "sk-" + signs(draw, 48),
    "openai project": lambda draw: "sk-proj-" + signs(draw, 74, URL) + "T3BlbkFJ" + signs(draw, 74, URL),
    "anthropic": lambda draw: "sk-ant-api03-" + signs(draw, 95, URL),
    "hex": lambda draw: "sk-or-v1-" + "".join(draw.choices("0123456789abcdef", k=60)) + "0a1b",
    "our own": lambda draw: "pk-" + signs(draw, 43, URL),
    "aws": lambda draw: draw.choice(["AKIA", "ASIA"]) + "".join(draw.choices(string.ascii_uppercase + "234567", k=16)),
    "github": lambda draw: draw.choice(["ghp_", "gho_", "ghs_"]) + signs(draw, 36),
    "github fine-grained": lambda draw: "github_pat_" + signs(draw, 22) + "_" + signs(draw, 59),
    "slack": lambda draw: f"xox{draw.choice('bpas')}-{draw.randrange(10**11, 10**12)}-{signs(draw, 24)}",
    "google": lambda draw: "AIza" + signs(draw, 35, URL),
    "stripe": lambda draw: draw.choice(["sk_live_", "rk_live_"]) + signs(draw, 24),
    "token": token,
    "pkcs8": private_key,
    "pkcs1": lambda draw: private_key(draw, "RSA ", "Proc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00FF\n\n"),
}


@pytest.fixture(scope="module")
def guard():
    directory = Directory.of([])
    made = Guard(lambda: directory, clock=SystemClock())
    made.prepare()
    return made


def seen(guard, body):
    """What is found in these bytes of JSON, sent as messages."""
    return dict(guard.inspect(CALLER, ModelRequest("m", {"messages": msgspec.Raw(body)}))[1].counts)


def writings(text, draw):
    """The text as JSON in all the ways in which encoders write it, and in one that only an evader would."""
    plain = json.dumps([{"content": text}], ensure_ascii=False)
    yield plain
    yield json.dumps([{"content": text}])
    yield json.dumps([{"arguments": json.dumps({"content": text})}], ensure_ascii=False)
    yield json.dumps([{"arguments": json.dumps({"content": text})}])
    yield plain.replace("/", "\\/").replace("<", "\\u003c")
    if "\\" not in text and '"' not in text and text.isprintable():
        odd = "".join(f"\\u{ord(each):04{draw.choice('xX')}}" if draw.random() < 0.5 else each for each in text)
        yield f'[{{"content":"{odd if all(ord(each) < 65_536 for each in text) else text}"}}]'


texts = st.text(st.characters(codec="utf-8"), max_size=30)
draws = st.randoms(use_true_random=False)


def surrounded(before, thing, after):
    """The thing within other text, where it is neither part of a word nor of a decimal number."""
    assume(not (before[-1:].isascii() and before[-1:].isalnum()))
    assume(not (before[-1:] == "." and before[-2:-1].isdigit()))
    assume(not (after[:1].isascii() and after[:1].isalnum()))
    return before + thing + after


@given(before=texts, draw=draws, after=texts)
@example(before="Kartennr.", draw=random.Random(0), after=", 12/27 123")
@example(before="号", draw=random.Random(1), after="号")
@example(before="\n", draw=random.Random(2), after="\\")
def test_every_valid_card_is_found_in_any_grouping_in_any_text_and_writing(guard, before, draw, after):
    for body in writings(surrounded(before, written_card(draw), after), draw):
        assert "card" in seen(guard, body), body


@given(before=texts, draw=draws, after=texts, small=st.booleans())
def test_every_valid_iban_is_found_in_any_grouping_in_any_text_and_writing(guard, before, draw, after, small):
    number = iban(draw, draw.choice(["DE", "NO", "GB", "NL", "PL", "BE"])).lower() if small else written_iban(draw)
    assume(not after[:1] or after[0] not in " -\u00a0\u202f")
    for body in writings(surrounded(before, number, after), draw):
        assert "iban" in seen(guard, body), body


@given(before=texts, kind=st.sampled_from(sorted(SECRETS)), draw=draws, after=texts)
def test_every_kind_of_secret_is_found_in_any_text_and_writing(guard, before, kind, draw, after):
    for body in writings(surrounded(before, SECRETS[kind](draw), after), draw):
        assert "secret" in seen(guard, body), body


@pytest.mark.parametrize(
    "text",
    [
        "4111\n1111\n1111\n1111",
        "4111  1111  1111  1111",
        "4111111111111112",
        "a4111111111111111",
        "4111111111111111a",
        "0.4111111111111111",
        "44111111111111111111111",
        "7992739871300000",
        "DE88 3704 0044 0532 0130 00",
        "DE89 3704 0044 0532 0130 0",
        "XX89 3704 0044 0532 0130 00",
        "ADE89370400440532013000",
        "De89370400440532013000",
        "task-management-improvement-plan-2024-for-everyone",
        "sk-learn-tutorial-for-the-very-beginning-in-2024",
        "pk-this-is-a-long-name-with-hyphens-but-no-key-at-all",
        "XAKIAIOSFODNN7EXAMPLE",
        "if line.startswith('-----BEGIN PRIVATE KEY-----'):",
        "-----BEGIN PUBLIC KEY-----\nMIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEA",
        "xoxo-hugs-and-kisses-to-everybody",
        "eyJhbGciOiJIUzI1NiJ9 eyJzdWIiOiIxMjM0In0 nothing",
        "550e8400-4111-4111-8111-446655440000",
    ],
)
def test_what_only_resembles_is_not_found(guard, text):
    for body in (json.dumps([text]), json.dumps([text], ensure_ascii=False), json.dumps([json.dumps([text])])):
        assert seen(guard, body) == {}, body


def test_ten_thousand_cards_are_found_and_random_digits_only_where_issuer_and_check_digit_hold(guard):
    draw = random.Random(20_261_120)
    for _ in range(10_000):
        assert "card" in seen(guard, json.dumps([written_card(draw)]))
    found = 0
    for _ in range(10_000):
        number = "".join(draw.choices(string.digits, k=draw.randint(13, 19)))
        if seen(guard, json.dumps([number])).get("card"):
            assert luhn(number)
            found += 1
    # One in ten has the check digit, and of those three in ten an issuer's beginning and length.
    assert found < 10_000 * 0.1 * 0.3


def test_ten_thousand_ibans_are_found_and_none_with_two_digits_swapped(guard):
    draw = random.Random(20_261_121)
    for _ in range(10_000):
        number = iban(draw, draw.choice(sorted(IBANS)))
        assert seen(guard, json.dumps([number])).get("iban") == 1
        at = draw.choice([at for at in range(3, len(number) - 1) if number[at : at + 2].isdigit()] or [2])
        swapped = number[:at] + number[at + 1] + number[at] + number[at + 2 :]
        if swapped != number:
            assert "iban" not in seen(guard, json.dumps([swapped]))


def test_labelled_sentences(guard, datasets, record_property):
    told, right, wrong = {"card": 0, "iban": 0}, {"card": 0, "iban": 0}, {"card": 0, "iban": 0}
    for line in (datasets / "pii-presidio" / "synth_v2.jsonl").read_text().splitlines():
        sentence = json.loads(line)
        labels = [span["type"] for span in sentence["spans"]]
        counts = seen(guard, json.dumps([sentence["text"]]))
        assert "secret" not in counts
        for name, label in (("card", "CREDIT_CARD"), ("iban", "IBAN_CODE")):
            told[name] += labels.count(label)
            right[name] += min(labels.count(label), counts.get(name, 0))
            wrong[name] += max(0, counts.get(name, 0) - labels.count(label))
    sys.stderr.write(f"labelled {told}, found {right}, found beside {wrong}\n")
    # The labels have cards of twelve digits and of ranges that nobody issues; those are not looked for.
    assert wrong == {"card": 0, "iban": 0}
    assert right["iban"] == told["iban"]
    assert right["card"] >= 0.85 * told["card"]
