"""Values of formulas: exact where they are rational, else to a stated number of digits, and never to fewer.

A sum in which a term is too small to leave a trace raises `TooCoarse`: `1-e^{-5000}` is not 1. What cancels to nothing
within the digits is zero. Everything is bounded; nothing of SymPy is used but in `symbolic`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from fractions import Fraction

from megatron_ring.rewards.formula import UNKNOWN, Node, number
from megatron_ring.rewards.rationals import TooCoarse, Undefined, exact_logarithm
from megatron_ring.rewards.value_arithmetic import MAX_EXPONENT, Value, ValueArithmetic

_MAX_TERMS = 5000


class Evaluator(ValueArithmetic):
    """Works out formulas at one point.

    Args:
        point: the variables' values.
        digits: decimal digits of what is not rational.
        base: of a logarithm that names none: 10, or 0 for e.
    """

    def __init__(self, point: Mapping[str, Value], digits: int, base: int = 0) -> None:
        super().__init__(digits)
        self._point, self._base = point, base

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
        if (name in ("sinh", "cosh", "tanh", "coth") and abs(number) > MAX_EXPONENT) or abs(number) > 10**30:
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
