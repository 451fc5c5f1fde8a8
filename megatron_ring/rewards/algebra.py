r"""Whether two formulas are one function, two equations one set: by their values, exact where they are rational.

Two formulas are equal when they have equal values at random points, which are chosen here and by nobody who writes
answers. A point counts where both are real, and at least a quarter of the points where the reference is real must count:
`\sqrt{x}^2` is `x`, `\sqrt{x^2}` is not. Values that are not rational are compared to 48 digits, and to up to 8,000 where
that is too coarse. Two equations (or inequalities) are equal when their sides' differences, cleared of denominators, are
multiples of each other by a constant.
"""

from __future__ import annotations

import re
from fractions import Fraction

from megatron_ring.rewards.exact import PlainNumber, numbers_agree
from megatron_ring.rewards.formula import Node, Reading, as_products, variables
from megatron_ring.rewards.formula_parser import parse
from megatron_ring.rewards.formula_values import Evaluator
from megatron_ring.rewards.points import (
    ENOUGH,
    LADDER,
    as_fraction,
    close,
    constant,
    contains,
    difference_of,
    is_real,
    points,
    positive,
    value_at,
    values_at,
)
from megatron_ring.rewards.rationals import TooCoarse, Undefined
from megatron_ring.rewards.relations import relations_agree
from megatron_ring.rewards.value_arithmetic import Value

_MAX_VARIABLES = 12
_RELATION = re.compile(r"[{}]|<|>|=|\\le(?![A-Za-z])|\\ge(?![A-Za-z])|\\ne(?![A-Za-z])")


class Unreadable(Exception):
    """A side that is not understood; `side` is "reference" or "given"."""

    def __init__(self, side: str) -> None:
        super().__init__(side)
        self.side = side


def agree(reference: str, given: str) -> bool:
    """Whether two texts without structure are equal: formulas, equations or inequalities.

    Raises:
        Unreadable: one of them is no formula known here.
    """
    (wanted, signs), (got, others) = _sides(reference, "reference"), _sides(given, "given")
    if len(signs) != len(others):
        return False
    if not signs:
        return formulas_agree(wanted[0], got[0])
    if len(signs) > 1:
        return signs == others and all(map(formulas_agree, wanted, got))
    return relations_agree(wanted, signs[0], got, others[0])


def formulas_agree(reference: Reading, given: Reading) -> bool:
    """Whether two formulas have the same value wherever they have one, under one way of reading both."""
    readings = [(reference.loose, given.loose)]
    if reference.ambiguous or given.ambiguous:
        readings.append((reference.tight, given.tight))
    rounded = reference.rounded or given.rounded
    return any(
        _same_values(a, b, base) or (rounded and _same_to_the_digits(a, b, base))
        for a, b in readings
        for base in _bases(a, b)
    )


def _same_to_the_digits(reference: Node, given: Node, base: int) -> bool:
    """Whether two constants agree as decimals do, where one of them has a decimal in it."""
    if variables(reference) or variables(given):
        return False
    wanted, got, digits = values_at(reference, given, {}, base)
    if wanted is None or got is None or not (is_real(wanted) and is_real(got)):
        return False
    return numbers_agree(*(PlainNumber(as_fraction(value, digits), True) for value in (wanted, got)))


def same_family(reference: str, given: str, parameter: str) -> bool:
    """Whether two formulas linear in an integer parameter take the same set of values: `1+2k` and `2k-1`.

    Raises:
        Unreadable: one of them is no formula known here.
    """
    wanted, got = (_sides(text, side)[0][0].loose for text, side in ((reference, "reference"), (given, "given")))
    if _same_values(wanted, got, 0):
        return True
    if variables(wanted) | variables(got) != {parameter}:
        return False
    try:
        evaluator = Evaluator({}, LADDER[0])
        starts, steps = zip(*(_progression(node, parameter, evaluator) for node in (wanted, got)), strict=True)
        if steps[0] == 0 or not any(close(steps[0], step, LADDER[0]) for step in (steps[1], -steps[1])):
            return False
        shift = evaluator.value(Node("divide", (difference_of(*starts), constant(steps[0]))))
        return bool(evaluator.value(difference_of(shift, evaluator.value(Node("call", (constant(shift),), "floor")))) == 0)
    except (TooCoarse, Undefined):
        return False


