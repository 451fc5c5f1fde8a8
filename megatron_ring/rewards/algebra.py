r"""Whether two formulas are one function, two equations one set: by their values, in exact arithmetic where they are rational.

Two formulas are equal when they have equal values at random points, which are chosen here and by nobody who writes
answers. A point counts where both are real, and at least a quarter of the points where the reference is real must count:
`\sqrt{x}^2` is `x`, `\sqrt{x^2}` is not. Values that are not rational are compared to 48 digits, and to up to 8,000 where
that is too coarse. Two equations (or inequalities) are equal when their sides' differences, cleared of denominators, are
multiples of each other by a constant.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from fractions import Fraction

from megatron_ring.rewards.exact import PlainNumber
from megatron_ring.rewards.formula import Node, Reading, parse, subtract, variables
from megatron_ring.rewards.formula_values import Evaluator, TooCoarse, Undefined, Value

_LADDER = (60, 400, 2500, 8000)  # digits
_POINTS = 8  # that must agree
_TRIES = 48
_MAX_VARIABLES = 12
_SEED = 20231
_RELATION = re.compile(r"[{}]|<|>|=|\\le(?![A-Za-z])|\\ge(?![A-Za-z])|\\ne(?![A-Za-z])")
_FLIPPED = {"<": ">", "\\le": "\\ge", ">": "<", "\\ge": "\\le", "=": "=", "\\ne": "\\ne"}


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
    return _related_agree(wanted, signs[0], got, others[0])


def formulas_agree(reference: Reading, given: Reading) -> bool:
    """Whether two formulas have the same value wherever they have one, under one way of reading both."""
    readings = [(reference.loose, given.loose)]
    if reference.ambiguous or given.ambiguous:
        readings.append((reference.tight, given.tight))
    return any(_same_values(a, b, base) for a, b in readings for base in _bases(a, b))


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
        evaluator = Evaluator({}, _LADDER[0])
        starts, steps = zip(*(_progression(node, parameter, evaluator) for node in (wanted, got)), strict=True)
        if steps[0] == 0 or not any(_close(steps[0], step, _LADDER[0]) for step in (steps[1], -steps[1])):
            return False
        shift = evaluator.value(Node("divide", (_difference(*starts), _constant(steps[0]))))
        return bool(evaluator.value(_difference(shift, evaluator.value(Node("call", (_constant(shift),), "floor")))) == 0)
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
        evaluator = Evaluator({}, _LADDER[0])
        value = evaluator.value(reading.loose)
        if not _is_real(value):
            return False
        difference = evaluator.real(evaluator.value(_difference(value, decimal.value)))
        step = evaluator.real(decimal.step)
        cut_off = 0 <= (difference if decimal.value > 0 else -difference) < step
        return bool(2 * abs(difference) <= step or cut_off)
    except (TooCoarse, Undefined):
        return False


def _progression(node: Node, parameter: str, evaluator: Evaluator) -> tuple[Value, Value]:
    """The value at 0 and the step of a formula that is linear in the parameter; `Undefined` for another."""
    start, one, two = (Evaluator({parameter: Fraction(k)}, _LADDER[0]).value(node) for k in (0, 1, 2))
    step = evaluator.value(_difference(one, start))
    if evaluator.value(_difference(evaluator.value(_difference(two, one)), step)) != 0:
        raise Undefined
    return start, step


def _difference(a: Value, b: Value) -> Node:
    return subtract(_constant(a), _constant(b))


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
    return (0, 10) if any(_contains(node, _bare_log) for node in (a, b)) else (0,)


def _bare_log(node: Node) -> bool:
    return node.kind == "call" and node.name == "log" and len(node.parts) == 1


def _contains(node: Node, test: Callable[[Node], bool]) -> bool:
    return test(node) or any(_contains(part, test) for part in node.parts)


def _same_values(reference: Node, given: Node, base: int) -> bool:
    names = variables(reference) | variables(given)
    if len(names) > _MAX_VARIABLES:
        return False
    whole = (_whole_names(reference) | _whole_names(given)) & names
    imaginary = any(_contains(node, lambda part: part.kind == "constant" and part.name == "i") for node in (reference, given))
    real = defined = complex_pairs = 0
    differ_complex = False
    for point in _points(names, whole):
        wanted, got, digits = _values(reference, given, point, base)
        defined += wanted is not None and _is_real(wanted)
        if wanted is None or got is None:
            if not names:
                return False
            continue
        same = _close(wanted, got, digits)
        if _is_real(wanted) and _is_real(got):
            if not same:
                return False
            real += 1
        elif imaginary and not same:
            return False
        elif _is_real(wanted) == _is_real(got):
            complex_pairs += same
            differ_complex |= not same
        if not names:
            return same
        if real + (complex_pairs if imaginary else 0) >= _POINTS:
            break
    if real + (complex_pairs if imaginary else 0) >= min(_POINTS, 3):
        return 4 * (real + complex_pairs) >= defined
    return not defined and complex_pairs >= 3 and not differ_complex


def _values(reference: Node, given: Node, point: dict[str, Value], base: int) -> tuple[Value | None, Value | None, int]:
    """Both values (None for one that is undefined), and the digits that they have."""
    for digits in _LADDER:
        try:
            return _value(reference, point, digits, base), _value(given, point, digits, base), digits
        except TooCoarse:
            continue
    return None, None, digits


def _value(node: Node, point: dict[str, Value], digits: int, base: int) -> Value | None:
    try:
        return Evaluator(point, digits, base).value(node)
    except Undefined:
        return None


def _close(a: Value, b: Value, digits: int) -> bool:
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


def _is_real(value: Value) -> bool:
    return isinstance(value, Fraction) or not hasattr(value, "_mpc_")


def _constant(value: Value) -> Node:
    return Node("number", value=value)


def _points(names: set[str], whole: set[str]) -> Iterator[dict[str, Value]]:
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
    return not variables(node) and _positive(Node("negate", (node,)))


def _positive(node: Node) -> bool:
    try:
        value = _value(node, {}, _LADDER[0], 0)
    except TooCoarse:
        return False
    return value is not None and _is_real(value) and bool(value > 0)


def _related_agree(wanted: list[Reading], sign: str, got: list[Reading], other: str) -> bool:
    left, right = (_cleared(subtract(sides[0].loose, sides[1].loose), sign in ("=", "\\ne")) for sides in (wanted, got))
    names = variables(left)
    if not names or names != variables(right):
        return False
    ratio: Value | None = None
    agreed = 0
    for point in _points(names, set()):
        values = _values(left, right, point, 0)
        if values[0] is None or values[1] is None:
            continue
        if (values[0] == 0) != (values[1] == 0):
            return False
        if values[0] == 0:
            continue
        try:
            now = Evaluator(point, values[2]).value(Node("divide", (_constant(values[0]), _constant(values[1]))))
        except (Undefined, TooCoarse):
            return False
        if not _is_real(now) or (ratio is not None and not _close(ratio, now, min(values[2], _LADDER[0]))):
            return False
        ratio, agreed = now, agreed + 1
        if agreed >= _POINTS:
            return other == (sign if sign in ("=", "\\ne") or now > 0 else _FLIPPED[sign])
    return False


def _cleared(node: Node, equation: bool) -> Node:
    """A formula times its denominator, which in an inequality may not change the sign."""
    top, bottom = _fraction(node)
    return top if equation or not variables(bottom) and _positive(bottom) else node


def _fraction(node: Node) -> tuple[Node, Node]:
    one = Node("number", value=Fraction(1))
    if node.kind == "negate":
        top, bottom = _fraction(node.parts[0])
        return Node("negate", (top,)), bottom
    if node.kind == "add":
        parts = [_fraction(part) for part in node.parts]
        top, bottom = parts[0]
        for above, below in parts[1:]:
            if below == bottom:
                top = Node("add", (top, above))
                continue
            top = Node("add", (Node("multiply", (top, below)), Node("multiply", (above, bottom))))
            bottom = Node("multiply", (bottom, below))
        return top, bottom
    if node.kind == "multiply":
        (a, b), (c, d) = map(_fraction, node.parts)
        return Node("multiply", (a, c)), Node("multiply", (b, d))
    if node.kind == "divide":
        (a, b), (c, d) = map(_fraction, node.parts)
        return Node("multiply", (a, d)), Node("multiply", (b, c))
    return node, one
