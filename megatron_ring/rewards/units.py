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
_DEGREE = re.compile(r"\^?\{?\s*\\circ\s*\}?(?!\s*\d)|°|\\degree\b")
_FRACTION = re.compile(r"\\[dt]?frac\s*\{((?:[^{}]++|\{[^{}]*+\})*+)\}\s*\{((?:[^{}]++|\{[^{}]*+\})*+)\}")
_PRODUCT = re.compile(r"\\left(?=\()|\\right(?=\))|\\cdot|\\times|\\[,;: ]|[·⋅•∙*~×]")
_NEWTON_METRES = re.compile(r"(?<![A-Za-z])N-?m(?![A-Za-z])")
_TOKEN = re.compile(r"\s*(?:([A-Za-z]+)(?:\s*\^\s*(?:\(([+-]?\d{1,2})\)|([+-]?\d{1,2}))|([+-]?\d)(?!\d))?|([/()]))")
_SPELLINGS = {"l": "L", "ml": "mL", "dl": "dL", "cl": "cL", "kgs": "kg", "days": "d", "day": "d", "Ohms": "Ohm"}

# fmt: off
_PREFIXABLE = (
    "m", "g", "s", "A", "K", "mol", "cd", "Hz", "N", "Pa", "J", "W", "C", "V", "F", "Ohm", "S", "Wb", "T", "H", "lm",
    "lx", "Bq", "Gy", "Sv", "L", "eV", "bar", "cal", "M", "B", "Da", "Wh", "Ah",
)
_OTHERS = (
    "min", "h", "d", "day", "days", "yr", "rad", "sr", "u", "amu", "atm", "Torr", "mmHg", "psi", "Ang", "dB", "ppm",
    "ppb", "degC", "degF", "deg", "rpm", "AU", "ly", "pc", "ft", "in", "mi", "yd", "lb", "oz", "mph",
)
# fmt: on
KNOWN = frozenset(prefix + unit for prefix in PREFIXES for unit in _PREFIXABLE) | frozenset(_OTHERS)


def parse_unit(text: str) -> Unit | None:
    """Read a product of symbols with integer exponents; None when the text is anything else, or nothing.

    A slash divides by all that follows it, up to the next slash: `J/mol·K` is J/(mol K). After a bracket it has ended.
    """
    exponents: dict[str, int] = {}
    text = _normalise(text)
    position, sign, inside, symbols = 0, 1, False, 0
    while position < len(text):
        token = _TOKEN.match(text, position)
        if token is None:
            return None
        position = token.end()
        symbol, mark = token[1], token[5]
        if symbol:
            symbol = _SPELLINGS.get(symbol, symbol)
            exponents[symbol] = exponents.get(symbol, 0) + sign * int(token[2] or token[3] or token[4] or 1)
            symbols += 1
        elif mark == "/":
            if inside or position == len(text) or (sign < 0 and not symbols):
                return None
            sign, symbols = -1, 0
        elif mark == "(":
            if inside or (sign < 0 and symbols):
                return None
            inside, symbols = True, 0
        else:
            if not inside or not symbols:
                return None
            inside, sign = False, 1
    if inside or (sign < 0 and not symbols):
        return None
    return tuple(sorted((symbol, power) for symbol, power in exponents.items() if power)) or None


def conversion(given: str, wanted: str) -> Conversion | None:
    """How a value in the one unit becomes a value in the other; None where it cannot.

    What cannot be read as units is the same when it is written the same, or when one is the other's plural.
    """
    left, right = parse_unit(given), parse_unit(wanted)
    if left is None or right is None:
        return Conversion() if left is right and _words(given) == _words(wanted) else None
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
    """Words and signs, in order; a plural is its singular."""
    return [
        word.removesuffix("s") if len(word) > 3 else word for word in re.findall(r"[A-Za-z]+|\d+|[^\s{}.]", _plain(text))
    ]


def _plain(text: str) -> str:
    return _WRAPPER.sub(r" \1", text)


def _normalise(text: str) -> str:
    text = _FRACTION.sub(r" (\1)/(\2)", _plain(text)) if "frac" in text else _plain(text)
    text = re.sub(r"(?<=[a-z])-(?=[a-z])", " ", text)
    text = _NEWTON_METRES.sub(r"N m", text)
    text = re.sub(r"\bdegrees? (?=Celsius|Fahrenheit)", "", text)
    text = spell_out(text.replace("℃", "°C").replace("℉", "°F"))
    text = re.sub(r"\\mu\b\s*|[µμ]", "u", text)
    text = re.sub(r"\\Omega\b|[ΩΩ]", " Ohm", text)
    text = re.sub(r"\\AA\b|[ÅÅ]", " Ang", text)
    text = re.sub(r"\b([kMGmun])\s*(?:Ohm|ohm)s?\b", r"\1Ohm", text)
    text = re.sub(r" *deg\s*([CF])\b", r" deg\1", _DEGREE.sub(" deg", text))
    text = _SUPERSCRIPT.sub(lambda match: "^" + match[0].translate(_SUPERSCRIPTS), text)
    return _PRODUCT.sub(" ", text).replace("{", "").replace("}", "").strip()
