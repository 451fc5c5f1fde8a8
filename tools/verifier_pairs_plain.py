"""Pairs of sets, intervals, named values, numbers and quantities: equal or not by how they were made."""

from __future__ import annotations

import math
import random
from fractions import Fraction

import sympy


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


def sets(chance: random.Random) -> tuple[str, str, str, bool]:
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


def intervals(chance: random.Random) -> tuple[str, str, str, bool]:
    low, high = sorted(_numbers(chance, 2))
    left, right = chance.choice("(["), chance.choice(")]")
    reference = f"{left}{_written(chance, low)}, {_written(chance, high)}{right}"
    signs = {"(": "<", "[": r"\le"}, {")": "<", "]": r"\le"}
    change = chance.randrange(4)
    opening, closing, a, b = left, right, low, high
    if change == 1:
        opening = "(" if left == "[" else "["
    elif change == 2:
        b = high + 1
    elif change == 3:
        closing = ")" if right == "]" else "]"
    a_text, b_text = _written(chance, a), _written(chance, b)
    given = f"{opening}{a_text}, {b_text}{closing}"
    if chance.random() < 0.5:
        given = f"{a_text} {signs[0][opening]} x {signs[1][closing]} {b_text}"
    elif opening == "(" and closing == ")" and chance.random() < 0.7:
        centre, radius = (a + b) / 2, (b - a) / 2
        sign = "-" if centre >= 0 else "+"
        given = f"|x {sign} {_written(chance, abs(centre))}| < {_written(chance, radius)}"
    return "math", reference, given, change == 0


def named(chance: random.Random) -> tuple[str, str, str, bool]:
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


def percents(chance: random.Random) -> tuple[str, str, str, bool]:
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


def decimals(chance: random.Random) -> tuple[str, str, str, bool]:
    value = Fraction(chance.randint(1, 10**6), chance.choice((1, 2, 4, 5, 8, 10, 100)))
    top, bottom = value.numerator, value.denominator
    text = f"{float(value)}".removesuffix(".0")
    other = value + chance.choice((Fraction(1, 100), Fraction(1), -Fraction(1, 10)))
    grouped = f"{top:,}"
    right = [rf"\frac{{{top}}}{{{bottom}}}", text, text + (".0" if "." not in text else "0"), f"{top}/{bottom}"]
    if bottom == 1:
        right += [grouped, grouped.replace(",", r"\,"), grouped.replace(",", "{,}"), rf"\${grouped}"]
    wrong = [
        f"{float(other)}",
        text + r"\cdot 10",
        rf"{text}|{text}1",
        rf"{text} \text{{ or }} {float(other)}",
        rf"{text}\\{float(other)}",
    ]
    wrong += [
        rf"{text} \approx {float(other)}",
        rf"{text} 或 {float(other)}",
        rf"{text}; {float(other)}",
        f"{text} {float(other)}",
    ]
    equal = chance.random() < 0.5
    return "math", text, chance.choice(right if equal else wrong), equal


_UNITS: tuple[tuple[str, str, Fraction | None], ...] = (
    ("m", "cm", Fraction(100)),
    ("m", r"\text{mm}", Fraction(1000)),
    ("kWh", "MJ", Fraction(18, 5)),
    ("Ah", "C", Fraction(3600)),
    ("k\\Omega", "ohm", Fraction(1000)),
    ("kohm", "\\Omega", Fraction(1000)),
    ("m/s^2", r"\frac{\text{m}}{\text{s}^2}", Fraction(1)),
    ("W/(m^2 K^4)", r"\mathrm{W\,m^{-2}\,K^{-4}}", Fraction(1)),
    ("J/(mol K)", "J/mol·K", Fraction(1)),
    ("kg m^2/s^2", "J", Fraction(1)),
    ("mW", "MW", None),
    ("mA", "MA", None),
    ("m/s", "m/s^2", None),
    ("J", "J/mol", None),
    ("cm^2", "cm?", None),
    ("kg", "kPa", None),
    ("N m", r"\text{N}\cdot\text{m}", Fraction(1)),
    ("L", "cm^3", Fraction(1000)),
    ("km/h", r"\frac{\text{km}}{\text{h}}", Fraction(1)),
    ("g/cm^3", r"\text{g}\,\text{cm}^{-3}", Fraction(1)),
)


def quantities(chance: random.Random) -> tuple[str, str, str, bool]:
    unit, other, scale = chance.choice(_UNITS)
    number = Fraction(chance.randint(2, 90))
    equal = scale is not None and chance.random() < 0.6
    value = number * (scale or 1) * (1 if equal or scale is None else Fraction(3, 2))
    return "science", f"{number} {unit}", rf"{_plain_number(value)}\ {other}", equal


def _plain_number(value: Fraction) -> str:
    return str(value.numerator) if value.denominator == 1 else f"{float(value):.10g}"


def integers_of(chance: random.Random) -> tuple[str, str, str, bool]:
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


def closed_forms(chance: random.Random) -> tuple[str, str, str, bool]:
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
