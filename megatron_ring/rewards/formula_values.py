"""Values of formulas: exact where they are rational, else to a stated number of digits, and never to fewer.

A sum in which a term is too small to leave a trace raises `TooCoarse`: `1-e^{-5000}` is not 1. What cancels to nothing
within the digits is zero. Everything is bounded; nothing of SymPy is used but in `symbolic`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from fractions import Fraction
from functools import lru_cache
from typing import Any

from megatron_ring.rewards.formula import UNKNOWN, Node, number
from megatron_ring.rewards.rationals import MAX_BITS, TooCoarse, Undefined, bits, bounded, exact_logarithm, exact_root

Value = Any  # a Fraction where it is known exactly, else a real or complex number of mpmath's

_MAX_FACTORIAL = 5000
_MAX_TERMS = 5000
_MAX_EXPONENT = 10**8  # of e
_GUARD = 12  # decimal digits that rounding may spoil


@lru_cache(maxsize=8)
def _context(digits: int) -> Any:
    import mpmath

    context = mpmath.MPContext()
    context.dps = digits
    return context


class Evaluator:
    """Works out formulas at one point.

    Args:
        point: the variables' values.
        digits: decimal digits of what is not rational.
        base: of a logarithm that names none: 10, or 0 for e.
    """

    def __init__(self, point: Mapping[str, Value], digits: int, base: int = 0) -> None:
        self._point, self._digits, self._base = point, digits, base
        self._mp = _context(digits)
        self._noise = self._mp.mpf(10) ** (_GUARD - digits)

    def value(self, node: Node) -> Value:
        """The value of a formula.

        Raises:
            Undefined, TooCoarse: see there.
        """
        try:
            return self._value(node)
        except (ZeroDivisionError, ValueError, OverflowError, TypeError, NotImplementedError, ArithmeticError):
            raise Undefined from None
        except Exception as error:  # mpmath's own, which have no common base
            if type(error).__module__.startswith("mpmath"):
                raise Undefined from None
            raise

    def _value(self, node: Node) -> Value:
        kind = node.kind
        if kind == "number":
            return node.value
        if kind == "symbol":
            if node.name not in self._point:
                raise Undefined
            return self._point[node.name]
        if kind == "constant":
            return self._constant(node.name)
        if kind in ("sum", "product", "integral", "limit"):
            return self._large(node)
        parts = [self._value(part) for part in node.parts]
        if kind == "add":
            return self._add(parts)
        if kind == "negate":
            return -parts[0]
        if kind == "multiply":
            return self._multiply(*parts)
        if kind == "divide":
            return self._divide(*parts)
        if kind == "power":
            return self._power(*parts)
        if kind == "root":
            return self._root(*parts)
        if kind == "factorial":
            return self._factorial(parts[0])
        if kind == "binomial":
            return self._binomial(*parts)
        return self._call(node.name, parts)

    def _constant(self, name: str) -> Value:
        if name == "pi":
            return +self._mp.pi
        if name == "e":
            return +self._mp.e
        if name == "i":
            return self._mp.mpc(0, 1)
        raise Undefined

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
        if size * (1 + abs(self._mp.log(abs(self.real(base))))) > _MAX_EXPONENT:
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

    def _call(self, name: str, values: list[Value]) -> Value:
        if name.startswith(UNKNOWN):
            return self._value(_stand_in(name, values))
        if name in ("max", "min", "gcd", "lcm"):
            return self._listed(name, values)
        x = values[0]
        if name == "abs":
            return abs(x)
        if name in ("floor", "ceil"):
            return self._whole(name, x)
        if name == "exp":
            return self._power(self._constant("e"), x) if x != 0 else Fraction(1)
        if name in ("ln", "log", "lg"):
            return self._logarithm(name, values)
        if x == 0 and name in ("sin", "tan", "sinh", "tanh", "arcsin", "arctan", "arcsinh", "arctanh"):
            return Fraction(0)
        if x == 0 and name in ("cos", "sec", "cosh"):
            return Fraction(1)
        number = self.real(x)
        if (name in ("sinh", "cosh", "tanh", "coth") and abs(number) > _MAX_EXPONENT) or abs(number) > 10**30:
            raise Undefined
        reciprocal = {"cot": "tan", "sec": "cos", "csc": "sin", "coth": "tanh"}
        own = {name: name.replace("arc", "a") for name in ("arcsin", "arccos", "arctan", "arcsinh", "arccosh", "arctanh")}
        if name in ("arccot", "arcsec", "arccsc"):
            inverse = {"arccot": "atan", "arcsec": "acos", "arccsc": "asin"}[name]
            if number == 0:
                raise Undefined
            return getattr(self._mp, inverse)(1 / number) + (self._mp.pi if name == "arccot" and number < 0 else 0)
        value = getattr(self._mp, own.get(name, reciprocal.get(name, name)))(number)
        value = self._tidied(value, max(1, abs(number)) if abs(number) > self._noise else abs(number))
        return self._divide(Fraction(1), value) if name in reciprocal else value

    def _logarithm(self, name: str, values: list[Value]) -> Value:
        x = values[0]
        if x == 0:
            raise Undefined
        if isinstance(x, Fraction) and x == 1:
            return Fraction(0)
        base = values[1] if len(values) > 1 else Fraction(10) if name == "lg" or (name == "log" and self._base) else None
        if isinstance(x, Fraction) and isinstance(base, Fraction):
            exact = exact_logarithm(x, base)
            if exact is not None:
                return exact
        number = self.real(x)
        value = self._mp.log(number)
        if isinstance(x, Fraction) and abs(value) < self._mp.sqrt(self._noise):
            raise TooCoarse
        value = self._tidied(value, 1)
        return value if base is None else self._divide(value, self._logarithm("ln", [base]))

    def _whole(self, name: str, value: Value) -> Value:
        if isinstance(value, Fraction):
            return Fraction(math.floor(value) if name == "floor" else math.ceil(value))
        nearest = self._mp.nint(value)
        if abs(nearest) > 10**30:
            raise TooCoarse
        if abs(value - nearest) > self._noise * (1 + abs(value)):
            nearest = self._mp.floor(value) if name == "floor" else self._mp.ceil(value)
        return Fraction(int(nearest))

    def _listed(self, name: str, values: list[Value]) -> Value:
        if name in ("max", "min"):
            best = values[0]
            for value in values[1:]:
                larger = self._add([value, -best]) > 0
                best = value if larger == (name == "max") else best
            return best
        if any(not isinstance(value, Fraction) or value.denominator != 1 for value in values):
            raise Undefined
        whole = [value.numerator for value in values]
        return Fraction(math.gcd(*whole) if name == "gcd" else math.lcm(*whole))

    def _large(self, node: Node) -> Value:
        """A finite sum or product of few terms, added up; anything else by computer algebra."""
        if node.kind in ("sum", "product") and node.parts[2].name != "\\infty":
            low, high = self._value(node.parts[1]), self._value(node.parts[2])
            if not (isinstance(low, Fraction) and isinstance(high, Fraction) and low.denominator == high.denominator == 1):
                raise Undefined
            if high - low >= _MAX_TERMS:
                raise Undefined
            total = Fraction(int(node.kind == "product"))
            for k in range(low.numerator, high.numerator + 1):
                inner = Evaluator({**self._point, node.parts[0].name: Fraction(k)}, self._digits, self._base)
                term = inner._value(node.parts[3])
                total = self._add([total, term]) if node.kind == "sum" else self._multiply(total, term)
            return total
        from megatron_ring.rewards.symbolic import closed_form

        return self._mp.mpmathify(closed_form(node, self._digits))


def _stand_in(name: str, values: list[Value]) -> Node:
    """Some function for one of which nothing is known, like no other and with no property of its own."""
    chance = random.Random(name)
    terms = []
    for value in values:
        argument = Node("number", value=value)
        cube = Node("multiply", (number(chance.randint(2, 99)), Node("power", (argument, number(3)))))
        bell = Node("add", (Node("power", (argument, number(2))), number(chance.randint(2, 99))))
        terms += [cube, Node("divide", (number(chance.randint(2, 99)), bell))]
    return Node("add", tuple(terms))
