"""Answers that are words: names, yes or no, chemical formulas. Where capitals make a formula, they count."""

from __future__ import annotations

import re

# fmt: off
FUNCTIONS = frozenset({
    "sin", "cos", "tan", "cot", "sec", "csc", "log", "ln", "exp", "max", "min", "gcd", "lcm", "mod", "det", "dim", "deg",
    "arg", "lim", "sinh", "cosh", "tanh", "arcsin", "arccos", "arctan", "sqrt",
})
_SHORT_WORDS = frozenset({
    "yes", "no", "true", "odd", "even", "none", "both", "all", "zero", "one", "two", "six", "ten", "red", "up", "left",
})
# fmt: on
_TEXT = re.compile(r"\\text\s*\{([^{}]*)\}")
_WORDS = re.compile(r"[A-Za-z][A-Za-z .'’\-]*")
_LONG_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{4,}")
_NUMBERS = ({"solution", "solutions"}, {"root", "roots"})  # of none there is no number
_SET_LOWER = re.compile(r"\\text(?=\s*\{)|[\s_{}]")
# Elements with numbers, groups in brackets, a charge; at least one number or charge, for words have neither.
_SPECIES = re.compile(r"(?=.*[\d+-])\d{0,3}(?:[A-Z][a-z]?\d{0,3}|[()\[\]]\d{0,3}){1,60}(?:\^\d?[+-]|\^[+-]\d?)?", re.ASCII)


def words_of(text: str) -> tuple[str, ...] | None:
    r"""The words of an answer that is nothing else; None where it may be mathematics."""
    plain = _TEXT.sub(r" \1 ", text).strip()
    if _WORDS.fullmatch(plain) is None:
        return None
    words = re.findall(r"[A-Za-z]+", plain.replace("'", "").replace("’", ""))
    lower = [word.lower() for word in words]
    if any(word in FUNCTIONS for word in lower) or not words:
        return None
    if max(map(len, words)) < 4 and not _SHORT_WORDS & set(lower) and not ("\\text" in text and len(plain) > 1):
        return None
    return tuple(words[1:] if lower[0] in ("the", "a", "an") and len(words) > 1 else words)


def words_agree(reference: tuple[str, ...], given: tuple[str, ...]) -> bool:
    """The same words in the same order."""
    return len(reference) == len(given) and all(map(_same_word, reference, given))


def same_letters(reference: str, given: str) -> bool:
    r"""The same but for spaces, `\text` and capitals that mean nothing."""
    wanted, got = (re.sub(r"\s", "", _TEXT.sub(r"\1", text)) for text in (reference, given))
    if len(wanted) != len(got) or wanted.lower() != got.lower():
        return False
    return all(map(_same_word, re.findall("[A-Za-z]+", wanted), re.findall("[A-Za-z]+", got)))


def same_species(reference: str, given: str) -> bool:
    r"""The same chemical formula, apart from how numbers are lowered: `CO_2`, `\text{CO}_2` and `CO2`; `Co_2` is another."""
    wanted, got = (_SET_LOWER.sub("", text) for text in (reference, given))
    return wanted == got and _SPECIES.fullmatch(wanted) is not None


def long_words(text: str) -> set[str]:
    """Runs of four letters or more, as prose has them, without functions and environments."""
    plain = _TEXT.sub(r" \1 ", re.sub(r"\\(?:begin|end)\{[a-z]+\}", "", text))
    return set(_LONG_WORD.findall(plain)) - FUNCTIONS


def _same_word(reference: str, given: str) -> bool:
    """Equal, where capitals count inside a word (CO, NaCl) and not where they only begin it or make up a long one."""
    if reference == given:
        return True
    lower = reference.lower()
    if lower != given.lower():
        return {lower, given.lower()} in _NUMBERS
    if reference[1:] == given[1:]:
        return not reference[1:] or reference[1:].islower()
    if lower in _SHORT_WORDS:
        return reference != "NO"  # nitric oxide
    if given.islower():
        return len(given) > 4 or (len(given) > 2 and reference.isupper())  # dna
    return len(given) > 3 and all(word.isupper() or word.islower() or word.istitle() for word in (reference, given))
