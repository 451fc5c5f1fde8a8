"""`language:` and `change_case:`: the language of the response, and its capitals."""

from __future__ import annotations

import re
from dataclasses import dataclass

from megatron_ring.errors import UserError
from megatron_ring.rewards.instructions import arguments
from megatron_ring.rewards.instructions.detection import LANGUAGES, detect_language, is_language
from megatron_ring.rewards.instructions.finding import Check, Finding, NoArguments, compared

# What stands between white space, sentence punctuation, brackets and quotes; hyphens, dots and slashes join.
_TOKEN = re.compile(r"[^\s,;:?!()\[\]{}<>\"“”„«»…—–]++")


@dataclass(frozen=True, slots=True)
class ResponseLanguage:
    language: str = arguments.text()

    def __post_init__(self) -> None:
        if self.language not in LANGUAGES:
            raise UserError(f"argument 'language' {self.language!r} is not one of {', '.join(sorted(LANGUAGES))}")


def response_language(text: str, wanted: ResponseLanguage) -> Finding:
    """langdetect finds this language most likely. A text without a language (digits) is in none; publicly it passes."""
    found = detect_language(text)
    return Finding(is_language(found, wanted.language), f"language {found or 'unknown'}, {wanted.language} wanted")


def english_capital(text: str, _: NoArguments) -> Finding:
    """English, and no lower-case letter."""
    return _english(text, text.isupper(), "capital")


def english_lowercase(text: str, _: NoArguments) -> Finding:
    """English, and no capital letter."""
    return _english(text, text.islower(), "lower-case")


def _english(text: str, cased: bool, wanted: str) -> Finding:
    if not cased:
        upper, lower = sum(map(str.isupper, text)), sum(map(str.islower, text))
        return Finding(False, f"{upper} capital and {lower} lower-case letters, only {wanted} ones wanted")
    found = detect_language(text)
    return Finding(is_language(found, "en"), f"language {found or 'unknown'}, en wanted")


@dataclass(frozen=True, slots=True)
class CapitalWordFrequency:
    capital_frequency: int = arguments.integer()
    capital_relation: str = arguments.relation()


def capital_word_frequency(text: str, wanted: CapitalWordFrequency) -> Finding:
    """Words all in capitals; `I`, `U.S.` and `COVID-19` are some.

    The public definition takes NLTK's treebank words. Ours end at white space and punctuation, hyphens join, and what
    follows an apostrophe is not looked at: `NASA's` and `DON'T` are one each.
    """
    number = sum(map(_is_capital, _TOKEN.findall(text)))
    return compared(number, wanted.capital_relation, wanted.capital_frequency, "words in capitals")


def _is_capital(token: str) -> bool:
    return token.replace("’", "'").strip("'").partition("'")[0].isupper()


CHECKS = {
    "language:response_language": Check(ResponseLanguage, response_language, quick=False),
    "change_case:english_capital": Check(NoArguments, english_capital, quick=False),
    "change_case:english_lowercase": Check(NoArguments, english_lowercase, quick=False),
    "change_case:capital_word_frequency": Check(CapitalWordFrequency, capital_word_frequency),
}