def rounds_to(exact: str, decimal: PlainNumber) -> bool:
    """Whether a decimal is a formula's value, rounded or cut off to the digits that it is written with.

    Raises:
        Unreadable: the formula is none known here.
    """
    reading = parse(exact)
    if reading is None or variables(reading.loose):
        raise Unreadable("given")
    try:
        evaluator = Evaluator({}, LADDER[0])
        value = evaluator.value(reading.loose)
        if not is_real(value):
            return False
        difference = evaluator.real(evaluator.value(difference_of(value, decimal.value)))
        step = evaluator.real(decimal.step)
        cut_off = 0 <= (difference if decimal.value > 0 else -difference) < step
        return bool(2 * abs(difference) <= step or cut_off)
    except (TooCoarse, Undefined):
        return False


def _progression(node: Node, parameter: str, evaluator: Evaluator) -> tuple[Value, Value]:
    """The value at 0 and the step of a formula that is linear in the parameter; `Undefined` for another."""
    start, one, two = (Evaluator({parameter: Fraction(k)}, LADDER[0]).value(node) for k in (0, 1, 2))
    step = evaluator.value(difference_of(one, start))
    if evaluator.value(difference_of(evaluator.value(difference_of(two, one)), step)) != 0:
        raise Undefined
    return start, step


def _sides(text: str, side: str) -> tuple[list[Reading], list[str]]:
    """What stands between signs of relation outside all braces, and those signs."""
    parts, signs, start, depth = [], [], 0, 0
    for match in _RELATION.finditer(text):
        if match[0] in "{}":
            depth += 1 if match[0] == "{" else -1
        elif depth == 0:
            parts.append(text[start : match.start()])
            signs.append(match[0])
            start = match.end()
    readings = []
    for part in (*parts, text[start:]):
        reading = parse(part.strip())
        if reading is None:
            raise Unreadable(side)
        readings.append(reading)
    return readings, signs


def _bases(a: Node, b: Node) -> tuple[int, ...]:
    r"""What `\log` may mean: the natural logarithm, or that to the base 10."""
    return (0, 10) if any(contains(node, _bare_log) for node in (a, b)) else (0,)


def _bare_log(node: Node) -> bool:
    return node.kind == "call" and node.name == "log" and len(node.parts) == 1


def _same_values(reference: Node, given: Node, base: int) -> bool:
    reference, given = as_products(reference, given)
    names = variables(reference) | variables(given)
    if len(names) > _MAX_VARIABLES:
        return False
    whole = (_whole_names(reference) | _whole_names(given)) & names
    imaginary = any(contains(node, lambda part: part.kind == "constant" and part.name == "i") for node in (reference, given))
    real = defined = complex_pairs = 0
    differ_complex = False
    for point in points(names, whole):
        wanted, got, digits = values_at(reference, given, point, base)
        defined += wanted is not None and is_real(wanted)
        if wanted is None or got is None:
            if not names:
                return False
            continue
        same = close(wanted, got, digits)
        if is_real(wanted) and is_real(got):
            if not same:
                return False
            real += 1
        elif imaginary and not same:
            return False
        elif is_real(wanted) == is_real(got):
            complex_pairs += same
            differ_complex |= not same
        if not names:
            return same and _confirmed(reference, given, base)
        if real + (complex_pairs if imaginary else 0) >= ENOUGH:
            break
    if real + (complex_pairs if imaginary else 0) >= min(ENOUGH, 3):
        return 4 * (real + complex_pairs) >= defined
    return not defined and complex_pairs >= 3 and not differ_complex


def _confirmed(reference: Node, given: Node, base: int) -> bool:
    r"""Whether two constants that are equal as far as they were worked out are still equal far beyond: `\sin 10^{-30}` is
    not `10^{-30}`. What takes computer algebra is not worked out again."""
    if any(contains(node, lambda part: part.kind in ("sum", "product", "integral", "limit")) for node in (reference, given)):
        return True
    try:
        wanted, got = (value_at(node, {}, LADDER[1], base) for node in (reference, given))
    except TooCoarse:
        return True
    return wanted is None or got is None or close(wanted, got, LADDER[1])


def _whole_names(node: Node) -> set[str]:
    """Variables that stand where only whole numbers make sense: under a factorial, as the power of a negative number."""
    found = set().union(*(_whole_names(part) for part in node.parts)) if node.parts else set()
    if node.kind in ("factorial", "binomial") or (node.kind == "power" and _negative(node.parts[0])):
        found |= set().union(*(variables(part) for part in node.parts))
    if node.kind in ("sum", "product"):
        found |= variables(node.parts[1]) | variables(node.parts[2])
    if node.kind == "call" and node.name in ("gcd", "lcm"):
        found |= variables(node)
    return found


def _negative(node: Node) -> bool:
    return not variables(node) and positive(Node("negate", (node,)))
