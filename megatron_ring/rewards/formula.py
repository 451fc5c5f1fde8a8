"""A formula as a tree."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction

UNKNOWN = "unknown "  # before the name of a function of which nothing is known


@dataclass(frozen=True, slots=True)
class Node:
    """A formula or a part of one.

    Attributes:
        kind: number, symbol, constant (pi, e, i), add, negate, multiply, divide, power, root (radicand, index),
            factorial, binomial, call (with the function as name), or a large operator: sum, product, integral, limit
            (variable, bounds, body).
        parts: its operands.
        name: of a symbol, constant or function.
        value: of a number.
        rounded: a number written with a decimal point.
    """

    kind: str
    parts: tuple[Node, ...] = ()
    name: str = ""
    value: Fraction = Fraction(0)
    rounded: bool = False


@dataclass(frozen=True, slots=True)
class Reading:
    """A formula as read with a slash that ends at the next factor, and as read with one that takes the whole product."""

    loose: Node
    tight: Node
    rounded: bool

    @property
    def ambiguous(self) -> bool:
        """Whether the two differ."""
        return self.loose is not self.tight


def number(value: int | Fraction) -> Node:
    """A number's node."""
    return Node("number", value=Fraction(value))


def subtract(left: Node, right: Node) -> Node:
    """The difference of two formulas."""
    return Node("add", (left, Node("negate", (right,))))


def variables(node: Node) -> set[str]:
    """Names of the free variables."""
    if node.kind == "symbol":
        return {node.name}
    if node.kind in ("sum", "product", "integral", "limit"):
        bound = {node.parts[0].name}
        return (variables(node.parts[-1]) - bound).union(*(variables(part) for part in node.parts[1:-1]))
    return set().union(*(variables(part) for part in node.parts)) if node.parts else set()


def as_products(*nodes: Node) -> list[Node]:
    """The formulas with `g(x)` as a product where g stands alone somewhere in one of them: there it is a variable."""
    plain = set().union(*map(variables, nodes))
    return [_as_products(node, plain) for node in nodes]


def _as_products(node: Node, plain: set[str]) -> Node:
    parts = tuple(_as_products(part, plain) for part in node.parts)
    name = node.name.removeprefix(UNKNOWN)
    if node.kind == "call" and name != node.name and name in plain and len(parts) == 1:
        return Node("multiply", (Node("symbol", name=name), *parts))
    return replace(node, parts=parts)
