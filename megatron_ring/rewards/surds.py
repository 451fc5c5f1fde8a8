r"""Exact values: sums of rational multiples of √n, π and i, read from LaTeX without a computer algebra system.

Covers `\frac{-1+\sqrt{5}}{2}`, `\frac{3\pi}{4}`, `3+4i`, `2\frac{1}{2}`, `2^{10}`, `5!`. The form is canonical, so equal
values have equal terms. Whatever is too large, too deep or not of this kind is None: `algebra` may know it.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from megatron_ring.rewards.exact import PlainNumber, numbers_agree, parse_number
from megatron_ring.rewards.terms import NotExact, Terms, add, divide, multiply, negate, power, root, small, tidy

_MAX_DEPTH = 40
_MAX_FACTORIAL = 1000
_MAX_CHARACTERS = 400

_MAX_POWER_OF_PI = 20
_PI = Fraction("3.14159265358979323846264338327950288419716939937510")

_PRODUCT = re.compile(r"\s*(?:\\(?:cdot|times|ast)(?![A-Za-z])|\*)")
_QUOTIENT = re.compile(r"\s*(?:/|\\div(?![A-Za-z]))")
_SUM = re.compile(r"\s*([+-])")
# A brace is not seen: 4{2} is shown as 42.
_FACTOR = re.compile(r"\s*(?=[(i]|\{(?!\s*\{*\s*[\d.])|\\(?:frac|sqrt|pi|binom)(?![A-Za-z]))")
_NUMBER = re.compile(r"\s*(\d{1,3}(?:,\d{3}){1,20}(?!\d)(?:\.\d{0,100})?|\d{1,200}(?:\.\d{0,200})?|\.\d{1,200})", re.ASCII)
_ARGUMENT = r"\s*(?:\{\s*(\d{1,30})\s*\}|(\d))"
_MIXED = re.compile(rf"\s*(\d{{1,30}})(?:\s*\\frac{_ARGUMENT}{_ARGUMENT}|\s(\d{{1,30}})\s*/\s*(\d{{1,30}}))", re.ASCII)
_COMMAND = re.compile(r"\s*\\(frac|sqrt|pi|binom)(?![A-Za-z])")
_EXPONENT = re.compile(r"\s*(\d{1,5})", re.ASCII)
_REPEATING = re.compile(r"(-?)(\d{1,30})\.(\d{0,30})\\(?:overline|bar|dot)\s*\{?(\d{1,30})\}?", re.ASCII)
_DIGIT = re.compile(r"\s*([0-9])")


@dataclass(frozen=True, slots=True)
class Exact:
    """A value, and whether a decimal point or a power of ten was in it (so possibly rounded)."""

    terms: Terms
    rounded: bool

    @property
    def rational(self) -> Fraction | None:
        """The value, where it is rational."""
        if not self.terms:
            return Fraction(0)
        return self.terms.get((1, 0, 0)) if len(self.terms) == 1 else None

    def scaled(self, factor: Fraction, pi: int = 0) -> Exact:
        """The value times a number and a power of π."""
        return Exact(multiply(self.terms, {(1, pi, 0): factor}), self.rounded)


@lru_cache(maxsize=4096)
def evaluate(text: str) -> Exact | None:
    """Read a normalised text as an exact value; None where it is none, or too large to be handled at once."""
    number = parse_number(text)
    if number is not None:
        return Exact(tidy({(1, 0, 0): number.value}), number.rounded)
    if not text or len(text) > _MAX_CHARACTERS:
        return None
    repeating = _REPEATING.fullmatch(text)
    if repeating is not None:
        sign, whole, fixed, period = repeating.groups()
        value = Fraction(int(whole + fixed + period) - int(whole + fixed), (10 ** len(period) - 1) * 10 ** len(fixed))
        return Exact(tidy({(1, 0, 0): -value if sign else value}), False)
    parser = _Parser(text)
    try:
        terms = parser.sum(0)
        parser.expect_end()
    except NotExact:
        return None
    return Exact(terms, parser.rounded)


def exact_agree(reference: Exact, answer: Exact) -> bool:
    """Equal; or equal to six decimals when one of them may be rounded, as `exact.numbers_agree` has it."""
    if reference.terms == answer.terms:
        return True
    if not (reference.rounded or answer.rounded):
        return False
    for imaginary in (0, 1):
        a, b = _approximate(reference.terms, imaginary), _approximate(answer.terms, imaginary)
        if a is None or b is None or not numbers_agree(PlainNumber(a, True), PlainNumber(b, True)):
            return False
    return True


class _Parser:
    """Recursive descent over one text. Each method reads from `position` on and returns the value it read."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0
        self.rounded = False

    def take(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        match = pattern.match(self.text, self.position)
        if match is not None:
            self.position = match.end()
        return match

    def expect(self, character: str) -> None:
        self.skip_space()
        if not self.text.startswith(character, self.position):
            raise NotExact
        self.position += len(character)

    def expect_end(self) -> None:
        if self.text[self.position :].strip():
            raise NotExact

    def skip_space(self) -> None:
        while self.text.startswith(" ", self.position):
            self.position += 1

    def sum(self, depth: int) -> Terms:
        if depth > _MAX_DEPTH:
            raise NotExact
        total: Terms = {}
        sign = self.take(_SUM)
        while True:
            term = self.product(depth)
            total = add(total, negate(term) if sign is not None and sign[1] == "-" else term)
            sign = self.take(_SUM)
            if sign is None:
                return total

    def product(self, depth: int) -> Terms:
        value = self.power(depth)
        divided = False
        while True:
            if self.take(_PRODUCT):
                value = multiply(value, self.signed(depth))
            elif self.take(_QUOTIENT):
                value, divided = divide(value, self.signed(depth)), True
            elif _FACTOR.match(self.text, self.position):
                if divided:  # 1/2\pi is read in two ways
                    raise NotExact
                value = multiply(value, self.power(depth))
            else:
                return value

    def signed(self, depth: int) -> Terms:
        sign = self.take(_SUM)
        value = self.power(depth)
        return negate(value) if sign is not None and sign[1] == "-" else value

    def power(self, depth: int) -> Terms:
        base = self.atom(depth)
        self.skip_space()
        if self.text.startswith("!", self.position):
            self.position += 1
            base = {(1, 0, 0): Fraction(math.factorial(small(base, _MAX_FACTORIAL)))}
            if self.text.startswith("!", self.position):
                raise NotExact
        if self.text.startswith("^", self.position):
            self.position += 1
            digits = self.take(_EXPONENT)  # TeX would take one digit, but nobody means that by 2^10
            base = power(base, tidy({(1, 0, 0): Fraction(int(digits[1]))}) if digits else self.argument(depth))
        return base

    def argument(self, depth: int) -> Terms:
        """What TeX takes for an argument: a group, or one digit."""
        digit = self.take(_DIGIT)
        if digit is not None:
            return tidy({(1, 0, 0): Fraction(int(digit[1]))})
        return self.group(depth, "{", "}")

    def group(self, depth: int, opening: str, closing: str) -> Terms:
        self.expect(opening)
        value = self.sum(depth + 1)
        self.expect(closing)
        return value

    def atom(self, depth: int) -> Terms:
        mixed = self.take(_MIXED)
        if mixed is not None:
            whole, top, bottom = int(mixed[1]), int(mixed[2] or mixed[3] or mixed[6]), int(mixed[4] or mixed[5] or mixed[7])
            if not 0 < top < bottom:
                raise NotExact
            return {(1, 0, 0): whole + Fraction(top, bottom)}
        number = self.take(_NUMBER)
        if number is not None:
            self.rounded |= "." in number[1]
            return tidy({(1, 0, 0): Fraction(number[1].replace(",", "").removesuffix("."))})
        command = self.take(_COMMAND)
        if command is not None:
            return self.command(command[1], depth)
        self.skip_space()
        if self.text.startswith("i", self.position):
            self.position += 1
            return {(1, 0, 1): Fraction(1)}
        if self.text.startswith("{", self.position):
            return self.group(depth, "{", "}")
        return self.group(depth, "(", ")")

    def command(self, name: str, depth: int) -> Terms:
        if name == "pi":
            return {(1, 1, 0): Fraction(1)}
        if name == "frac":
            return divide(self.argument(depth), self.argument(depth))
        if name == "binom":
            top, bottom = self.argument(depth), self.argument(depth)
            return tidy({(1, 0, 0): Fraction(math.comb(small(top, 1000), small(bottom, 1000)))})
        self.skip_space()
        index = 2
        if self.text.startswith("[", self.position):
            index = small(self.group(depth, "[", "]"), 20)
        return root(self.argument(depth), index)


def _approximate(terms: Terms, imaginary: int) -> Fraction | None:
    """The real or imaginary part to some forty digits of each term; None where it is too large."""
    total = Fraction(0)
    for (n, pi, i), value in terms.items():
        if abs(pi) > _MAX_POWER_OF_PI:
            return None
        if i == imaginary:
            total += value * Fraction(math.isqrt(n * 10**80), 10**40) * _PI**pi
    return total
