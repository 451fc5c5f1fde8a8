"""Compare what a program printed or returned with what was expected."""

from __future__ import annotations

import decimal
import math
import re
from typing import Any

TOLERANCE = 1e-6
LARGE_TOLERANCE = 1e-12  # of numbers so large that floats are farther apart than the other
ZERO_TOLERANCE = 1e-9

_NUMBER = re.compile(r"[+-]?(?:\d{1,40}(?:\.\d{0,40})?|\.\d{1,40})(?:[eE][+-]?\d{1,3})?", re.ASCII)
_MAX_DEPTH = 100


def outputs_agree(expected: str, given: str) -> bool:
    """Equal line by line, but for white space at the ends of lines and of the text, and for rounding.

    A number that is expected with a decimal point or an exponent may differ by 1e-6, and by a millionth of itself where it
    is below 1; from 0 by 1e-9. An expected integer may be written as `3.0`.
    """
    expected_lines, given_lines = _lines(expected), _lines(given)
    if expected_lines == given_lines:
        return True
    return len(expected_lines) == len(given_lines) and all(map(_line_agrees, expected_lines, given_lines))


def values_agree(expected: Any, given: Any, depth: int = 0) -> bool:
    """Equal values, with the same tolerance for floats; JSON has no tuples, so a tuple equals a list of its items."""
    if depth > _MAX_DEPTH:
        return False
    if isinstance(expected, list | tuple) and isinstance(given, list | tuple):
        return len(expected) == len(given) and all(
            values_agree(a, b, depth + 1) for a, b in zip(expected, given, strict=True)
        )
    if isinstance(expected, dict) and isinstance(given, dict):
        return _dicts_agree(expected, given, depth) or _dicts_agree(expected, {str(k): v for k, v in given.items()}, depth)
    if isinstance(expected, float) and isinstance(given, int | float) and not isinstance(given, bool):
        return _close(expected, given)
    if isinstance(given, float) and isinstance(expected, int) and not isinstance(expected, bool):
        return given == expected
    return type(expected) is type(given) and bool(expected == given)


def _dicts_agree(expected: dict[Any, Any], given: dict[Any, Any], depth: int) -> bool:
    return expected.keys() == given.keys() and all(values_agree(expected[key], given[key], depth + 1) for key in expected)


def _lines(text: str) -> list[str]:
    lines = [line.rstrip() for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def _line_agrees(expected: str, given: str) -> bool:
    if expected == given:
        return True
    expected_tokens, given_tokens = re.split(r"(\s+)", expected), re.split(r"(\s+)", given)
    return len(expected_tokens) == len(given_tokens) and all(map(_token_agrees, expected_tokens, given_tokens))


def _token_agrees(expected: str, given: str) -> bool:
    if expected == given:
        return True
    if not (_NUMBER.fullmatch(expected) and _NUMBER.fullmatch(given)):
        return False
    if re.search(r"[.eE]", expected):
        if math.isinf(float(expected)) and math.isinf(float(given)):  # beyond every float: 1e400 is not 1e401
            return decimal.Decimal(expected) == decimal.Decimal(given)
        return _close(float(expected), float(given))
    return bool(re.search(r"[.eE]", given)) and float(given) == int(expected)


def _close(expected: float, given: float) -> bool:
    try:
        if not (math.isfinite(expected) and math.isfinite(given)):
            return expected == given or (math.isnan(expected) and math.isnan(given))
        size = abs(expected)
        allowed = max(TOLERANCE * min(1.0, size), LARGE_TOLERANCE * size) if size else ZERO_TOLERANCE
        return abs(expected - given) <= allowed
    except OverflowError:  # an integer beyond every float
        return False
