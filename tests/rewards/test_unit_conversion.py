"""Our table of units against pint's: every symbol with every prefix, and products of them."""

from __future__ import annotations

import random
from collections import Counter
from fractions import Fraction
from typing import Any

import pint
import pytest

from megatron_ring.rewards.unit_conversion import BY_NAME_ONLY, KNOWN, Conversion, Powers, base_units, conversion_between

# Where our symbol is not pint's; there mcd is a millionth of a day.
THEIRS = {"Wh": "watt_hour", "Ah": "ampere_hour", "Ohm": "ohm", "Ang": "angstrom", "Torr": "torr", "mcd": "millicandela",
          "AU": "astronomical_unit", "amu": "dalton", "u": "dalton", "degC": "delta_degC", "degF": "delta_degF"}  # fmt: skip
SYMBOLS = sorted(KNOWN - BY_NAME_ONLY)
BASES = {"m": "[length]", "kg": "[mass]", "s": "[time]", "A": "[current]", "K": "[temperature]", "mol": "[substance]",
         "cd": "[luminosity]"}  # fmt: skip


@pytest.fixture(scope="module")
def registry() -> Any:
    return pint.UnitRegistry(cache_folder=None)


def theirs(registry: Any, unit: Powers) -> Any:
    powers: Counter[str] = Counter()
    for symbol, power in unit:
        ours = next((name for name in ("mcd", "Ohm", "Wh", "Ah") if symbol.endswith(name)), symbol)
        powers[registry.get_name(symbol.removesuffix(ours) + THEIRS.get(ours, ours))] += power
    return registry.Unit(pint.util.UnitsContainer({name: power for name, power in powers.items() if power}))


def test_every_symbol_is_what_it_is_in_pint(registry: Any) -> None:
    for symbol in SYMBOLS:
        (scale, dimension), unit = base_units(((symbol, 1),)), theirs(registry, ((symbol, 1),))
        assert {BASES[base]: power for base, power in dimension.items()} == dict(unit.dimensionality), symbol
        bits = 8 if symbol.endswith("B") else 1
        assert float(scale) * bits == pytest.approx((1 * unit).to_base_units().magnitude, rel=1e-11, abs=0), symbol


def test_products_convert_as_in_pint(registry: Any) -> None:
    draw, converted = random.Random(0), 0
    by_dimension: dict[str, list[str]] = {}
    for symbol in SYMBOLS:
        by_dimension.setdefault(str(base_units(((symbol, 1),))[1]), []).append(symbol)
    for _ in range(1_000):
        given, wanted = Counter[str](), Counter[str]()
        for symbols in draw.sample(list(by_dimension.values()), 3):
            power = draw.choice((-2, -1, 1, 2))
            given[draw.choice(symbols)] += power
            wanted[draw.choice(symbols)] += power
        left, right = tuple(given.items()), tuple(wanted.items())
        found = conversion_between(left, right)
        if found is not None:  # other angles, radiation or light is no other unit of the same
            expected = (1 * theirs(registry, left)).to(theirs(registry, right)).magnitude
            assert float(found.scale) == pytest.approx(expected, rel=1e-10, abs=0) and found.offset == 0, (left, right)
            converted += 1
    assert converted > 300


@pytest.mark.parametrize(
    ("given", "wanted", "value", "expected"),
    [
        ("degC", "K", "25", "298.15"),
        ("degF", "degC", "212", "100"),
        ("degC", "degF", "-40", "-40"),
        ("mK", "degC", "1000", "-272.15"),
        ("in", "cm", "1", "2.54"),
        ("mcd", "cd", "1", "0.001"),
        ("eV", "aJ", "1", "0.1602176634"),
    ],
)
def test_values(given: str, wanted: str, value: str, expected: str) -> None:
    change = conversion_between(((given, 1),), ((wanted, 1),))
    assert change is not None and float(change(Fraction(value))) == pytest.approx(float(expected), abs=1e-9)


def test_what_does_not_convert() -> None:
    assert conversion_between((("J", 1), ("degC", -1)), (("J", 1), ("K", -1))) == Conversion()  # a difference
    for pair in ("Hz Bq", "Gy Sv", "rad deg", "lm cd", "ppm ppb", "m s", "B rad"):
        given, wanted = pair.split()
        assert conversion_between(((given, 1),), ((wanted, 1),)) is None
    assert conversion_between((("Ym", 20),), (("am", 20),)) is None  # 10^840, no float
    assert conversion_between((("am", 20),), (("Ym", 20),)) is None
    assert conversion_between((("m", 10**9),), (("cm", 10**9),)) is None
