"""Values of formulas at random points, which are chosen here and by nobody who writes answers."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from fractions import Fraction

from megatron_ring.rewards.formula import Node, subtract
from megatron_ring.rewards.formula_values import Evaluator
from megatron_ring.rewards.rationals import TooCoarse, Undefined
from megatron_ring.rewards.value_arithmetic import Value

LADDER = (60, 400, 2500, 8000)  # digits
ENOUGH = 8  # that must agree
_TRIES = 48
_SEED = 20231


def values_at(reference: Node, given: Node, point: dict[str, Value], base: int) -> tuple[Value | None, Value | None, int]:
    """Both values (None for one that is undefined), and the digits that they have."""
    for digits in LADDER:
        try:
            return value_at(reference, point, digits, base), value_at(given, point, digits, base), digits
        except TooCoarse:
            continue
    return None, None, digits


def value_at(node: Node, point: dict[str, Value], digits: int, base: int) -> Value | None:
    try:
        return Evaluator(point, digits, base).value(node)
    except Undefined:
        return None


def close(a: Value, b: Value, digits: int) -> bool:
    """Equal, exactly or to all but the last digits, in proportion to their size."""
    if a == b:
        return True
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return False
    a, b = (Evaluator({}, digits).real(value) if _short(value, digits) else value for value in (a, b))
    if isinstance(a, Fraction) or isinstance(b, Fraction):
        return False  # exact, with more digits than the other has
    return bool(abs(a - b) <= max(abs(a), abs(b)) * Evaluator({}, digits).real(Fraction(1, 10)) ** (digits - 12))


def _short(value: Value, digits: int) -> bool:
    return not isinstance(value, Fraction) or max(value.numerator.bit_length(), value.denominator.bit_length()) < 3 * digits


def is_real(value: Value) -> bool:
    return isinstance(value, Fraction) or not hasattr(value, "_mpc_")


def as_fraction(value: Value, digits: int) -> Fraction:
    """A real value as a fraction, to the digits that it has."""
    return value if isinstance(value, Fraction) else Fraction(value.context.nstr(value, digits))


def constant(value: Value) -> Node:
    return Node("number", value=value)


def points(names: set[str], whole: set[str]) -> Iterator[dict[str, Value]]:
    """Points of positive and negative, small and large numbers; one point where there are no variables."""
    if not names:
        yield {}
        return
    chance = random.Random(_SEED)
    ordered = sorted(names)
    for attempt in range(_TRIES):
        point: dict[str, Value] = {}
        for name in ordered:
            if name in whole:
                point[name] = Fraction(chance.randint(1, 24))
                continue
            size = Fraction(chance.randint(2, 97), chance.choice((1, 3, 7, 11, 13, 101, 307)))
            point[name] = -size if attempt % 2 and chance.random() < 0.6 else size
        yield point


def contains(node: Node, test: Callable[[Node], bool]) -> bool:
    return test(node) or any(contains(part, test) for part in node.parts)


def positive(node: Node) -> bool:
    try:
        value = value_at(node, {}, LADDER[0], 0)
    except TooCoarse:
        return False
    return value is not None and is_real(value) and bool(value > 0)


def difference_of(a: Value, b: Value) -> Node:
    return subtract(constant(a), constant(b))
