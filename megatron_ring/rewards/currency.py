r"""Sums of money in different currencies: `\$5` is not 5 cents. The sign itself is dropped when values are compared."""

from __future__ import annotations

import re

_WORDS = {
    "dollar": re.compile(r"\\\$|\bdollars?\b|\bUSD\b|美元"),
    "cent": re.compile(r"(?<!per )\b(?:cents?|penny|pennies|pence)\b|\\cents?\b|¢|美分"),
    "euro": re.compile(r"€|\\euro\b|\beuros?\b|\bEUR\b|欧元"),
    "pound": re.compile(r"£|\\pounds\b|\bGBP\b|英镑"),
    "rupee": re.compile(r"₹|\brupees?\b|\bINR\b"),
}
_LONE_SIGN = re.compile(r"[^$\\]*\$[^$\\]*")  # two are TeX's


def currencies_differ(reference: str, given: str) -> bool:
    """Whether both texts, as they were written, name a currency, and none that the other names."""
    wanted, got = _named(reference), _named(given)
    return bool(wanted and got) and not wanted & got


def _named(text: str) -> set[str]:
    found = {name for name, words in _WORDS.items() if words.search(text)}
    return found | {"dollar"} if _LONE_SIGN.fullmatch(text) else found
