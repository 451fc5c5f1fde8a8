"""Whether two equations or inequalities are one: their sides' differences are multiples of each other by a constant."""

from __future__ import annotations

from fractions import Fraction

from megatron_ring.rewards.formula import Node, Reading, as_products, subtract, variables
from megatron_ring.rewards.formula_values import Evaluator
from megatron_ring.rewards.points import ENOUGH, LADDER, close, constant, is_real, points, positive, values_at
from megatron_ring.rewards.rationals import TooCoarse, Undefined
from megatron_ring.rewards.value_arithmetic import Value

_FLIPPED = {"<": ">", "\\le": "\\ge", ">": "<", "\\ge": "\\le", "=": "=", "\\ne": "\\ne"}


def relations_agree(wanted: list[Reading], sign: str, got: list[Reading], other: str) -> bool:
    sides = as_products(*(subtract(left.loose, right.loose) for left, right in (wanted, got)))
    left, right = (_cleared(side, sign in ("=", "\\ne")) for side in sides)
    names = variables(left)
    if not names or names != variables(right):
        return False
    ratio: Value | None = None
    agreed = 0
    for point in points(names, set()):
        values = values_at(left, right, point, 0)
        if values[0] is None or values[1] is None:
            continue
        if (values[0] == 0) != (values[1] == 0):
            return False
        if values[0] == 0:
            continue
        try:
            now = Evaluator(point, values[2]).value(Node("divide", (constant(values[0]), constant(values[1]))))
        except (Undefined, TooCoarse):
            return False
        if not is_real(now) or (ratio is not None and not close(ratio, now, min(values[2], LADDER[0]))):
            return False
        ratio, agreed = now, agreed + 1
        if agreed >= ENOUGH:
            return other == (sign if sign in ("=", "\\ne") or now > 0 else _FLIPPED[sign])
    return False


def _cleared(node: Node, equation: bool) -> Node:
    """A formula times its denominator, which in an inequality may not change the sign."""
    top, bottom = _fraction(node)
    return top if equation or (not variables(bottom) and positive(bottom)) else node


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
