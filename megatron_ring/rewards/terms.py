"""Arithmetic with sums of rational multiples of √n, π and i. Bounded: what grows too large raises `NotExact`."""

from __future__ import annotations

import math
from fractions import Fraction

Terms = dict[tuple[int, int, int], Fraction]  # (square-free n, power of π, power of i: 0 or 1) → coefficient

_MAX_BITS = 1 << 16
_MAX_TERMS = 12
_MAX_RADICAND = 10**9


class NotExact(Exception):
    """The value, or the text it was to be read from, is not of this kind, or is too large."""


def tidy(terms: Terms) -> Terms:
    """Without zeros, if it is small enough."""
    terms = {key: value for key, value in terms.items() if value}
    if len(terms) > _MAX_TERMS or any(bits(value) > _MAX_BITS for value in terms.values()):
        raise NotExact
    return terms


def bits(value: Fraction) -> int:
    return max(value.numerator.bit_length(), value.denominator.bit_length())


def rational(terms: Terms) -> Fraction:
    """The value, which must be rational."""
    if not terms:
        return Fraction(0)
    if len(terms) > 1 or (1, 0, 0) not in terms:
        raise NotExact
    return terms[1, 0, 0]


def small(terms: Terms, limit: int) -> int:
    """The value, which must be an integer from 0 to `limit`."""
    value = rational(terms)
    if value.denominator != 1 or not 0 <= value <= limit:
        raise NotExact
    return value.numerator


def negate(terms: Terms) -> Terms:
    return {key: -value for key, value in terms.items()}


def add(a: Terms, b: Terms) -> Terms:
    return tidy({key: a.get(key, Fraction(0)) + b.get(key, Fraction(0)) for key in {**a, **b}})


def multiply(a: Terms, b: Terms) -> Terms:
    total: Terms = {}
    for (n, pi, i), x in a.items():
        for (m, rho, j), y in b.items():
            common = math.gcd(n, m)
            key = (n // common * (m // common), pi + rho, (i + j) % 2)
            total[key] = total.get(key, Fraction(0)) + x * y * common * (-1 if i + j == 2 else 1)
    return tidy(total)


def divide(a: Terms, b: Terms) -> Terms:
    if not b or len(b) > 2:
        raise NotExact
    if len(b) == 1:
        ((n, pi, i), value), *_ = b.items()
        return multiply(a, {(n, -pi, i): (-1 if i else 1) / (value * n)})
    (first, x), (second, y) = b.items()
    if first[1] or second[1]:
        raise NotExact
    conjugate = {first: x, second: -y}
    return divide(multiply(a, conjugate), multiply(b, conjugate))


def power(base: Terms, exponent_terms: Terms) -> Terms:
    exponent = rational(exponent_terms)
    if exponent.denominator != 1:
        base = root(base, small({(1, 0, 0): Fraction(exponent.denominator)}, 20))
    times = abs(exponent.numerator)
    size = max(map(bits, base.values()), default=1)
    if size * times > _MAX_BITS or times > (100_000 if len(base) < 2 else 12) or (not base and exponent <= 0):
        raise NotExact
    value: Terms = {(1, 0, 0): Fraction(1)}
    for bit in bin(times)[2:]:
        value = multiply(value, value)
        if bit == "1":
            value = multiply(value, base)
    return divide({(1, 0, 0): Fraction(1)}, value) if exponent < 0 else value


def root(terms: Terms, index: int) -> Terms:
    """The principal square root of a rational, or a rational root of another index."""
    value = rational(terms)
    if index == 2:
        n = abs(value.numerator) * value.denominator
        outside, inside = _square_part(n)
        return tidy({(inside, 0, 1 if value < 0 else 0): Fraction(outside, value.denominator)})
    if index < 1 or (value < 0 and index % 2 == 0):
        raise NotExact
    top, bottom = _whole_root(abs(value.numerator), index), _whole_root(value.denominator, index)
    return tidy({(1, 0, 0): Fraction(top if value > 0 else -top, bottom)})


def _whole_root(n: int, index: int) -> int:
    root = round(n ** (1 / index)) if n < 1 << 52 else 0
    if root**index != n:
        raise NotExact
    return root


def _square_part(n: int) -> tuple[int, int]:
    """(s, r) with n = s²·r and r square-free."""
    root = math.isqrt(n)
    if root * root == n:
        return root, 1
    if n > _MAX_RADICAND:
        raise NotExact
    outside, divisor = 1, 2
    inside = 1
    while divisor**3 <= n:  # what is left then has two prime factors at most
        times = 0
        while n % divisor == 0:
            n //= divisor
            times += 1
        outside *= divisor ** (times // 2)
        inside *= divisor ** (times % 2)
        divisor += 1
    root = math.isqrt(n)
    return (outside * root, inside) if root * root == n else (outside, inside * n)
