r"""Units as they are written: `m/s^2`, `\mathrm{m\,s^{-2}}` and `m·s⁻²` are the same, `cm` and `m` are not."""

from __future__ import annotations

import re

Unit = tuple[tuple[str, int], ...]  # symbols with their exponents, sorted; case matters (mW is not MW)

_WRAPPER = re.compile(r"\\(?:text|mathrm|textrm|mathit|operatorname|mbox|unit)\s*+\{((?:[^{}]++|\{[^{}]*+\})*+)\}")
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_SUPERSCRIPT = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺]+")
_DEGREE = re.compile(r"\^?\{?\s*\\circ\s*\}?|°|\\degree\b")
_PRODUCT = re.compile(r"\\left(?=\()|\\right(?=\))|\\cdot|\\times|\\[,;: ]|[·⋅*~×]")
_TOKEN = re.compile(r"\s*(?:([A-Za-z]+)\s*(?:\^\s*\(?([+-]?\d{1,2})\)?|([+-]?\d))?|([/()]))")
_SPELLINGS = {"ohm": "Ohm", "ohms": "Ohm", "Ohms": "Ohm", "degrees": "deg", "degree": "deg", "liter": "L", "l": "L"}

_PREFIXES = ("", "Y", "Z", "E", "P", "T", "G", "M", "k", "h", "da", "d", "c", "m", "u", "n", "p", "f", "a")
# fmt: off
_PREFIXABLE = (
    "m", "g", "s", "A", "K", "mol", "cd", "Hz", "N", "Pa", "J", "W", "C", "V", "F", "Ohm", "S", "Wb", "T", "H", "lm",
    "lx", "Bq", "Gy", "Sv", "L", "eV", "bar", "cal", "M", "B", "Da",
)
_OTHERS = (
    "min", "h", "d", "day", "days", "yr", "rad", "sr", "u", "amu", "atm", "Torr", "mmHg", "psi", "Ang", "dB", "ppm",
    "ppb", "degC", "degF", "deg", "rpm", "AU", "ly", "pc",
)
# fmt: on
KNOWN = frozenset(prefix + unit for prefix in _PREFIXES for unit in _PREFIXABLE) | frozenset(_OTHERS)


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


def _normalise(text: str) -> str:
    text = _WRAPPER.sub(r" \1", text)
    text = re.sub(r"\\mu\b\s*|[µμ]", "u", text)
    text = re.sub(r"\\Omega\b|[ΩΩ]", " Ohm", text)
    text = re.sub(r"\\AA\b|[ÅÅ]", " Ang", text)
    text = re.sub(r"([kMGm])\s+Ohm\b", r"\1Ohm", text)
    text = re.sub(r" *deg\s*([CF])\b", r" deg\1", _DEGREE.sub(" deg", text))
    text = _SUPERSCRIPT.sub(lambda match: "^" + match[0].translate(_SUPERSCRIPTS), text)
    return _PRODUCT.sub(" ", text).replace("{", "").replace("}", "").strip()
