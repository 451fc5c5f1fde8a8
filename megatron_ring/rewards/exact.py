"""Plain numbers as exact fractions: most answers are decided here, without a computer algebra system."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

# Digits and exponents are capped, so that parsing and comparing take microseconds.
_INTEGER = r"(?:\d{1,3}(?:,\d{3}){1,60}(?!\d)|\d{1,200})"
_DECIMAL = rf"(?:{_INTEGER}(?:\.\d{{0,200}})?|\.\d{{1,200}})"
_EXPONENT = (
    r"(?:[eE](?P<e>[+-]?\d{1,3})"
    r"|\s*(?:\\times|\\cdot|[*×·])\s*10\s*\^\s*(?:\{\s*(?P<braced>[+-]?\d{1,3})\s*\}|(?P<bare>[+-]?\d{1,3})))"
)
_FRACTION = (
    rf"\\[dt]?frac\s*(?:\{{\s*(?P<top>-?{_DECIMAL})\s*\}}|(?P<top_digit>\d))"
    rf"\s*(?:\{{\s*(?P<bottom>-?{_DECIMAL})\s*\}}|(?P<bottom_digit>\d))"
)
NUMBER = re.compile(
    rf"(?P<sign>[+-]?)\s*(?:{_FRACTION}|(?P<over>{_DECIMAL})\s*/\s*(?P<under>{_DECIMAL})"
    rf"|(?P<mantissa>{_DECIMAL})(?:{_EXPONENT})?|10\s*\^\s*\{{\s*(?P<power>[+-]?\d{{1,3}})\s*\}})",
    re.ASCII,
)


_ONE = Fraction(1)


@dataclass(frozen=True, slots=True)
class PlainNumber:
    """An exact value, and whether it was written with a decimal point or times a power of ten (so possibly rounded).

    Attributes:
        value: the value.
        rounded: whether it may be a rounded value.
        step: one unit of its last digit as written; 0 for a fraction, which has none.
    """

    value: Fraction
    rounded: bool
    step: Fraction = Fraction(0)


def parse_number(text: str) -> PlainNumber | None:
    r"""Read an integer, decimal, `a/b`, `\frac{a}{b}`, `1.5e3` or `1.5 \times 10^{3}`; None for anything else."""
    match = NUMBER.fullmatch(text)
    if match is None:
        return None
    if text.isdigit():  # no sign, point or exponent, as most numbers
        return PlainNumber(Fraction(int(text)), False, _ONE)
    fields = match.groupdict()
    step = Fraction(0)
    if fields["power"] is not None:
        value, rounded = Fraction(10) ** int(fields["power"]), False
    elif fields["mantissa"] is not None:
        exponent = fields["e"] or fields["braced"] or fields["bare"]
        scale = Fraction(10) ** int(exponent) if exponent else _ONE
        value = _decimal(fields["mantissa"]) * scale
        decimals = len(fields["mantissa"].partition(".")[2])
        step = scale / 10**decimals if decimals else scale
        rounded = exponent is not None or "." in fields["mantissa"]
    else:
        top = fields["top"] or fields["top_digit"] or fields["over"]
        bottom = fields["bottom"] or fields["bottom_digit"] or fields["under"]
        if _decimal(bottom) == 0:
            return None
        value, rounded = _decimal(top) / _decimal(bottom), "." in top + bottom
    return PlainNumber(-value if fields["sign"] == "-" else value, rounded, step)


def numbers_agree(reference: PlainNumber, answer: PlainNumber) -> bool:
    """Equal; or, when one of them may be rounded, equal to six decimals, as Math-Verify has it, and to one in 10^4.

    The second condition is ours: to six decimals 6.63e-34 would equal 0.
    """
    a, b = reference.value, answer.value
    if a == b:
        return True
    if not (reference.rounded or answer.rounded):
        return False
    return round(a, 6) == round(b, 6) and abs(a - b) * 10_000 <= max(abs(a), abs(b))


def measured_agree(reference: PlainNumber, answer: PlainNumber) -> bool:
    """Equal as measured values: one, rounded to the digits that the other is written with, is the other; within 1 %.

    9.81 agrees with 9.8 and 9.807, not with 9.82. The limit keeps 0.3 from agreeing with 0.34.
    """
    difference = abs(reference.value - answer.value)
    if difference * 100 > abs(reference.value):
        return False
    return difference * 2 <= max(reference.step, answer.step)


def _decimal(text: str) -> Fraction:
    if "." not in text:  # `Fraction` would read it with an expression of its own
        return Fraction(int(text.replace(",", "")))
    return Fraction(text.replace(",", "").removesuffix("."))
