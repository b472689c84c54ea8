"""What cards, IBANs and secrets look like in the bytes of a request, and whether something that looks so is one.

Expressions run on JSON as it came, so they know its escapes. A detector says what is there, never what follows from it.
"""

import codecs
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from types import MappingProxyType

from kernel import DataClass


class Detector(StrEnum):
    """What is looked for."""

    CARD = "card"
    IBAN = "iban"
    SECRET = "secret"  # noqa: S105 - a word, not a password


# What each raises a request to, unless declared otherwise.
DATA_CLASSES: Mapping[Detector, DataClass] = MappingProxyType(
    {
        Detector.CARD: DataClass.CONFIDENTIAL,
        Detector.IBAN: DataClass.CONFIDENTIAL,
        Detector.SECRET: DataClass.RESTRICTED,
    }
)


@dataclass(frozen=True, slots=True)
class Expression:
    """A form that something found by `detector` has. holds: whether a text's match at (start, end) is such a thing."""

    detector: Detector
    pattern: bytes
    holds: Callable[[bytes, int, int], bool]


# Something new begins: not within a word, nor in a number (a dot after a digit is a decimal point), but behind an
# escape of JSON's, whose last sign is a letter or a digit.
_LEFT = rb"(?:\\u[0-9A-Fa-f]{4}\.?|\\[bfnrt]|[^0-9]\.|[^0-9A-Za-z.])"
_LEFT_BYTES_MAX = 7
_BEGIN = re.compile(_LEFT + rb"\Z")
_RIGHT = rb"[^0-9A-Za-z]"
# Between groups: a space, a hyphen, a no-break space, a narrow one. More alternatives made the scan ten times slower.
_GAP = rb"(?:[ -]|\xc2\xa0|\xe2\x80\xaf)"
_GAP_BYTES = b" -\xc2\xa0\xe2\x80\xaf"

# Escapes that a look at the bytes as they came would miss: of letters, digits, marks and the spaces above. Honest
# encoders write few of them (< and > for HTML's sake); all others may stay, because _LEFT knows them.
ESCAPE = rb"\\u(?:00(?:[2-7]|[aA]0)|202[fF])"
_SLICE_BYTES = 65_536
_NESTING_MAX = 4


def unescaped(text: bytes) -> bytes:
    r"""The text with a character for every \uXXXX, JSON within JSON included; the time depends on the size alone."""
    for _ in range(_NESTING_MAX):
        if b"\\\\u" not in text:
            break
        text = text.replace(b"\\\\", b"\\")
    text = text.replace(b"\xc2\xa0", b" ").replace(b"\xe2\x80\xaf", b" ")  # this codec takes bytes for Latin-1
    decoder = codecs.getincrementaldecoder("raw_unicode_escape")("replace")
    # In slices, because other threads wait while one is decoded.
    slices = (text[at : at + _SLICE_BYTES] for at in range(0, len(text), _SLICE_BYTES))
    return b"".join([decoder.decode(each).encode("utf-8", "surrogatepass") for each in slices])


