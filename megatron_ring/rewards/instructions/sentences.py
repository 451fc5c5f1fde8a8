"""Split text into sentences without downloads: Punkt by nupunkt, rules of our own for long texts.

The public definition counts with NLTK's English Punkt model, which is a download; nupunkt is the same algorithm with its
model in the wheel. Both ways here know abbreviations and initials and, unlike the public one, full stops of scripts that
put no space after them (Chinese, Japanese, Devanagari, Urdu): those would make a whole text one sentence.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator

# nupunkt takes quadratic time on some texts: 0.15 s for 16,000 characters of `a. a. a. `. Longer ones go to our rules.
PUNKT_CHARACTERS = 1 << 14

_UNSPACED_STOP = re.compile(r"(?<=[。！？।۔])(?![。！？।۔”’」』）])")
# 16,000 exclamation marks cost nupunkt 1.6 s; three mean the same.
_LONG_RUN = re.compile(r"([.!?…]{3})[.!?…]++")
# A stop: its marks, closing quotes and brackets, then white space. Possessive, and never from inside a run: else a
# response of exclamation marks would be read again from each of them.
_STOP = re.compile(r"(?<![.!?…])(?P<marks>[.!?…]++)(?P<closing>[\"'”’»)\]*_]*+)(?P<space>\s++)")
_BEFORE = re.compile(r"[^\s(\[\"'“‘]*\Z")
_ABBREVIATED = (
    "mr mrs ms dr prof rev hon st sr jr gen col capt cpt lt sgt fig figs no nos vol vols pp ed eds eq eqs sec ch approx"
    " vs etc e.g i.e cf al inc ltd co corp dept est ph.d jan feb mar apr jun jul aug sep sept oct nov dec"
)
_ABBREVIATIONS = frozenset(_ABBREVIATED.split())
# They also end sentences; what follows decides.
_MAY_END = frozenset(("etc", "inc", "ltd", "co", "corp", "jr", "sr", "al", "ph.d"))
_LONGEST_ABBREVIATION = 12
_DOTS = ("..", "...", "....", "…")


def sentences(text: str) -> list[str]:
    """The sentences of a text, stripped, none empty. A line break alone ends none; a text without stops is one."""
    return list(_split(text, punkt=len(text) <= PUNKT_CHARACTERS))


@functools.lru_cache(maxsize=1)  # a response has several instructions, and half a second's work in a long one
def _split(text: str, punkt: bool) -> tuple[str, ...]:
    parts = _punkt(_LONG_RUN.sub(r"\1", text)) if punkt else by_rules(text)
    pieces = (piece.strip() for part in parts for piece in _UNSPACED_STOP.split(part))
    return tuple(piece for piece in pieces if piece)


def by_rules(text: str) -> Iterator[str]:
    """Sentences by our rules.

    A run of `.`, `!`, `?`, `…`, with the closing quotes and brackets after it, ends a sentence where white space
    follows. Not so one full stop after an abbreviation (`Dr.`, `e.g.`), an initial (`J.`) or the number of a list's
    item (`2.`); and where the next letter is in lower case, neither dots (`well... yes`), nor a stop inside quotes
    (`"Go!" he said`), nor one after `etc.`
    """
    start = 0
    for stop in _STOP.finditer(text):
        if stop["marks"] == "." and _is_abbreviation(text, stop.start(), stop.end()):
            continue
        if (stop["closing"] or stop["marks"] in _DOTS) and text[stop.end() : stop.end() + 1].islower():
            continue
        yield text[start : stop.start("space")]
        start = stop.end()
    yield text[start:]


def _is_abbreviation(text: str, stop: int, following: int) -> bool:
    before = _BEFORE.search(text, max(0, stop - _LONGEST_ABBREVIATION), stop)
    word = before[0] if before is not None else ""
    lowered = word.lower()
    if word.isdigit() and text[stop - len(word) - 1 : stop - len(word)] in ("", "\n"):
        return True  # the number of a list's item
    if lowered in _MAY_END or re.fullmatch(r"(?:[a-z]\.)+[a-z]", lowered) is not None:
        # `p.m.`, `U.S.`, `etc.`: a sentence goes on in lower case; `e.g.` and `i.e.` always go on.
        return lowered in ("e.g", "i.e") or not text[following : following + 1].isupper()
    if lowered in _ABBREVIATIONS:
        return True
    return len(word) == 1 and word.isupper() and word != "I" and text[following : following + 1].isupper()


def _punkt(text: str) -> list[str]:
    import nupunkt  # its model takes half a second to load

    return [str(sentence) for sentence in nupunkt.sent_tokenize(text)]
