"""From one unit to another: what each symbol is in the seven base units of the SI.

Values are those of the SI brochure, of CODATA 2022 (dalton), of the IAU (astronomical unit, parsec) and of the agreement on
yard and pound of 1959. The tests compare them with pint's. pint itself takes 0.3 s to load, in each process of a run.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from megatron_ring.rewards.unit_names import PREFIXES

Powers = tuple[tuple[str, int], ...]  # symbols with their exponents

# Powers of ten, in the order of `PREFIXES`.
_TENS = dict(zip(PREFIXES, (0, 24, 21, 18, 15, 12, 9, 6, 3, 2, -1, -2, -3, -6, -9, -12, -15, -18, 1), strict=True))
_POUND, _GRAVITY, _INCH, _YEAR = Fraction("0.45359237"), Fraction("9.80665"), Fraction("0.0254"), Fraction(31_557_600)
_UNIT_OF_LENGTH = Fraction(149_597_870_700)  # astronomical, in metres
_PLANCK = Fraction("6.62607015e-34")
_DALTON = Fraction("1.66053906892e-27")  # CODATA 2022


def _unit(scale: Fraction | float | str | int, dimension: str = "") -> tuple[Fraction, dict[str, int]]:
    """A unit of so many base units; `dimension` is as in "kg m2 s-2"."""
    parts = (part.rstrip("-0123456789") for part in dimension.split())
    return Fraction(scale), {name: int(part[len(name) :] or 1) for name, part in zip(parts, dimension.split(), strict=True)}


# fmt: off
# Units that take a prefix.
_PREFIXABLE = {
    "m": _unit(1, "m"), "g": _unit("0.001", "kg"), "s": _unit(1, "s"), "A": _unit(1, "A"), "K": _unit(1, "K"),
    "mol": _unit(1, "mol"), "cd": _unit(1, "cd"), "Hz": _unit(1, "s-1"), "N": _unit(1, "kg m s-2"),
    "Pa": _unit(1, "kg m-1 s-2"), "J": _unit(1, "kg m2 s-2"), "W": _unit(1, "kg m2 s-3"), "C": _unit(1, "A s"),
    "V": _unit(1, "kg m2 A-1 s-3"), "F": _unit(1, "A2 s4 kg-1 m-2"), "Ohm": _unit(1, "kg m2 A-2 s-3"),
    "S": _unit(1, "A2 s3 kg-1 m-2"), "Wb": _unit(1, "kg m2 A-1 s-2"), "T": _unit(1, "kg A-1 s-2"),
    "H": _unit(1, "kg m2 A-2 s-2"), "lm": _unit(1, "cd"), "lx": _unit(1, "cd m-2"), "Bq": _unit(1, "s-1"),
    "Gy": _unit(1, "m2 s-2"), "Sv": _unit(1, "m2 s-2"), "L": _unit("0.001", "m3"),
    "eV": _unit("1.602176634e-19", "kg m2 s-2"), "bar": _unit(100_000, "kg m-1 s-2"), "cal": _unit("4.184", "kg m2 s-2"),
    "M": _unit(1000, "mol m-3"), "B": _unit(1), "Da": _unit(_DALTON, "kg"), "Wh": _unit(3600, "kg m2 s-2"),
    "Ah": _unit(3600, "A s"),
}
_OTHERS = {
    "min": _unit(60, "s"), "h": _unit(3600, "s"), **dict.fromkeys(("d", "day", "days"), _unit(86_400, "s")),
    "yr": _unit(_YEAR, "s"), "rad": _unit(1), "sr": _unit(1), "deg": _unit(math.pi / 180),
    "u": _unit(_DALTON, "kg"), "amu": _unit(_DALTON, "kg"), "atm": _unit(101_325, "kg m-1 s-2"),
    "Torr": _unit(Fraction(101_325, 760), "kg m-1 s-2"), "mmHg": _unit("133.322387415", "kg m-1 s-2"),
    "psi": _unit(_POUND * _GRAVITY / _INCH**2, "kg m-1 s-2"), "Ang": _unit("1e-10", "m"),
    "degC": _unit(1, "K"), "degF": _unit(Fraction(5, 9), "K"), "AU": _unit(_UNIT_OF_LENGTH, "m"),
    "ly": _unit(299_792_458 * _YEAR, "m"), "pc": _unit(_UNIT_OF_LENGTH * 648_000 / Fraction(math.pi), "m"),
    "in": _unit(_INCH, "m"), "ft": _unit(12 * _INCH, "m"), "yd": _unit(36 * _INCH, "m"), "mi": _unit(63_360 * _INCH, "m"),
    "lb": _unit(_POUND, "kg"), "oz": _unit(_POUND / 16, "kg"), "mph": _unit(63_360 * _INCH / 3600, "m s-1"),
    # Planck's constant over 2 pi, as physicists write it; a hectobar is no unit in use.
    "hbar": _unit(_PLANCK / 2 / Fraction(math.pi), "kg m2 s-1"),
}
# fmt: on
# These convert to nothing but themselves, as another unit of the same kind is not meant by anybody.
BY_NAME_ONLY = frozenset(("dB", "rpm", "ppb", "ppm"))
_UNITS = _OTHERS | {
    prefix + name: (scale * Fraction(10) ** tens, dimension)
    for prefix, tens in _TENS.items()
    for name, (scale, dimension) in _PREFIXABLE.items()
    if prefix + name not in _OTHERS
}
KNOWN = frozenset(_UNITS) | BY_NAME_ONLY
# These have the dimension of something else (Hz = Bq = rad/s, Gy = Sv), but 50 Hz is not 50 rad/s.
_OF_THEIR_OWN = ("Bq", "Gy", "Sv", "rad", "deg", "sr", "lm", "lx", "cd", "B")
_ZERO = {"degC": Fraction("273.15"), "degF": Fraction("459.67") * 5 / 9}  # of a temperature that stands alone, in K
_MOST_POWERS = 999  # of all symbols together; no unit has more, and no fraction grows without bound


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


@lru_cache(maxsize=4096)
def conversion_between(given: Powers, wanted: Powers) -> Conversion | None:
    """Of units as `units.parse_unit` reads them, made of known symbols alone; None where one does not convert to the other.

    Degrees Celsius and Fahrenheit convert as temperatures where they stand alone, as differences elsewhere.
    """
    symbols = {symbol for symbol, _ in (*given, *wanted)}
    most = sum(abs(power) for _, power in (*given, *wanted))
    if symbols & BY_NAME_ONLY or most > _MOST_POWERS or _own(given) != _own(wanted):
        return None
    (scale, dimension), (wanted_scale, wanted_dimension) = base_units(given), base_units(wanted)
    if dimension != wanted_dimension:
        return None
    try:
        factor = _twelve_digits(scale / wanted_scale)
        offset = _twelve_digits((_zero(given) - _zero(wanted)) / wanted_scale)
    except OverflowError:
        return None
    return Conversion(factor, offset) if factor else None


def base_units(unit: Powers) -> tuple[Fraction, dict[str, int]]:
    """How many base units of the SI a unit is, and their powers. Temperatures are differences, angles numbers."""
    scale, found = Fraction(1), Counter[str]()
    for symbol, power in unit:
        one, dimension = _UNITS[symbol]
        scale *= one**power
        for base, count in dimension.items():
            found[base] += power * count
    return scale, {base: power for base, power in found.items() if power}


def _own(unit: Powers) -> dict[str, int]:
    """Powers of the units that have a dimension of their own."""
    found: Counter[str] = Counter()
    for symbol, power in unit:
        for name in _OF_THEIR_OWN:
            # With a prefix of one letter, as mSv; `rad` and `deg` take none here.
            if symbol == name or (symbol.endswith(name) and len(symbol) == len(name) + 1 and name not in ("rad", "deg")):
                found[name] += power
    return {name: power for name, power in found.items() if power}


def _zero(unit: Powers) -> Fraction:
    """Where its scale begins, in base units."""
    return _ZERO.get(unit[0][0], Fraction(0)) if len(unit) == 1 and unit[0][1] == 1 else Fraction(0)


def _twelve_digits(value: Fraction) -> Fraction:
    """As far as measured constants are known, and no result shows a digit that a float would not."""
    return Fraction(f"{float(value):.12g}")