# As cards are written: in one piece, in fours, as American Express and Diners print them, in six and thirteen, in
# four and threes.
_GROUPINGS = (
    rb"(?:[2-6][0-9]{12,18}|1800[0-9]{11})",
    rb"[2-6][0-9]{3}(?:%b[0-9]{4}){2}%b[0-9]{1,4}",
    rb"[2-6][0-9]{3}(?:%b[0-9]{4}){3}%b[0-9]{1,3}",
    rb"[2-6][0-9]{3}%b[0-9]{6}%b[0-9]{4,5}",
    rb"[2-6][0-9]{5}%b[0-9]{13}",
    rb"[2-6][0-9]{3}(?:%b[0-9]{3}){3}",
)
_CARDS = tuple(_LEFT + each.replace(b"%b", _GAP) + _RIGHT for each in _GROUPINGS)
_CARD_BEGIN = re.compile(_LEFT + b"(?=[1-6])")
# The issuers' ranges and lengths, as they publish them: Visa, Mastercard, Mir, American Express, Diners, JCB; 5 and 6
# are Maestro's, UnionPay's, Discover's and RuPay's.
_ISSUED = re.compile(
    rb"4(?:[0-9]{12}|[0-9]{15}|[0-9]{18})"
    rb"|(?:5[1-5][0-9]{2}|222[1-9]|22[3-9][0-9]|2[3-6][0-9]{2}|27[01][0-9]|2720)[0-9]{12}"
    rb"|220[0-4][0-9]{12,15}"
    rb"|3[47][0-9]{13}"
    rb"|3(?:0[0-5]|[689][0-9])[0-9]{11,16}"
    rb"|35(?:2[89]|[3-8][0-9])[0-9]{12,15}|(?:1800|2131)[0-9]{11}"
    rb"|(?:5[0678]|6[0-9])[0-9]{14,17}"
)


def _is_card(text: bytes, start: int, end: int) -> bool:
    begin = _CARD_BEGIN.match(text, start)
    assert begin is not None, "both engines read the same expressions"
    digits = text[begin.end() : end - 1].translate(None, _GAP_BYTES)
    return _ISSUED.fullmatch(digits) is not None and _luhn(digits)


_DOUBLED = bytes.maketrans(b"0123456789", b"0246813579")


def _luhn(digits: bytes) -> bool:
    """Whether the last digit checks the others, as ISO/IEC 7812-1 has it."""
    return (sum(digits[-1::-2]) + sum(digits[-2::-2].translate(_DOUBLED)) - 48 * len(digits)) % 10 == 0


# The IBAN registry: countries by the length of theirs.
_COUNTRIES: Mapping[int, str] = MappingProxyType(
    {
        15: "NO",
        16: "BE",
        18: "DK FI FK FO GL NL SD",
        19: "MK SI",
        20: "AT BA EE KZ LT LU MN XK",
        21: "CH HR LI LV",
        22: "BG BH CR DE GB GE IE ME RS VA",
        23: "AE GI IL IQ OM SO TL",
        24: "AD CZ ES MD PK RO SA SE SK TN VG",
        25: "LY PT ST",
        26: "IS TR",
        27: "BI DJ FR GR IT MC MR SM",
        28: "AL AZ BY CY DO GT HN HU LB NI PL SV",
        29: "BR EG PS QA UA",
        30: "JO KW MU YE",
        31: "MT SC",
        32: "LC",
        33: "RU",
    }
)
_IBAN_LENGTHS: Mapping[bytes, int] = MappingProxyType(
    {country.encode(): length for length, countries in _COUNTRIES.items() for country in countries.split()}
)
# In capitals, as the standard has them; in small letters only where digits follow, perhaps behind a bank's four
# letters: anything looser finds hex.
_IBANS = (
    _LEFT + b"[A-Z]{2}[0-9]{2}(?:%b?[0-9A-Z]){11}".replace(b"%b", _GAP),
    _LEFT + b"[a-z]{2}[0-9]{2}(?:(?:%b?[0-9]){11}|%b?[a-z]{4}(?:%b?[0-9]){10})".replace(b"%b", _GAP),
)
_IBAN_BEGIN = re.compile(_LEFT + b"(?=([A-Za-z]{2})[0-9]{2})")


def _is_iban(text: bytes, start: int, _end: int) -> bool:
    begin = _IBAN_BEGIN.match(text, start)
    assert begin is not None, "both engines read the same expressions"
    length = _IBAN_LENGTHS.get(begin[1].upper())
    form = _iban_form(length).match(text, begin.end()) if length else None
    return form is not None and _mod97(form[0].translate(None, _GAP_BYTES))


