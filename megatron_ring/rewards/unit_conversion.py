"""From one unit to another, by pint."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, lru_cache
from typing import Any

from megatron_ring.rewards.loading import loading

# Where our symbol is not pint's.
_NAMES = {
    "Wh": "watt_hour",
    "Ah": "ampere_hour",
    "Ohm": "ohm",
    "Ang": "angstrom",
    "Torr": "torr",
    "AU": "astronomical_unit",
    "amu": "dalton",
    "u": "dalton",
    "cd": "candela",  # or mcd were a millionth of a day
}
# pint gives these the dimension of something else (Hz = Bq = rad/s, Gy = Sv), but 50 Hz is not 50 rad/s.
_OF_THEIR_OWN = ("Bq", "Gy", "Sv", "rad", "deg", "sr", "lm", "lx", "cd", "B")
_BY_NAME_ONLY = ("dB", "rpm", "ppb", "ppm")
_TEMPERATURES = ("degC", "degF")


@dataclass(frozen=True, slots=True)
class Conversion:
    """`value * scale + offset`; the default is for units that are one and the same."""

    scale: Fraction = Fraction(1)
    offset: Fraction = Fraction(0)

    @property
    def is_identity(self) -> bool:
        return self.scale == 1 and self.offset == 0

    def __call__(self, value: Fraction) -> Fraction:
        return value * self.scale + self.offset


def prepare() -> None:
    """Load pint with its units, so that the first answer is not charged for it."""
    conversion_between((("km", 1), ("h", -1)), (("m", 1), ("s", -1)))


@lru_cache(maxsize=4096)
def conversion_between(given: tuple[tuple[str, int], ...], wanted: tuple[tuple[str, int], ...]) -> Conversion | None:
    """Of units as `units.parse_unit` reads them, made of known symbols alone; None where one does not convert to the other.

    Degrees Celsius and Fahrenheit convert as temperatures where they stand alone, as differences elsewhere.
    """
    symbols = {symbol for symbol, _ in (*given, *wanted)}
    if symbols & set(_BY_NAME_ONLY) or _own(given) != _own(wanted):
        return None
    registry = _registry()
    import pint

    try:
        left, right = (registry.Unit(_container(unit)) for unit in (given, wanted))
        start, one = (registry.Quantity(value, left).to(right).magnitude for value in (0.0, 1.0))
    except (pint.PintError, OverflowError, ZeroDivisionError):
        return None
    if one - start == 0 or one - start in (float("inf"), float("-inf")):
        return None
    return Conversion(_fraction(one - start), _fraction(start))


def _own(unit: tuple[tuple[str, int], ...]) -> dict[str, int]:
    """Powers of the units that have a dimension of their own."""
    found: Counter[str] = Counter()
    for symbol, power in unit:
        for name in _OF_THEIR_OWN:
            # With a prefix of one letter, as mSv; `rad` and `deg` take none here.
            if symbol == name or (symbol.endswith(name) and len(symbol) == len(name) + 1 and name not in ("rad", "deg")):
                found[name] += power
    return {name: power for name, power in found.items() if power}


def _container(unit: tuple[tuple[str, int], ...]) -> Any:
    from pint.util import UnitsContainer

    alone = len(unit) == 1 and unit[0][1] == 1
    powers: Counter[str] = Counter()
    for symbol, power in unit:
        ours = next((name for name in ("Ohm", "Ang", "Torr", "Wh", "Ah", "cd") if symbol.endswith(name)), symbol)
        name = symbol.removesuffix(ours) + _NAMES.get(ours, ours)
        if symbol in _TEMPERATURES and not alone:
            name = f"delta_{symbol}"
        powers[_registry().get_name(name)] += power
    return UnitsContainer({name: power for name, power in powers.items() if power})


@cache
def _registry() -> Any:
    with loading():
        import pint

        return pint.UnitRegistry(cache_folder=None)


def _fraction(value: float) -> Fraction:
    """What a float of pint's stands for: twelve digits, so that 0.01 is a hundredth."""
    return Fraction(f"{value:.12g}")
