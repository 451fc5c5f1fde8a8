r"""Two answers without structure: exact values, with a unit, per cent or degrees, or words. Else the question stays open.

A unit is dropped only where the reference has none, and only what can be read as one. A counted noun (`5 apples`) may be
missing from the answer; another noun, another unit, or no unit where the reference has a physical one, is wrong.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from megatron_ring.rewards.exact import NUMBER
from megatron_ring.rewards.normalise import unwrap, without_spaces
from megatron_ring.rewards.surds import Exact, evaluate, exact_agree
from megatron_ring.rewards.units import KNOWN, looks_like_unit, parse_unit, same_unit
from megatron_ring.rewards.words import FUNCTIONS, long_words, same_letters, same_species, words_agree, words_of

_PERCENT = re.compile(r"\s*(?:\\?%|\\text\s*\{\s*\\?%\s*\}|(?:\\text\s*\{)?\s*(?:percent|per cent)\s*\}?)$")
_DEGREES = re.compile(r"\s*(?:\^\{\\circ\}|(?:\\text\s*\{)?\s*degrees?\s*\}?)$")
_DEGREE_SIGN = "^{\\circ}"
_CURRENCY = re.compile(r"^(?:[€£¥₹]|\\pounds|\\euro|\\text\s*\{\s*\})\s*|\s*[€£¥₹]$")
_TAIL = re.compile(r"(?:\\text\s*\{[^{}\\]*\}|\^\s*\{?[+-]?\d\}?|[/ ]|\\cdot)+")
_NO_WORDS = re.compile(r"[^A-Za-z .,'’\-]")
# 5个, 18元, 3只鸡; not 5万, 3个半, 5个以上, 5倍, which say another number.
_COUNTED = re.compile(
    r"\s*(?:平方|立方)?(?:厘米|分米|毫米|千米|公里|公顷|千克|公斤|分钟|小时|美元|[米克吨升秒天周年岁元个只人名位头本件块张条根次种棵辆支页道题套组步朵颗瓶杯袋箱包对双])"
    r"(?:(?![〇零一二三四五六七八九十百千万亿两半几多余左右上下以内外不非或和与约至到倍分])[\u4e00-\u9fff]){0,4}"
)
_TEXT = re.compile(r"\\text\s*\{([^{}\\]*)\}")
_QUALIFIERS = frozenset({
    "or", "and", "not", "more", "less", "fewer", "than", "least", "most", "about", "approximately", "around", "nearly",
    "between", "if", "when", "unless", "except", "to", "from", "plus", "minus",
    "times", "half", "double", "isn", "aren", "false", "cannot", "never", "nor", "million", "billion",
    "trillion", "thousand", "hundred", "dozen", "wrong", "incorrect", "maybe", "cent",
})  # fmt: skip
_MAX_QUANTITY = 100  # characters
_MAGNITUDES = {"thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_MAGNITUDE = re.compile(r"\s*(?:\\text\s*\{)?\s*(thousand|million|billion|trillion)\b\s*\}?")
_BASED = re.compile(r"([0-9A-F]{1,60})\s*_\s*\{?\s*(?:\\text\s*\{)?(\d{1,2}|two|eight|ten)\}?\}?")
_BASE_NAMES = {"two": 2, "eight": 8, "ten": 10}
_CLOCK = re.compile(r"\d{1,6}(?:\s*:\s*\d{1,6})+")
_TRIGONOMETRIC = re.compile(
    r"(?:\\|\b)(?:" + "|".join(sorted(name for name in FUNCTIONS if name != "deg")) + r")(?![A-Za-z])"
)
_MODULUS = re.compile(r"\s*\(?\s*\\(?:pmod|mod|bmod)(?![A-Za-z])\s*\{?\s*(\d{1,9})\s*\}?\s*\)?$")
_PREAMBLE = re.compile(
    r"^(?:\\text\s*\{)?\s*(?:(?:[Tt]he )?(?:[Ff]inal )?[Aa]nswer(?: is|:| =)?\s*:?|故?答案[是为选]?\s*[:：]?)\s*\}?\s*"
)


@dataclass(frozen=True, slots=True)
class Quantity:
    """A value's text and what it is counted in: "" (nothing), "%", "deg", or a unit's text."""

    head: str
    unit: str


def settle(reference: str, given: str) -> bool | tuple[str, str]:
    """Whether two normalised atoms agree, or the two formulas on whose equality that still hangs."""
    if _same_text(reference, given) or same_species(reference, given):
        return True
    if "mod" not in reference:
        given = _without_modulus(given)
    based = _same_based(reference, given)
    if based is not None:
        return based
    if _CLOCK.fullmatch(unwrap(reference)) and _CLOCK.search(given):
        return without_spaces(unwrap(reference)) == without_spaces(unwrap(given))
    wanted_words, given_words = words_of(reference), words_of(given)
    if wanted_words is not None or given_words is not None:
        if same_letters(reference, given):
            return True
        if wanted_words is not None and given_words is not None:
            return words_agree(wanted_words, given_words)
        either = given if given_words is None else reference
        return False if evaluate(split_unit(either).head) or long_words(either) or wanted_words else (reference, given)
    wanted, got = split_unit(reference), split_unit(given)
    decided = _units_settle(wanted, got)
    if decided is False and wanted.unit and not got.unit and evaluate(got.head) is None:
        return reference, given  # 3 W^3 may be algebra
    if isinstance(decided, bool):
        return decided
    infinite = [head.lstrip("+-") == "\\infty" for head in (wanted.head, got.head)]
    if any(infinite):
        return all(infinite) and wanted.head.startswith("-") == got.head.startswith("-")
    if long_words(got.head) - long_words(wanted.head):
        return False  # prose: its letters are no variables
    if not any(_TRIGONOMETRIC.search(head) for head in decided):  # `90° - x`, and an answer without the signs
        return decided[0].replace(_DEGREE_SIGN, ""), decided[1].replace(_DEGREE_SIGN, "")
    return decided


def split_unit(text: str) -> Quantity:
    """Take per cent, degrees, a currency or a unit off a normalised text."""
    text = _CURRENCY.sub("", text.strip())
    for pattern, unit in ((_PERCENT, "%"), (_DEGREES, "deg")):
        match = pattern.search(text)
        if match is not None and match.start() > 0 and not (unit == "deg" and _TRIGONOMETRIC.search(text)):
            return Quantity(text[: match.start()], unit)
    start = text.find("\\text")
    number = NUMBER.match(text)
    if start > 0 and _TAIL.fullmatch(text, start) is not None:
        return _quantity(text, start)
    if number is not None and number.end() < len(text):
        tail = text[number.end() :]
        if looks_like_unit(tail) or _nouns(tail):
            return _quantity(text, number.end())
    start = spaced_unit(text)
    if start > 0 and all(len(symbol) > 1 for symbol, _ in parse_unit(text[start:]) or ()):
        return _quantity(text, start)
    return Quantity(unwrap(text), "")


def spaced_unit(text: str) -> int:
    r"""Where the unit begins after a space and a value that is no plain number, as in `\sqrt{2} cm`; -1 for nowhere."""
    start = text.find(" ") if len(text) <= _MAX_QUANTITY else -1
    while start > 0:
        if text[start + 1 : start + 2].isalpha() and looks_like_unit(text[start:]) and evaluate(text[:start]) is not None:
            return start
        start = text.find(" ", start + 1)
    return -1


def strip_preamble(text: str) -> str:
    """Without `The answer is`."""
    return _PREAMBLE.sub("", text, count=1) if "nswer" in text or "答案" in text else text


def _without_modulus(text: str) -> str:
    """Without the modulus behind a residue, which is below it: `42 \\bmod 5` is another number than 42."""
    found = _MODULUS.search(text)
    if found is None:
        return text
    value = evaluate(text[: found.start()])
    reduced = value is None or value.rational is None or value.rational < int(found[1])
    return text[: found.start()] if reduced else text


def _same_text(a: str, b: str) -> bool:
    if without_spaces(a) == without_spaces(b):
        return True
    # 1s^2 2s^2 is 1s^22s^2; but where a slash follows, a space may make a mixed number.
    return "/" not in a and re.search("[a-z]", a) is not None and a.replace(" ", "") == b.replace(" ", "")


def _quantity(text: str, start: int) -> Quantity:
    head, tail = text[:start].rstrip(" ~"), text[start:]
    magnitude = _MAGNITUDE.match(tail)
    if magnitude is not None:
        value = evaluate(head)
        if value is not None and value.rational is not None:
            head = str(value.rational * 10 ** _MAGNITUDES[magnitude[1]])
            tail = tail[magnitude.end() :].strip(" }")
            return Quantity(head, tail) if _readable(tail) else Quantity(text, "")
    if _QUALIFIERS & set(re.findall("[a-z-]+", tail.lower())) or not _readable(tail):
        return Quantity(text, "")
    return Quantity(head, tail.strip())


def _readable(tail: str) -> bool:
    """Whether what follows a number is a unit or words: no digits, signs or question marks."""
    if parse_unit(tail) is not None:
        return True
    plain = _TEXT.sub(r"\1", tail)
    return _NO_WORDS.search(plain) is None or _COUNTED.fullmatch(plain) is not None


def _nouns(tail: str) -> bool:
    return _COUNTED.fullmatch(tail) is not None or re.fullmatch(r" [a-z][a-z-]{2,20}(?: [a-z]{2,20}){0,3}", tail) is not None


def _units_settle(wanted: Quantity, got: Quantity) -> bool | tuple[str, str]:
    """Judge units, then values."""
    reference, given = evaluate(wanted.head), evaluate(got.head)
    if wanted.unit in ("", "%", "deg") and got.unit in ("", "%", "deg"):
        if {wanted.unit, got.unit} == {"%", "deg"}:
            return False
        if reference is None or given is None:
            return wanted.head, got.head
        return _agree_scaled(reference, wanted.unit, given, got.unit)
    if wanted.unit not in ("", "%", "deg"):
        unit = parse_unit(wanted.unit)
        physical = unit is not None and all(symbol in KNOWN for symbol, _ in unit)
        if got.unit in ("%", "deg") or (got.unit == "" and physical):
            return False
        if got.unit and not same_unit(wanted.unit, got.unit):
            return False
    elif wanted.unit:
        return False
    if reference is not None and given is not None:
        return exact_agree(reference, given)
    return wanted.head, got.head


def _agree_scaled(reference: Exact, wanted: str, given: Exact, got: str) -> bool:
    """Per cent may be written as a fraction of one and degrees in radians; either sign may be left out.

    But `0.5\\%` is not 0.5: where the reference has no sign and is 1 at most, it is a share and the answer's sign counts.
    """
    if wanted == got or not (got == "%" and _is_share(reference)):
        if exact_agree(reference, given):
            return True
        if wanted == got:
            return False
    factor, pi = (Fraction(1, 100), 0) if "%" in (wanted, got) else (Fraction(1, 180), 1)
    if wanted:
        return exact_agree(reference.scaled(factor, pi), given)
    return exact_agree(reference, given.scaled(factor, pi))


def _is_share(value: Exact) -> bool:
    return value.rational is not None and 0 < abs(value.rational) <= 1


def _based(text: str) -> tuple[str, int] | None:
    """Digits and base of a number that names its base; None for any other, and for digits that the base does not have."""
    match = _BASED.fullmatch(text)
    if match is None:
        return None
    base = _BASE_NAMES.get(match[2]) or int(match[2])
    if not 2 <= base <= 16 or any(int(digit, 16) >= base for digit in match[1]):
        return None
    return match[1].lstrip("0") or "0", base


def _same_based(reference: str, given: str) -> bool | None:
    """Compare numbers with a base as their index, which the answer or the reference may leave out."""
    a, b = _based(reference), _based(given)
    if a is None and b is None:
        return None
    if a is not None and b is not None:
        return a == b
    based, other = (a, given) if a is not None else (b, reference)
    assert based is not None
    return based[0] == other
