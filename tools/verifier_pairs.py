"""Pairs of answers whose equality is known: from SymPy, exact fractions, or how they were made. None uses a verifier."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import sympy

from tools import verifier_pairs_plain


@dataclass(frozen=True, slots=True)
class Pair:
    """A reference, an answer, and whether they are equal."""

    kind: str
    domain: str
    reference: str
    given: str
    equal: bool


def generate(count: int, seed: int) -> list[Pair]:
    """So many pairs, all kinds in turn; the same for the same seed."""
    chance = random.Random(seed)
    makers = list(KINDS.items())
    pairs: list[Pair] = []
    while len(pairs) < count:
        name, maker = makers[len(pairs) % len(makers)]
        domain, reference, given, equal = maker(chance)
        pairs.append(Pair(name, domain, reference, given, equal))
    return pairs


def _same(a: Any, b: Any) -> bool:
    """SymPy's word, or where it has none sixty digits at a few points."""
    a, b = sympy.sympify(a), sympy.sympify(b)
    difference = sympy.expand(a - b)
    if difference == 0:
        return True
    symbols = sorted(a.free_symbols | b.free_symbols, key=str)
    for shift in (2, 5, 11):
        point = {symbol: sympy.Rational(shift + 3 * place, 7 + place) for place, symbol in enumerate(symbols)}
        left, right = (sympy.N(value.subs(point), 80, maxn=10_000) for value in (a, b))
        scale = max(abs(left), abs(right), sympy.Float("1e-4000", 80))
        if abs(left - right) > scale * sympy.Float("1e-60", 80):
            return False
    return True


def _spelled(chance: random.Random, expression: Any, plain: bool = True) -> str:
    """One of the ways in which models write a formula."""
    way = chance.randrange(5 if plain else 4)
    if way == 4:
        return str(expression).replace("**", "^")
    text = sympy.latex(expression, ln_notation=True)
    if way == 1:
        text = text.replace("\\frac", chance.choice(("\\dfrac", "\\tfrac")))
    elif way == 2:
        text = text.replace("\\left", "").replace("\\right", "")
    elif way == 3:
        text = text.replace(" ", chance.choice((" ", "\\,", "  ")))
    return text


def _pair(chance: random.Random, reference: Any, right: Any, wrong: Any, plain: bool = True) -> tuple[str, str, str, bool]:
    given = right if chance.random() < 0.5 else wrong
    return "math", _spelled(chance, reference, False), _spelled(chance, given, plain), _same(reference, given)


def _fraction(chance: random.Random, limit: int = 30) -> Any:
    return sympy.Rational(chance.randint(1, limit) * chance.choice((1, -1)), chance.randint(1, 12))


def _radicals(chance: random.Random) -> tuple[str, str, str, bool]:
    a, b = chance.randint(2, 400), chance.randint(2, 60)
    shape = chance.randrange(5)
    if shape == 0:  # k sqrt(n) against sqrt(k^2 n)
        k, n = chance.randint(2, 30), chance.randint(2, 50)
        equal = chance.random() < 0.5
        radicand = k * k * n + (0 if equal else chance.choice((-1, 1, k, n)))
        return "math", sympy.latex(k * sympy.sqrt(n)), rf"\sqrt{{{radicand}}}", equal
    if shape == 1:
        value = sympy.sqrt(sympy.Rational(a, b))
        given, wrong = rf"\sqrt{{\frac{{{a}}}{{{b}}}}}", rf"\sqrt{{\frac{{{b}}}{{{a}}}}}"
        equal = chance.random() < 0.5 or a == b
        return "math", sympy.latex(value), given if equal else wrong, equal
    if shape == 2:
        x = _fraction(chance) + _fraction(chance) * sympy.sqrt(chance.randint(2, 80))
        return _pair(chance, sympy.radsimp(1 / x), 1 / x, 1 / x + sympy.Rational(1, 1000))
    if shape == 3:
        x = sympy.sqrt(chance.randint(2, 60)) * sympy.sqrt(chance.randint(2, 60), evaluate=False)
        return _pair(chance, sympy.simplify(x), x, x * sympy.sqrt(2))
    index = chance.choice((3, 4, 5))
    x = sympy.root(a * 2**index, index)
    return _pair(chance, x, 2 * sympy.root(a, index), 2 * sympy.root(a + 1, index))


def _powers(chance: random.Random) -> tuple[str, str, str, bool]:
    n = chance.randint(30, 2100)
    forms = [
        (rf"\frac{{1}}{{{n}!}}", rf"\frac{{1}}{{{n + 1} \cdot {n}!}}", rf"\frac{{{n + 1}}}{{({n + 1})!}}"),
        (rf"1-2^{{-{n}}}", "1", rf"1-\frac{{1}}{{2^{{{n}}}}}"),
        (rf"10^{{{n % 90 + 8}}}+1", rf"10^{{{n % 90 + 8}}}", rf"1+10^{{{n % 90 + 8}}}"),
        (rf"e^{{-{n}}}", rf"e^{{-{n + 1}}}", rf"\frac{{1}}{{e^{{{n}}}}}"),
        (rf"1-e^{{-{n}}}", "1", rf"1-\frac{{1}}{{e^{{{n}}}}}"),
        (rf"2^{{{n}}}", rf"2^{{{n - 1}}}", rf"2 \cdot 2^{{{n - 1}}}"),
        (rf"\left(\frac{{5}}{{6}}\right)^{{{n}}}", "0", rf"\frac{{5^{{{n}}}}}{{6^{{{n}}}}}"),
        (rf"{n}!", rf"{n - 1}!", rf"{n} \cdot ({n - 1})!"),
        (rf"\binom{{{n}}}{{3}}", rf"\binom{{{n}}}{{4}}", rf"\frac{{{n}({n - 1})({n - 2})}}{{6}}"),
        (rf"3^{{{n}}}+2", rf"3^{{{n}}}", rf"2+3 \cdot 3^{{{n - 1}}}"),
        (rf"\frac{{{n}}}{{10^{{40}}}}", rf"\frac{{{n + 1}}}{{10^{{40}}}}", rf"{n} \cdot 10^{{-40}}"),
        (rf"\pi^{{{n % 40 + 2}}}", rf"\pi^{{{n % 40 + 3}}}", rf"\pi \cdot \pi^{{{n % 40 + 1}}}"),
    ]  # fmt: skip
    reference, wrong, right = chance.choice(forms)
    equal = chance.random() < 0.5
    return "math", reference, right if equal else wrong, equal