@cache
def _iban_form(length: int) -> re.Pattern[bytes]:
    return re.compile(rb"[A-Za-z]{2}[0-9]{2}(?:%b?[0-9A-Za-z]){%d}(?![0-9A-Za-z])" % (_GAP, length - 4))


def _mod97(iban: bytes) -> bool:
    """Whether the check digits are right, as ISO 7064 has it; nobody mixes capitals and small letters."""
    one_case = iban.isupper() or iban.islower()
    return one_case and int("".join(str(int(chr(sign), 36)) for sign in iban[4:] + iban[:4])) % 97 == 1


# Random signs and no name with hyphens: sixteen in one piece with letters and digits, or many in both cases.
_PIECE = rb"(?:[A-Za-z0-9_-]{0,99}[_-])?(?=[A-Za-z]{0,99}[0-9])(?=[0-9]{0,99}[A-Za-z])[A-Za-z0-9]{16}"
_MIXED = rb"(?=[a-z0-9_-]{0,99}[A-Z])(?=[A-Z0-9_-]{0,99}[a-z])[A-Za-z0-9_-]"
# How secrets begin, and what the whole of one is.
_SECRETS = (
    (rb"sk-[A-Za-z0-9_-]{20}", rb"sk-(?:%b|%b{40})" % (_PIECE, _MIXED)),  # OpenAI, Anthropic and many after them
    (rb"pk-[A-Za-z0-9_-]{30}", rb"pk-%b{43}" % _MIXED),  # our own
    (rb"(?:AKIA|ASIA)[A-Z0-9]{16}", rb"A[KS]IA[A-Z2-7]{16}(?![0-9A-Za-z])"),  # AWS
    (rb"gh[pousr]_[A-Za-z0-9]{36}", b""),  # GitHub
    (rb"github_pat_[A-Za-z0-9_]{22}", b""),
    (rb"xox[abcdeprs]-[0-9A-Za-z-]{20}", rb"xox[a-z]-[A-Za-z-]{0,19}[0-9]"),  # Slack
    (rb"AIza[0-9A-Za-z_-]{35}", b""),  # Google
    (rb"[sr]k_live_[0-9A-Za-z]{16}", b""),  # Stripe
    (rb"eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{16}", b""),  # JSON web tokens
    (  # PEM: the line alone stands in much code; base64 follows it, perhaps behind headers
        rb"-----BEGIN [A-Z ]{0,24}PRIVATE KEY(?: BLOCK)?-----",
        rb"-----BEGIN [A-Z ]{11,47}-----(?:(?!-----).){0,400}?(?:[A-Za-z0-9+]|\\?/){32}",
    ),
)


def _secret(pattern: bytes, whole: bytes) -> Expression:
    form = re.compile(whole, re.DOTALL)

    def holds(text: bytes, start: int, _end: int) -> bool:
        begins = start == 0 or _BEGIN.search(text, max(0, start - _LEFT_BYTES_MAX), start) is not None
        return begins and form.match(text, start) is not None

    return Expression(Detector.SECRET, pattern, holds)


EXPRESSIONS: tuple[Expression, ...] = (
    *(Expression(Detector.CARD, pattern, _is_card) for pattern in _CARDS),
    *(Expression(Detector.IBAN, pattern, _is_iban) for pattern in _IBANS),
    *(_secret(pattern, whole) for pattern, whole in _SECRETS),
)

# Thirteen digits or the end of an IBAN, a secret or an escape: where none of these is, there is nothing.
HINTS: tuple[bytes, ...] = (
    rb"[0-9]{2}(?:[ \-\xc2\xa0\xe2\x80\xaf]{0,3}[0-9A-Z]){11}",
    rb"[0-9]{2}[ \-\xc2\xa0\xe2\x80\xaf]{0,3}[a-z]{4}[ \-\xc2\xa0\xe2\x80\xaf]{0,3}[0-9]{4}",
    *(pattern for pattern, _ in _SECRETS),
    ESCAPE,
)
