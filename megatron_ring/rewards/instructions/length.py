"""`length_constraints:`: numbers of words, sentences, paragraphs."""

from __future__ import annotations

import re
from dataclasses import dataclass

from megatron_ring.errors import UserError
from megatron_ring.rewards.instructions import arguments
from megatron_ring.rewards.instructions.finding import Check, Finding, compared, exactly, shown
from megatron_ring.rewards.instructions.sentences import sentences
from megatron_ring.rewards.instructions.text import words

_BEFORE_PUNCTUATION = re.compile(r"[^.,?!'\"]*")


@dataclass(frozen=True, slots=True)
class NumberWords:
    num_words: int = arguments.integer()
    relation: str = arguments.relation()


def number_words(text: str, wanted: NumberWords) -> Finding:
    r"""Words are runs of `\w`: `well-known` and `don't` are two each."""
    return compared(len(words(text)), wanted.relation, wanted.num_words, "words")


@dataclass(frozen=True, slots=True)
class NumberSentences:
    num_sentences: int = arguments.integer()
    relation: str = arguments.relation()


def number_sentences(text: str, wanted: NumberSentences) -> Finding:
    """See `sentences` for what a sentence is."""
    return compared(len(sentences(text)), wanted.relation, wanted.num_sentences, "sentences")


@dataclass(frozen=True, slots=True)
class NumberParagraphs:
    num_paragraphs: int = arguments.integer(minimum=1)


def number_paragraphs(text: str, wanted: NumberParagraphs) -> Finding:
    """Paragraphs stand between dividers `***`. Before the first and after the last one there may be none."""
    paragraphs = [paragraph.strip() for paragraph in text.split("***")]
    if not all(paragraphs[1:-1]):
        return Finding(False, "an empty paragraph between two dividers ***")
    return exactly(sum(map(bool, paragraphs)), wanted.num_paragraphs, "paragraphs between ***")


@dataclass(frozen=True, slots=True)
class NthParagraphFirstWord:
    num_paragraphs: int = arguments.integer(minimum=1)
    nth_paragraph: int = arguments.integer(minimum=1)
    first_word: str = arguments.text()

    def __post_init__(self) -> None:
        if self.nth_paragraph > self.num_paragraphs:
            raise UserError(f"argument 'nth_paragraph' {self.nth_paragraph} exceeds 'num_paragraphs' {self.num_paragraphs}")


def nth_paragraph_first_word(text: str, wanted: NthParagraphFirstWord) -> Finding:
    """Paragraphs are separated by one empty line. The n-th starts with the word, apart from case.

    As in the public definition blank paragraphs do not count towards the number but do have a place, so two empty lines
    before the n-th paragraph shift it; and the first word ends at a quote, full stop, comma, `?` or `!`.
    """
    paragraphs = text.split("\n\n")
    found = exactly(sum(1 for paragraph in paragraphs if paragraph.strip()), wanted.num_paragraphs, "paragraphs")
    if not found.followed:
        return found
    nth = paragraphs[wanted.nth_paragraph - 1].split(maxsplit=1)
    start = _BEFORE_PUNCTUATION.match(nth[0].lstrip("'").lstrip('"')) if nth else None
    word = start[0].lower() if start is not None else ""
    detail = f"paragraph {wanted.nth_paragraph} starts with {shown(word)}, {shown(wanted.first_word)} wanted"
    return Finding(word == wanted.first_word.lower(), detail)


CHECKS = {
    "length_constraints:number_words": Check(NumberWords, number_words),
    "length_constraints:number_sentences": Check(NumberSentences, number_sentences, quick=False),
    "length_constraints:number_paragraphs": Check(NumberParagraphs, number_paragraphs),
    "length_constraints:nth_paragraph_first_word": Check(NthParagraphFirstWord, nth_paragraph_first_word),
}
