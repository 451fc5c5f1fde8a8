r"""Short answers as text: where a response says its answer, and the tokens by which two texts are compared.

Tokens follow SQuAD's normalisation (Rajpurkar et al. 2016): lower case, no punctuation, no articles. Three things differ, so
that unequal answers stay unequal: a number stays a number (SQuAD's `3.5` is its `35`), signs that are no punctuation stay
(`C++` is not `C`), and a word between hyphens is a word of its own, as in DROP. Chinese, Japanese and Thai text has no
blanks between words: each character is a token. Everything is linear in the text.
"""

from __future__ import annotations

import re
import unicodedata

from megatron_ring.rewards.boxed import last_boxed
from megatron_ring.rewards.instructions.text import answer_part, plain_line_breaks

MAX_ANSWER_CHARACTERS = 20_000

_SAYS = re.compile(
    r"(?i:(?<![^\W\d_])(?:final\s{1,3})?answer(?:\s{0,3}[*_]{0,3}[:：]|\s{1,3}is\b[ \t]{0,4}[:：]?))"
    r"|(?:答案|回答)(?:\s{0,3}[*_]{0,3}[:：]|(?:是|为)\s{0,3}[:：]?)"
)
_ARTICLES = frozenset({"a", "an", "the"})
# Characters of scripts that are written without blanks: kana, CJK ideographs (with their extensions), Thai.
_ALONE = "぀-ヿㇰ-ㇿ㐀-䶿一-鿿豈-﫿\U00020000-\U0003ffff฀-๿"
_PIECE = re.compile(rf"[{_ALONE}]|[^\s{_ALONE}]+")
_NUMBER = re.compile(r"[$£€¥]?([+-]?)[$£€¥]?(\d{1,3}(?:,\d{3}){1,12}|\d{1,40})?(\.\d{1,40})?%?", re.ASCII)
_PLAIN_NUMBER = re.compile(r"-?\d+(?:\.\d+)?", re.ASCII)
_HYPHENS = re.compile(r"(?<=[^\W\d_])[-‐‑–—]+(?=\w)|(?<=\w)[-‐‑–—]+(?=[^\W\d_])|(?<=\d)[–—-]+(?=\d)|[–—]+|(?<!\S)-+(?!\S)")
_MINUS = re.compile("[−‐‑](?=[.\\d])")
_KEPT = frozenset("#%&@*\\/_")  # punctuation by Unicode, but a part of names and terms


def said_answer(response: str) -> str | None:
    r"""The answer that a response says: after its thinking, what follows the last "Answer:", "the answer is" or "答案:" to
    the end of that line, or the last `\boxed{}`, whichever comes last; a box inside that line is opened. Without either the
    whole text after the thinking. None where there is nothing, or too much to be an answer.
    """
    shown = plain_line_breaks(answer_part(response)).strip()
    marked = max(_SAYS.finditer(shown), key=re.Match.start, default=None)
    if marked is not None:
        line = shown[marked.end() :].strip(" \t*_").split("\n", 1)[0]
        if not line:  # the answer stands below its heading
            line = shown[marked.end() :].strip(" \t*_\n").split("\n", 1)[0]
        later = shown.rfind("\\boxed") > marked.start()
        found = (last_boxed(shown[marked.end() :]) if later else None) or line
    else:
        found = last_boxed(shown) or shown
    found = found.strip()
    return found if found and len(found) <= MAX_ANSWER_CHARACTERS else None


def tokens(text: str) -> list[str]:
    """Normalised tokens. Articles alone stay: a text that has a letter, digit or sign has a token."""
    plain = unicodedata.normalize("NFKC", text).lower().replace("⁄", "/")
    plain = _HYPHENS.sub(" ", _MINUS.sub("-", plain))
    found = [token for piece in _PIECE.findall(plain) if (token := _token(piece))]
    kept = [token for token in found if token not in _ARTICLES]
    return kept or found


def is_number(token: str) -> bool:
    """Whether a token is a number, as `tokens` writes them."""
    return _PLAIN_NUMBER.fullmatch(token) is not None


def _token(piece: str) -> str:
    bare = piece.strip("\"'“”‘’`()[]{}<>;:!?,*_").rstrip(".")
    number = _NUMBER.fullmatch(bare)
    if number is not None and (number[2] or number[3]):
        whole = (number[2] or "").replace(",", "").lstrip("0") or "0"
        decimals = (number[3] or "").rstrip("0").rstrip(".")
        sign = "-" if number[1] == "-" and (whole != "0" or decimals) else ""
        return f"{sign}{whole}{decimals}"
    kept = "".join(
        one
        for place, one in enumerate(bare)
        if one in _KEPT or not unicodedata.category(one).startswith("P") or _inside_number(bare, place)
    )
    return kept if kept.strip("*_\\/") else ""


def _inside_number(text: str, place: int) -> bool:
    """A point, comma or colon between two digits: 10:30 is not 1030."""
    return text[place] in ".,:" and text[place - 1 : place].isdigit() and text[place + 1 : place + 2].isdigit()
