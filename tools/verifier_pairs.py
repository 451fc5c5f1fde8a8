"""Pairs of answers whose equality is known: from SymPy, exact fractions, or how they were made. None uses a verifier."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import sympy


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
    pairs = []
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
    big, small = chance.choice((("R", "r"), ("N", "n"), ("A", "a"), ("M", "m"), ("P", "p"), ("V", "v"), ("K", "k"), ("X", "x")))
    x, y = sympy.Symbol(big), sympy.Symbol(small)
    p, q = chance.randint(1, 6), chance.randint(1, 6)
    shapes = [p * (x**2 - y**2), p * x * y**2 + q, (x + p * y) * (x - q), x / (y + p), p * x**2 + q * y, sympy.sqrt(x + p) * y]
    reference = chance.choice(shapes)
    swapped = reference.subs({x: y, y: x}, simultaneous=True)
    lowered = reference.subs(x, y)
    return _pair(chance, reference, sympy.expand(reference), chance.choice((swapped, lowered)))


def _unit_letters(chance: random.Random) -> tuple[str, str, str, bool]:
    t = sympy.Symbol(chance.choice("tmsghKJNVWALCFTHk"))
    a, b, c = chance.randint(2, 40), chance.randint(1, 20), chance.randint(1, 9)
    reference = chance.choice([a - b * t, t**2 - b * t, (t - b) * (t + c), b * t**3, a + sympy.Rational(b, c) * t, t**2 / b, a / t])
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


def _numbers(chance: random.Random, count: int) -> list[Fraction]:
    found: set[Fraction] = set()
    while len(found) < count:
        found.add(Fraction(chance.randint(-40, 40), chance.choice((1, 1, 2, 3, 4, 5))))
    return list(found)


def _written(chance: random.Random, value: Fraction) -> str:
    """A fraction in one of its spellings."""
    top, bottom = value.numerator, value.denominator
    if bottom == 1:
        return chance.choice((str(top), rf"\frac{{{2 * top}}}{{2}}", str(top)))
    ways = [f"{top}/{bottom}", rf"\frac{{{top}}}{{{bottom}}}", rf"\frac{{{3 * top}}}{{{3 * bottom}}}"]
    if top < 0:
        ways.append(rf"-\frac{{{-top}}}{{{bottom}}}")
    if bottom in (2, 4, 5):
        ways.append(f"{float(value)}")
    return chance.choice(ways)


def _sets(chance: random.Random) -> tuple[str, str, str, bool]:
    values = _numbers(chance, chance.randint(2, 5))
    other = values.copy()
    chance.shuffle(other)
    change = chance.randrange(6)
    equal = change < 3
    if change == 3:
        other.pop()
    elif change == 4:
        other.append(Fraction(77))
    elif change == 5:
        other[0] += 1 + 80
    reference, given = (", ".join(_written(chance, value) for value in part) for part in (values, other))
    style = chance.randrange(4)
    if style == 0:
        return "math", rf"\{{{reference}\}}", rf"\{{{given}\}}", equal
    if style == 1:
        return "math", rf"\{{{reference}\}}", given, equal
    if style == 2:
        if chance.random() < 0.3:  # a repeated member
            return "math", f"{reference}, {_written(chance, values[0])}", given, False
        return "math", reference, given.replace(", ", r" \text{ or } ") if len(other) == 2 else given, equal
    ordered = [_written(chance, value) for value in values]
    again = [_written(chance, value) for value in other]
    return "math", f"({', '.join(ordered)})", f"({', '.join(again)})", values == other


def _intervals(chance: random.Random) -> tuple[str, str, str, bool]:
    low, high = sorted(_numbers(chance, 2))
    left, right = chance.choice("(["), chance.choice(")]")
    reference = f"{left}{_written(chance, low)}, {_written(chance, high)}{right}"
    signs = {"(": "<", "[": r"\le"}, {")": "<", "]": r"\le"}
    change = chance.randrange(4)
    l, r, a, b = left, right, low, high
    if change == 1:
        l = "(" if left == "[" else "["
    elif change == 2:
        b = high + 1
    elif change == 3:
        r = ")" if right == "]" else "]"
    a_text, b_text = _written(chance, a), _written(chance, b)
    given = f"{l}{a_text}, {b_text}{r}"
    if chance.random() < 0.5:
        given = f"{a_text} {signs[0][l]} x {signs[1][r]} {b_text}"
    elif l == "(" and r == ")" and chance.random() < 0.7:
        centre, radius = (a + b) / 2, (b - a) / 2
        sign = "-" if centre >= 0 else "+"
        given = f"|x {sign} {_written(chance, abs(centre))}| < {_written(chance, radius)}"
    return "math", reference, given, change == 0


def _named(chance: random.Random) -> tuple[str, str, str, bool]:
    names = chance.choice((("x", "y"), ("a", "b"), ("x", "y", "z"), ("a", "b", "c"), ("p", "q"), ("x_1", "x_2"), ("m", "n")))
    values = _numbers(chance, len(names))
    order = list(range(len(names)))
    chance.shuffle(order)
    wrong = chance.random() < 0.5
    shown = values.copy()
    if wrong:
        shown = [*values[1:], values[0]]
    given = ", ".join(f"{names[place]} = {_written(chance, shown[place])}" for place in order)
    if chance.random() < 0.5:
        reference = f"({', '.join(_written(chance, value) for value in values)})"
    else:
        reference = ", ".join(f"{name}={_written(chance, value)}" for name, value in zip(names, values, strict=True))
    if chance.random() < 0.3:
        given = rf"\begin{{cases}} {given.replace(', ', chr(92) * 2 + ' ')} \end{{cases}}"
    return "math", reference, given, not wrong


def _percents(chance: random.Random) -> tuple[str, str, str, bool]:
    value = Fraction(chance.randint(1, 400), chance.choice((1, 2, 4, 5, 10)))
    share = value / 100
    p, s = (f"{float(part):g}" for part in (value, share))
    small = value <= 1
    rows = [
        (rf"{p}\%", p, True),
        (rf"{p}\%", s, True),
        (s, rf"{p}\%", True),
        (p, rf"{p}\%", not small),
        (rf"{p}\%", rf"{p}^\circ", False),
        (rf"{p}^\circ", rf"{p}\%", False),
        (rf"{p}^\circ", p, True),
        (rf"{p}\%", rf"{float(value + 1):g}\%", False),
        (s, rf"{s}\%", share > 1),
        (rf"{p}^\circ", sympy.latex(sympy.pi * sympy.Rational(value.numerator, value.denominator * 180)), True),
    ]
    return "math", *chance.choice(rows)


def _equations(chance: random.Random) -> tuple[str, str, str, bool]:
    x, y = sympy.symbols("x y")
    a, b, c, k = chance.randint(1, 9), chance.randint(1, 9), chance.randint(1, 30), chance.choice((-3, -1, 2, 5))
    left, right = chance.choice([(a * x + b * y, c), (x**2 + a * x + y**2, c), (a * x**2 + b * y**2, c), (y - b, a * (x - c)), (x * y, c)])
    right = sympy.sympify(right)
    equal = chance.random() < 0.5
    shift = 0 if equal else 1
    given_left, given_right = sympy.expand(k * (left - right)) + shift * k, sympy.Integer(0)
    if chance.random() < 0.5:
        part = sympy.expand(k * x * b)
        given_left, given_right = given_left + part, given_right + part
    write = lambda formula: _spelled(chance, formula, False)  # noqa: E731
    return "math", f"{write(left)}={write(right)}", f"{write(given_left)}={write(given_right)}", equal


def _decimals(chance: random.Random) -> tuple[str, str, str, bool]:
    value = Fraction(chance.randint(1, 10**6), chance.choice((1, 2, 4, 5, 8, 10, 100)))
    top, bottom = value.numerator, value.denominator
    text = f"{float(value)}".removesuffix(".0")
    other = value + chance.choice((Fraction(1, 100), Fraction(1), -Fraction(1, 10)))
    grouped = f"{top:,}"
    right = [rf"\frac{{{top}}}{{{bottom}}}", text, text + (".0" if "." not in text else "0"), f"{top}/{bottom}"]
    if bottom == 1:
        right += [grouped, grouped.replace(",", r"\,"), grouped.replace(",", "{,}"), rf"\${grouped}"]
    wrong = [f"{float(other)}", text + r"\cdot 10", rf"{text}|{text}1", rf"{text} \text{{ or }} {float(other)}", rf"{text}\\{float(other)}"]
    wrong += [rf"{text} \approx {float(other)}", rf"{text} 或 {float(other)}", rf"{text}; {float(other)}", f"{text} {float(other)}"]
    equal = chance.random() < 0.5
    return "math", text, chance.choice(right if equal else wrong), equal


_UNITS: tuple[tuple[str, str, Fraction | None], ...] = (
    ("m", "cm", Fraction(100)), ("m", r"\text{mm}", Fraction(1000)), ("kWh", "MJ", Fraction(18, 5)), ("Ah", "C", Fraction(3600)),
    ("k\\Omega", "ohm", Fraction(1000)), ("kohm", "\\Omega", Fraction(1000)), ("m/s^2", r"\frac{\text{m}}{\text{s}^2}", Fraction(1)),
    ("W/(m^2 K^4)", r"\mathrm{W\,m^{-2}\,K^{-4}}", Fraction(1)), ("J/(mol K)", "J/mol·K", Fraction(1)),
    ("kg m^2/s^2", "J", Fraction(1)), ("mW", "MW", None), ("mA", "MA", None), ("m/s", "m/s^2", None), ("J", "J/mol", None),
    ("cm^2", "cm?", None), ("kg", "kPa", None), ("N m", r"\text{N}\cdot\text{m}", Fraction(1)), ("L", "cm^3", Fraction(1000)),
    ("km/h", r"\frac{\text{km}}{\text{h}}", Fraction(1)), ("g/cm^3", r"\text{g}\,\text{cm}^{-3}", Fraction(1)),
)  # fmt: skip


def _quantities(chance: random.Random) -> tuple[str, str, str, bool]:
    unit, other, scale = chance.choice(_UNITS)
    number = Fraction(chance.randint(2, 90))
    equal = scale is not None and chance.random() < 0.6
    value = number * (scale or 1) * (1 if equal or scale is None else Fraction(3, 2))
    return "science", f"{number} {unit}", rf"{_plain_number(value)}\ {other}", equal


def _plain_number(value: Fraction) -> str:
    return str(value.numerator) if value.denominator == 1 else f"{float(value):.10g}"


def _integers_of(chance: random.Random) -> tuple[str, str, str, bool]:
    """Solution sets over the integers."""
    top, bottom, period = chance.randint(1, 11), 12, chance.choice((1, 2))
    shift = chance.randint(-2, 2)
    start = Fraction(top, bottom)
    equal = chance.random() < 0.5
    other = start + shift * period + (0 if equal else Fraction(1, 5))
    step = "" if period == 1 else str(period)
    tails = (r", k \in \mathbb{Z}", r", k\in\mathbb Z", r"\ (k \in \mathbb{Z})", r" \text{ where } k \in \mathbb{Z}")
    name = chance.choice("kn")
    given = rf"x = {_times_pi(other)} + {step}{name}\pi" + chance.choice(tails).replace("k", name)
    return "math", rf"x = {_times_pi(start)} + {step}k\pi, k \in \mathbb{{Z}}", given, equal


def _times_pi(value: Fraction) -> str:
    if value == 0:
        return "0"
    return rf"{'-' if value < 0 else ''}\frac{{{abs(value.numerator)}\pi}}{{{value.denominator}}}"


def _closed_forms(chance: random.Random) -> tuple[str, str, str, bool]:
    n = chance.randint(3, 40)
    rows = [
        (rf"\sum_{{k=1}}^{{{n}}} k^2", str(sum(k * k for k in range(1, n + 1)))),
        (rf"\prod_{{k=1}}^{{{n}}} k", str(math.factorial(n))),
        (rf"\binom{{{n}}}{{2}}", str(math.comb(n, 2))),
        (rf"{{{n} \choose 3}}", str(math.comb(n, 3))),
        (rf"\lfloor \frac{{{7 * n}}}{{4}} \rfloor", str(7 * n // 4)),
        (rf"\gcd({n * 6}, {n * 15})", str(n * 3)),
        (rf"|{n} - {3 * n}|", str(2 * n)),
        (rf"\log_2 {2**n}", str(n)),
        (rf"\frac{{{n}!}}{{{n - 2}!}}", str(n * (n - 1))),
    ]
    form, value = chance.choice(rows)
    equal = chance.random() < 0.5
    return "math", value, form if equal else f"{form} + 1", equal


KINDS: dict[str, Callable[[random.Random], tuple[str, str, str, bool]]] = {
    "radicals": _radicals,
    "powers and factorials": _powers,
    "mixed-case algebra": _mixed_case,
    "unit-like letters": _unit_letters,
    "identities": _identities,
    "sets and tuples": _sets,
    "intervals": _intervals,
    "named values": _named,
    "per cent and degrees": _percents,
    "equations": _equations,
    "decimals and two answers": _decimals,
    "quantities": _quantities,
    "integer families": _integers_of,
    "closed forms": _closed_forms,
}
