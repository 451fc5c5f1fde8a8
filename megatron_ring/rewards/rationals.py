"""Fractions of bounded size, their exact roots and logarithms."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

MAX_BITS = 1 << 17


class TooCoarse(Exception):
    """More digits are needed to tell."""


class Undefined(Exception):
    """The formula has no value here, or none that can be worked out within bounds."""


def bits(value: Any) -> int:
    """The size of a fraction; 0 for a number that is none."""
    return max(value.numerator.bit_length(), value.denominator.bit_length()) if isinstance(value, Fraction) else 0


def bounded(value: Fraction) -> Fraction:
    """The value, if it is not too large."""
    if bits(value) > MAX_BITS:
        raise Undefined
    return value


def exact_root(value: Fraction, index: int) -> Fraction | None:
    """The root of a positive fraction where it is rational."""
    top, bottom = _whole_root(value.numerator, index), _whole_root(value.denominator, index)
    return None if top is None or bottom is None else Fraction(top, bottom)


def _whole_root(n: int, index: int) -> int | None:
    """The exact root of a natural number, by Newton's method; None where there is none."""
    if index == 1 or n < 2:
        return n
    if index == 2:
        root = math.isqrt(n)
        return root if root * root == n else None
    root = 1 << (n.bit_length() // index + 1)
    while True:
        better = ((index - 1) * root + n // root ** (index - 1)) // index
        if better >= root:
            return root if root**index == n else None
        root = better


def exact_logarithm(x: Fraction, base: Fraction) -> Fraction | None:
    """The logarithm where it is rational with a denominator of at most 12."""
    if x <= 0 or base <= 0 or base == 1:
        raise Undefined
    estimate = (math.log(x.numerator) - math.log(x.denominator)) / (math.log(base.numerator) - math.log(base.denominator))
    guess = Fraction(estimate).limit_denominator(12)
    if abs(guess.numerator) > 10_000 or bits(base) * abs(guess.numerator) > MAX_BITS:
        return None
    return guess if base**guess.numerator == x**guess.denominator else None
