"""Arithmetic of values that are exact where they are rational, else have a stated number of digits, and never fewer."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import lru_cache
from typing import Any

from megatron_ring.rewards.rationals import MAX_BITS, TooCoarse, Undefined, bits, bounded, exact_root

Value = Any  # a Fraction where it is known exactly, else a real or complex number of mpmath's

MAX_EXPONENT = 10**8  # of e
_MAX_FACTORIAL = 5000
_GUARD = 12  # decimal digits that rounding may spoil


@lru_cache(maxsize=8)
def _context(digits: int) -> Any:
    import mpmath

    context = mpmath.MPContext()
    context.dps = digits
    return context


class ValueArithmetic:
    """Sums, products, powers, roots and factorials of values.

    A sum in which a term is too small to leave a trace raises `TooCoarse`; what cancels to nothing within the digits is
    zero. What has no value, or one that is too large, raises `Undefined`.

    Args:
        digits: decimal digits of what is not rational.
    """

    def __init__(self, digits: int) -> None:
        self._digits = digits
        self._mp = _context(digits)
        self._noise = self._mp.mpf(10) ** (_GUARD - digits)

    def real(self, value: Value) -> Value:
        """As a number of mpmath's. A fraction with more digits than are kept may hide a difference."""
        if not isinstance(value, Fraction):
            return value
        top, bottom = value.numerator, value.denominator
        top >>= max((top & -top).bit_length() - 1, 0)
        if max(top.bit_length(), bottom.bit_length()) > 3.3 * self._digits:
            raise TooCoarse
        return self._mp.mpf(value.numerator) / value.denominator

    def _add(self, terms: list[Value]) -> Value:
        if all(isinstance(term, Fraction) for term in terms):
            return bounded(sum(terms, Fraction(0)))
        numbers = [self.real(term) for term in terms]
        largest = max(map(abs, numbers))
        if any(number != 0 and abs(number) < largest * self._noise for number in numbers):
            raise TooCoarse
        return self._tidied(self._mp.fsum(numbers), largest)

    def _tidied(self, value: Value, scale: Value) -> Value:
        """Without what is nothing but rounding, in its real or imaginary part, beside `scale`."""
        limit = scale * self._noise
        if isinstance(value, self._mp.mpc):
            real, imaginary = (0 if abs(part) < limit else part for part in (value.real, value.imag))
            value = self._mp.mpc(real, imaginary) if imaginary else real
            if not value:
                return Fraction(0)
        return Fraction(0) if abs(value) < limit else value

    def _multiply(self, a: Value, b: Value) -> Value:
        if isinstance(a, Fraction) and isinstance(b, Fraction):
            return bounded(a * b)
        if a == 0 or b == 0:
            return Fraction(0)
        value = self.real(a) * self.real(b)
        return self._tidied(value, abs(value))

    def _divide(self, a: Value, b: Value) -> Value:
        if b == 0:
            raise Undefined
        if isinstance(b, Fraction):
            return self._multiply(a, 1 / b)
        if a == 0:
            return Fraction(0)
        value = self.real(a) / b
        return self._tidied(value, abs(value))

    def _power(self, base: Value, exponent: Value) -> Value:
        if base == 0:
            if isinstance(exponent, Fraction) and exponent > 0:
                return Fraction(0)
            raise Undefined
        if not isinstance(exponent, Fraction):
            return self._general_power(base, exponent)
        if exponent.denominator == 1:
            times = exponent.numerator
            if isinstance(base, Fraction):
                if bits(base) * abs(times) <= MAX_BITS:
                    return base**times
                if abs(base) == 1:
                    return base ** (times % 2)
            self._bound(exponent, base)
            value = self._mp.power(self.real(base), times)
            return self._tidied(value, abs(value))
        return self._root(self._power(base, Fraction(exponent.numerator)), Fraction(exponent.denominator))

    def _general_power(self, base: Value, exponent: Value) -> Value:
        self._bound(exponent, base)
        value = self._mp.power(self.real(base), exponent)
        return self._tidied(value, abs(value))

    def _bound(self, exponent: Value, base: Value) -> None:
        size = abs(self.real(exponent) if bits(exponent) < 200 else self._mp.mpf(exponent.numerator) / exponent.denominator)
        if size * (1 + abs(self._mp.log(abs(self.real(base))))) > MAX_EXPONENT:
            raise Undefined

    def _root(self, value: Value, index: Value) -> Value:
        """The principal root, but the real one of a negative number where the index is odd."""
        if not (isinstance(index, Fraction) and index.denominator == 1 and 0 < index <= 10_000):
            return self._power(value, self._divide(Fraction(1), index))
        n = index.numerator
        if value == 0:
            return Fraction(0)
        if isinstance(value, Fraction):
            exact = exact_root(abs(value), n)
            if exact is not None and (value > 0 or n % 2):
                return exact if value > 0 else -exact
        number = self.real(value)
        if isinstance(number, self._mp.mpc):
            return self._mp.root(number, n)
        if number < 0 and n % 2:
            return -self._mp.root(-number, n)
        if number < 0 and n == 2:
            return self._mp.mpc(0, self._mp.sqrt(-number))
        return self._mp.root(number, n)

    def _factorial(self, value: Value) -> Value:
        if isinstance(value, Fraction) and value.denominator == 1 and 0 <= value <= _MAX_FACTORIAL:
            return Fraction(math.factorial(value.numerator))
        return self._gamma(self._add([value, Fraction(1)]))

    def _gamma(self, value: Value) -> Value:
        if abs(value) > 10**9:
            raise Undefined
        return self._mp.gamma(self.real(value))

    def _binomial(self, top: Value, bottom: Value) -> Value:
        whole = all(isinstance(value, Fraction) and value.denominator == 1 for value in (top, bottom))
        if whole and 0 <= top <= _MAX_FACTORIAL and bottom >= 0:
            return Fraction(math.comb(top.numerator, bottom.numerator))
        if whole and 0 <= bottom <= 100:
            value = Fraction(1)
            for k in range(bottom.numerator):
                value = bounded(value * (top - k) / (k + 1))
            return value
        if max(abs(top), abs(bottom)) > 10**9:
            raise Undefined
        return self._mp.binomial(self.real(top), self.real(bottom))
