r"""Units as they are written: `m/s^2`, `\mathrm{m\,s^{-2}}` and `m·s⁻²` are the same.

The text is read here, never by a library's parser, which would evaluate expressions; what the symbols mean, and how one
unit converts to another, is pint's to say (`unit_conversion`).
"""

from __future__ import annotations

import re

from megatron_ring.rewards.unit_conversion import Conversion, conversion_between
from megatron_ring.rewards.unit_names import PREFIXES, spell_out

Unit = tuple[tuple[str, int], ...]  # symbols with their exponents, sorted; case matters (mW is not MW)

_WRAPPER = re.compile(r"\\(?:text|mathrm|textrm|mathit|operatorname|mbox|unit)\s*+\{((?:[^{}]++|\{[^{}]*+\})*+)\}")
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_SUPERSCRIPT = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺]+")
_DEGREE = re.compile(r"\^?\{?\s*\\circ\s*\}?|°|\\degree\b")
_PRODUCT = re.compile(r"\\left(?=\()|\\right(?=\))|\\cdot|\\times|\\[,;: ]|[·⋅*~×]")
_TOKEN = re.compile(r"\s*(?:([A-Za-z]+)\s*(?:\^\s*\(?([+-]?\d{1,2})\)?|([+-]?\d))?|([/()]))")
_SPELLINGS = {"l": "L", "days": "d", "day": "d"}

# fmt: off
_PREFIXABLE = (
    "m", "g", "s", "A", "K", "mol", "cd", "Hz", "N", "Pa", "J", "W", "C", "V", "F", "Ohm", "S", "Wb", "T", "H", "lm",
    "lx", "Bq", "Gy", "Sv", "L", "eV", "bar", "cal", "M", "B", "Da",
)
_OTHERS = (
    "min", "h", "d", "day", "days", "yr", "rad", "sr", "u", "amu", "atm", "Torr", "mmHg", "psi", "Ang", "dB", "ppm",
    "ppb", "degC", "degF", "deg", "rpm", "AU", "ly", "pc", "ft", "in", "mi", "yd", "lb", "oz", "mph",
)
# fmt: on
KNOWN = frozenset(prefix + unit for prefix in PREFIXES for unit in _PREFIXABLE) | frozenset(_OTHERS)


def parse_unit(text: str) -> Unit | None:
    """Read a product of symbols with integer exponents; None when the text is anything else, or nothing.

    A slash divides by the next symbol or bracket only, as in `J/mol/K` or `J/(mol K)`.
    """
    exponents: dict[str, int] = {}
    text = _normalise(text)
    position, sign, bracket_sign, inside = 0, 1, 1, False
    while position < len(text):
        token = _TOKEN.match(text, position)
        if token is None:
            return None
        position = token.end()
        symbol, mark = token[1], token[4]
        if symbol:
            symbol = _SPELLINGS.get(symbol, symbol)
            exponents[symbol] = exponents.get(symbol, 0) + sign * bracket_sign * int(token[2] or token[3] or 1)
            sign = 1
        elif mark == "/":
            if sign < 0 or not exponents:
                return None
            sign = -1
        elif mark == "(":
            if inside:
                return None
            inside, bracket_sign, sign = True, sign, 1
        else:
            if not inside:
                return None
            inside, bracket_sign = False, 1
    if inside or sign < 0:
        return None
    return tuple(sorted((symbol, power) for symbol, power in exponents.items() if power)) or None


def conversion(given: str, wanted: str) -> Conversion | None:
    """How a value in the one unit becomes a value in the other; None where it cannot.

    Words that are no units are the same when they are, or when one is the other's plural.
    """
    left, right = parse_unit(given), parse_unit(wanted)
    if left is None or right is None:
        return Conversion() if _words(given) == _words(wanted) else None
    if left == right or _singular(left) == _singular(right):
        return Conversion()
    if any(symbol not in KNOWN for symbol, _ in (*left, *right)):
        return None
    return conversion_between(left, right)


def same_unit(a: str, b: str) -> bool:
    """Whether two texts are the same unit, otherwise written: N m is J, mL is cm^3."""
    change = conversion(a, b)
    return change is not None and change.is_identity


def looks_like_unit(text: str) -> bool:
    r"""Whether what follows a number in a REFERENCE is a unit and not algebra such as `2x`, `3 \pi` or `5m`.

    It is when it is set as text (`\text{}`, `\mathrm{}`), or made of known symbols, or, after a space, of words of
    three letters or more. A single letter that touches its number is algebra. Per cent and bare degrees are left to the
    mathematical comparison, which knows them.
    """
    unit = parse_unit(text)
    if unit is None or unit == (("deg", 1),):
        return False
    if _WRAPPER.search(text):
        return True
    symbols = [symbol for symbol, _ in unit]
    if text[:1].isspace() or text.startswith(("\\,", "\\;", "\\ ", "~")):
        return all(symbol in KNOWN or len(symbol) >= 3 for symbol in symbols)
    return all(symbol in KNOWN for symbol in symbols) and (len(symbols) > 1 or len(symbols[0]) > 1)


def _singular(unit: Unit) -> Unit:
    return tuple((symbol.removesuffix("s") if len(symbol) > 3 else symbol, power) for symbol, power in unit)


def _words(text: str) -> list[str]:
    return [word.removesuffix("s").lower() for word in re.findall("[A-Za-z]+", _WRAPPER.sub(r" \1", text))]


def _normalise(text: str) -> str:
    text = spell_out(_WRAPPER.sub(r" \1", text))
    text = re.sub(r"\\mu\b\s*|[µμ]", "u", text)
    text = re.sub(r"\\Omega\b|[ΩΩ]", " Ohm", text)
    text = re.sub(r"\\AA\b|[ÅÅ]", " Ang", text)
    text = re.sub(r"([kMGm])\s+Ohm\b", r"\1Ohm", text)
    text = re.sub(r" *deg\s*([CF])\b", r" deg\1", _DEGREE.sub(" deg", text))
    text = _SUPERSCRIPT.sub(lambda match: "^" + match[0].translate(_SUPERSCRIPTS), text)
    return _PRODUCT.sub(" ", text).replace("{", "").replace("}", "").strip()
