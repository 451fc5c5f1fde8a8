"""`keywords:`: words and letters that must, or must not, occur.

Keywords are plain text, the public checker takes them for regular expressions. Case never counts. As in the public
definition a keyword may stand inside a word, a forbidden word may not: `rock` is in `rocket`, and allowed there.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron_ring.rewards.instructions import arguments
from megatron_ring.rewards.instructions.finding import LESS_THAN, Check, Finding, compared, shown
from megatron_ring.rewards.instructions.lookalikes import as_rendered, as_seen
from megatron_ring.rewards.instructions.text import holds_word, occurrences


@dataclass(frozen=True, slots=True)
class Existence:
    keywords: tuple[str, ...] = arguments.texts()


def existence(text: str, wanted: Existence) -> Finding:
    """Every keyword occurs."""
    missing = [keyword for keyword in wanted.keywords if not occurrences(keyword, text)]
    number = f"{len(wanted.keywords) - len(missing)} of {len(wanted.keywords)} keywords"
    return Finding(not missing, f"{number}, {shown(missing[0])} is missing" if missing else number)


@dataclass(frozen=True, slots=True)
class Frequency:
    keyword: str = arguments.text()
    frequency: int = arguments.integer()
    relation: str = arguments.relation()


def frequency(text: str, wanted: Frequency) -> Finding:
    """The keyword occurs often, or seldom, enough; without overlaps. Where it is to be seldom, look-alikes count, too."""
    number = occurrences(wanted.keyword, text)
    if wanted.relation == LESS_THAN:
        number = max(number, occurrences(as_seen(wanted.keyword), as_rendered(text)))
    return compared(number, wanted.relation, wanted.frequency, f"times {shown(wanted.keyword)}")


@dataclass(frozen=True, slots=True)
class ForbiddenWords:
    forbidden_words: tuple[str, ...] = arguments.texts()


def forbidden_words(text: str, wanted: ForbiddenWords) -> Finding:
    """None of the words occurs as a whole word; neither unseen characters, letters that look alike
    nor marks of Markdown or HTML hide one."""
    seen = as_rendered(text)
    found = [word for word in wanted.forbidden_words if holds_word(word, text) or holds_word(as_seen(word), seen)]
    number = f"{len(found)} of {len(wanted.forbidden_words)} forbidden words"
    return Finding(not found, f"{number}, as {shown(found[0])}" if found else number)


@dataclass(frozen=True, slots=True)
class LetterFrequency:
    letter: str = arguments.letter()
    let_frequency: int = arguments.integer()
    let_relation: str = arguments.relation()


def letter_frequency(text: str, wanted: LetterFrequency) -> Finding:
    """The letter, or another character such as `#`, occurs often, or seldom, enough; where it is to be seldom, with letters
    that look like it."""
    number = text.lower().count(wanted.letter)
    if wanted.let_relation == LESS_THAN:
        number = max(number, as_seen(text).lower().count(as_seen(wanted.letter)))
    return compared(number, wanted.let_relation, wanted.let_frequency, f"times {wanted.letter!r}")


CHECKS = {
    "keywords:existence": Check(Existence, existence),
    "keywords:frequency": Check(Frequency, frequency),
    "keywords:forbidden_words": Check(ForbiddenWords, forbidden_words),
    "keywords:letter_frequency": Check(LetterFrequency, letter_frequency),
}