def _mixed_case(chance: random.Random) -> tuple[str, str, str, bool]:
    big, small = chance.choice(
        (("R", "r"), ("N", "n"), ("A", "a"), ("M", "m"), ("P", "p"), ("V", "v"), ("K", "k"), ("X", "x"))
    )
    x, y = sympy.Symbol(big), sympy.Symbol(small)
    p, q = chance.randint(1, 6), chance.randint(1, 6)
    shapes = [
        p * (x**2 - y**2),
        p * x * y**2 + q,
        (x + p * y) * (x - q),
        x / (y + p),
        p * x**2 + q * y,
        sympy.sqrt(x + p) * y,
    ]
    reference = chance.choice(shapes)
    swapped = reference.subs({x: y, y: x}, simultaneous=True)
    lowered = reference.subs(x, y)
    return _pair(chance, reference, sympy.expand(reference), chance.choice((swapped, lowered)))


def _unit_letters(chance: random.Random) -> tuple[str, str, str, bool]:
    t = sympy.Symbol(chance.choice("tmsghKJNVWALCFTHk"))
    a, b, c = chance.randint(2, 40), chance.randint(1, 20), chance.randint(1, 9)
    reference = chance.choice(
        [a - b * t, t**2 - b * t, (t - b) * (t + c), b * t**3, a + sympy.Rational(b, c) * t, t**2 / b, a / t]
    )
    wrong = chance.choice([sympy.Integer(a), sympy.Integer(b), reference + t, reference.subs(t, 1), reference - 1])
    return _pair(chance, reference, chance.choice([sympy.factor(reference), sympy.expand(reference)]), wrong)


def _identities(chance: random.Random) -> tuple[str, str, str, bool]:
    x, n = sympy.Symbol(chance.choice("xytu"), positive=True), chance.randint(2, 9)
    sin, cos, ln = sympy.sin, sympy.cos, sympy.log
    pairs = [
        (sin(2 * n * x), 2 * sin(n * x) * cos(n * x)),
        (sin(n * x) ** 2, 1 - cos(n * x) ** 2),
        (cos(2 * x) + n, 1 - 2 * sin(x) ** 2 + n),
        (ln(x**n), n * ln(x)),
        (ln(n * x), ln(n) + ln(x)),
        (sympy.exp(n * x), sympy.exp(x) ** n),
        (n**x * n, sympy.Integer(n) ** (x + 1)),
        (sympy.tan(x), sin(x) / cos(x)),
        (sympy.cosh(x), (sympy.exp(x) + sympy.exp(-x)) / 2),
        (x**n - 1, (x - 1) * sum(x**k for k in range(n))),
        (1 / (x - n) - 1 / (x + n), 2 * n / (x**2 - n**2)),
        (sympy.sqrt(x**2 + 2 * n * x + n**2 + 1), sympy.sqrt((x + n) ** 2 + 1)),
    ]
    reference, right = chance.choice(pairs)
    wrong = chance.choice([-right, right + sympy.Rational(1, 1000), right.subs(x, 2 * x), sympy.Integer(n)])
    return _pair(chance, reference, right, wrong)


def _equations(chance: random.Random) -> tuple[str, str, str, bool]:
    x, y = sympy.symbols("x y")
    a, b, c, k = chance.randint(1, 9), chance.randint(1, 9), chance.randint(1, 30), chance.choice((-3, -1, 2, 5))
    left, right = chance.choice(
        [(a * x + b * y, c), (x**2 + a * x + y**2, c), (a * x**2 + b * y**2, c), (y - b, a * (x - c)), (x * y, c)]
    )
    right = sympy.sympify(right)
    equal = chance.random() < 0.5
    shift = 0 if equal else 1
    given_left, given_right = sympy.expand(k * (left - right)) + shift * k, sympy.Integer(0)
    if chance.random() < 0.5:
        part = sympy.expand(k * x * b)
        given_left, given_right = given_left + part, given_right + part
    write = lambda formula: _spelled(chance, formula, False)  # noqa: E731
    return "math", f"{write(left)}={write(right)}", f"{write(given_left)}={write(given_right)}", equal


KINDS: dict[str, Callable[[random.Random], tuple[str, str, str, bool]]] = {
    "radicals": _radicals,
    "powers and factorials": _powers,
    "mixed-case algebra": _mixed_case,
    "unit-like letters": _unit_letters,
    "identities": _identities,
    "sets and tuples": verifier_pairs_plain.sets,
    "intervals": verifier_pairs_plain.intervals,
    "named values": verifier_pairs_plain.named,
    "per cent and degrees": verifier_pairs_plain.percents,
    "equations": _equations,
    "decimals and two answers": verifier_pairs_plain.decimals,
    "quantities": verifier_pairs_plain.quantities,
    "integer families": verifier_pairs_plain.integers_of,
    "closed forms": verifier_pairs_plain.closed_forms,
}
