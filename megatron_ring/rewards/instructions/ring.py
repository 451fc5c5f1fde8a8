"""`ring:`: kinds of our own, in the spirit of IFBench, so that training sees more than what IFEval tests."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

from megatron_ring.errors import UserError
from megatron_ring.rewards.instructions import arguments
from megatron_ring.rewards.instructions.finding import (
    AT_LEAST,
    LESS_THAN,
    Check,
    Finding,
    NoArguments,
    compared,
    exactly,
    shown,
    within,
)
from megatron_ring.rewards.instructions.sentences import sentences
from megatron_ring.rewards.instructions.text import bullets, lines, words

# Unlike `text.words`: what an apostrophe or a hyphen joins is one word. Possessive: no backtracking.
_JOINED_WORD = re.compile(r"\w++(?:['’-]\w++)*+")
_NUMBERED = re.compile(r"\s*+(\d{1,9})[.)]\s++(?=\S)")
_BULLET_MARK = re.compile(r"[-*]\s*+")


@dataclass(frozen=True, slots=True)
class Range:
    """Both ends belong to it."""

    minimum: int = arguments.integer()
    maximum: int = arguments.integer()

    def __post_init__(self) -> None:
        if self.minimum > self.maximum:
            raise UserError(f"argument 'minimum' {self.minimum} exceeds 'maximum' {self.maximum}")


def bullet_count_range(text: str, wanted: Range) -> Finding:
    """So many bullets, see `text.bullets`."""
    return within(len(bullets(text)), wanted.minimum, wanted.maximum, "bullet points")


def word_count_range(text: str, wanted: Range) -> Finding:
    r"""So many words, runs of `\w`."""
    return within(len(words(text)), wanted.minimum, wanted.maximum, "words")


def no_repeated_words(text: str, _: NoArguments) -> Finding:
    """No word twice in a row, apart from case, whatever punctuation is between. `ha-ha` is one word, `1.1` no word."""
    found = [word.casefold() for word in _JOINED_WORD.findall(text)]
    repeated = [word for word, following in pairwise(found) if word == following and any(map(str.isalpha, word))]
    detail = f"{len(repeated)} words repeated at once, none wanted"
    return Finding(not repeated, f"{detail}, as {shown(repeated[0])}" if repeated else detail)


@dataclass(frozen=True, slots=True)
class Letter:
    letter: str = arguments.letter()


def sentences_start_with(text: str, wanted: Letter) -> Finding:
    """The first letter or digit of every sentence is this one, apart from case."""
    starts = [found[0].lower() for sentence in sentences(text) if (found := words(sentence))]
    wrong = [start for start in starts if start[0] != wanted.letter]
    detail = f"{len(starts) - len(wrong)} of {len(starts)} sentences start with {wanted.letter!r}"
    return Finding(bool(starts) and not wrong, f"{detail}, one with {shown(wrong[0])}" if wrong else detail)


@dataclass(frozen=True, slots=True)
class Palindrome:
    num_palindromes: int = arguments.integer(minimum=1, default=1)
    min_letters: int = arguments.integer(minimum=2, default=3)


def palindrome(text: str, wanted: Palindrome) -> Finding:
    """At least so many different words that read the same backwards, of letters that are not all the same."""
    candidates = {word for word in words(text.casefold()) if len(word) >= wanted.min_letters and word.isalpha()}
    number = sum(1 for word in candidates if word == word[::-1] and len(set(word)) > 1)
    return compared(number, AT_LEAST, wanted.num_palindromes, f"palindromes of {wanted.min_letters} letters or more")


@dataclass(frozen=True, slots=True)
class AlphabeticalList:
    min_items: int = arguments.integer(minimum=2, default=2)


def alphabetical_list(text: str, wanted: AlphabeticalList) -> Finding:
    """The bulleted or numbered lines, at least so many, are in order by code point, apart from case and emphasis."""
    marked = [_BULLET_MARK.sub("", line, count=1) for line in bullets(text)]
    numbered = [line[found.end() :] for line in lines(text) if (found := _NUMBERED.match(line)) is not None]
    if marked and numbered:
        return Finding(False, f"{len(marked)} bullets and {len(numbered)} numbered items, one kind of list wanted")
    items = [item.strip("*_`\"'“” ").casefold() for item in marked or numbered]
    if len(items) < wanted.min_items:
        return compared(len(items), AT_LEAST, wanted.min_items, "list items")
    unordered = [pair for pair in pairwise(items) if pair[0] > pair[1]]
    detail = f"{len(items)} list items, {len(unordered)} out of alphabetical order"
    if unordered:
        detail += f": {shown(unordered[0][0], 30)} before {shown(unordered[0][1], 30)}"
    return Finding(not unordered, detail)


@dataclass(frozen=True, slots=True)
class NumberedList:
    num_items: int = arguments.integer(minimum=1)


def numbered_list(text: str, wanted: NumberedList) -> Finding:
    """Lines `1.` or `1)` to n, each number once and in order."""
    numbers = [int(found[1]) for line in lines(text) if (found := _NUMBERED.match(line)) is not None]
    if numbers != list(range(1, len(numbers) + 1)):
        return Finding(False, f"{len(numbers)} numbered items, not numbered 1 to {len(numbers)}")
    return exactly(len(numbers), wanted.num_items, "numbered items")


@dataclass(frozen=True, slots=True)
class UniqueWords:
    num_words: int = arguments.integer(minimum=1)


def unique_words(text: str, wanted: UniqueWords) -> Finding:
    """At least so many different words, apart from case."""
    return compared(len(set(words(text.casefold()))), AT_LEAST, wanted.num_words, "different words")


@dataclass(frozen=True, slots=True)
class SentenceLength:
    max_words: int = arguments.integer(minimum=1)


def sentence_length(text: str, wanted: SentenceLength) -> Finding:
    """No sentence has more words."""
    longest = max((len(words(sentence)) for sentence in sentences(text)), default=0)
    return compared(longest, LESS_THAN, wanted.max_words + 1, "words in the longest sentence")


@dataclass(frozen=True, slots=True)
class LineCount:
    num_lines: int = arguments.integer(minimum=1)


def line_count(text: str, wanted: LineCount) -> Finding:
    """Exactly so many lines that are not blank."""
    return exactly(sum(1 for line in lines(text) if line.strip()), wanted.num_lines, "lines")


CHECKS = {
    "ring:bullet_count_range": Check(Range, bullet_count_range),
    "ring:word_count_range": Check(Range, word_count_range),
    "ring:no_repeated_words": Check(NoArguments, no_repeated_words),
    "ring:sentences_start_with": Check(Letter, sentences_start_with, quick=False),
    "ring:palindrome": Check(Palindrome, palindrome),
    "ring:alphabetical_list": Check(AlphabeticalList, alphabetical_list),
    "ring:numbered_list": Check(NumberedList, numbered_list),
    "ring:unique_words": Check(UniqueWords, unique_words),
    "ring:sentence_length": Check(SentenceLength, sentence_length, quick=False),
    "ring:line_count": Check(LineCount, line_count),
}
