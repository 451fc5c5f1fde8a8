"""Infinite sums, definite integrals and limits of one variable, by SymPy. Slow, and may hang: for a worker alone."""

from __future__ import annotations

from functools import cache
from typing import Any

from megatron_ring.rewards.formula import UNKNOWN, Node
from megatron_ring.rewards.loading import loading

_CALLS = {"abs": "Abs", "ln": "log", "log": "log", "ceil": "ceiling", "max": "Max", "min": "Min"}


def closed_form(node: Node, digits: int) -> Any:
    """The value of a large operator without free variables, to so many digits.

    Raises:
        ValueError: SymPy finds none, or it is no finite number.
    """
    sympy = _library()
    variable = sympy.Symbol(node.parts[0].name, real=True)
    low = _sympy(node.parts[1])
    if node.kind == "limit":
        value = sympy.limit(_sympy(node.parts[2]), variable, low)
    else:
        operation = {"sum": sympy.summation, "product": sympy.product, "integral": sympy.integrate}[node.kind]
        value = operation(_sympy(node.parts[3]), (variable, low, _sympy(node.parts[2])))
    unfinished = (sympy.Sum, sympy.Product, sympy.Integral, sympy.Limit)
    if not isinstance(value, sympy.Expr) or value.free_symbols or value.has(*unfinished) or not value.is_finite:
        raise ValueError("no closed form")
    return sympy.N(value, digits)._to_mpmath(int(digits * 3.4))


@cache
def _library() -> Any:
    """SymPy, with what its first integral and its first limit load besides."""
    with loading():
        import sympy

        x = sympy.Symbol("x", real=True)
        sympy.integrate(x, (x, 0, 1))
        sympy.limit(sympy.sin(x) / x, x, 0)
    return sympy


def _sympy(node: Node) -> Any:
    sympy = _library()
    if node.kind == "number":
        return sympy.Rational(node.value.numerator, node.value.denominator)
    if node.kind == "symbol":
        return sympy.Symbol(node.name, real=True)
    if node.kind == "constant":
        return {"pi": sympy.pi, "e": sympy.E, "i": sympy.I, "\\infty": sympy.oo}[node.name]
    if node.kind in ("sum", "product", "integral", "limit"):
        raise ValueError("one large operator inside another")
    parts = [_sympy(part) for part in node.parts]
    if node.kind == "add":
        return sympy.Add(*parts)
    if node.kind == "negate":
        return -parts[0]
    if node.kind == "multiply":
        return parts[0] * parts[1]
    if node.kind == "divide":
        return parts[0] / parts[1]
    if node.kind == "power":
        return parts[0] ** parts[1]
    if node.kind == "root":
        return parts[0] ** (1 / parts[1])
    if node.kind == "factorial":
        return sympy.factorial(parts[0])
    if node.kind == "binomial":
        return sympy.binomial(*parts)
    if node.name.startswith(UNKNOWN):
        raise ValueError("a function of which nothing is known")
    name = _CALLS.get(node.name, node.name.replace("arc", "a"))
    return getattr(sympy, name)(*parts)
