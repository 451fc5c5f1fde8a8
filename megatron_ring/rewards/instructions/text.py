"""Words, lines, paragraphs: how a response is taken apart. Everything here is linear in the text."""

from __future__ import annotations

import re

THINK_OPEN = "<think>"
THINK_CLOSE = "</think>"

_WORD = re.compile(r"\w+")
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")  # Thai to Han


def plain_line_breaks(text: str) -> str:
    r"""The text with `\r\n` and lone `\r` as `\n`."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def answer_part(response: str) -> str:
    """What a reader is shown: the text after the first `</think>`; all of it where no thinking begins.

    The first, not the last: else a response could hide what breaks an instruction before a second one. Thinking that
    begins the response and is never closed leaves nothing, such a response was cut before its answer.
    """
    before, close, after = response.partition(THINK_CLOSE)
    if close:
        return after
    return "" if before.lstrip().startswith(THINK_OPEN) else before


def words(text: str) -> list[str]:
    r"""Runs of word characters (`\w+`), as the public definition has it: `don't` is two, `a_1` is one."""
    return _WORD.findall(text)


def lines(text: str) -> list[str]:
    r"""Lines, at `\n` alone: `str.splitlines` would also cut at form feeds and the like."""
    return text.split("\n")


def bullets(text: str) -> list[str]:
    """Lines that are markdown bullets: after white space a `-`, or a `*` that another character than `*` follows.

    As in the public definition this takes a rule `---` and a line that starts with `*emphasis*` for bullets.
    """
    stripped = (line.strip() for line in lines(text))
    return [line for line in stripped if line[:1] == "-" or (line[:1] == "*" and line[1:2] not in ("", "*"))]


def occurrences(needle: str, text: str) -> int:
    """How often `needle` occurs, apart from case, without overlaps, also inside words."""
    return text.casefold().count(needle.casefold())


def holds_word(word: str, text: str) -> bool:
    """Whether `word` occurs, apart from case, and not as a part of a longer word.

    Only an edge of its own that is a word character must be a word's edge: `rock` is not in `rocket`, `C++` is in `C++20`.
    Where words are written without spaces between them, as in Chinese, nothing must be.
    """
    wanted = word.casefold()
    before = r"(?<!\w)" if _WORD.match(wanted) and not _UNSPACED.match(wanted) else ""
    after = r"(?!\w)" if _WORD.match(wanted[-1:]) and not _UNSPACED.match(wanted[-1:]) else ""
    return re.search(before + re.escape(wanted) + after, text.casefold()) is not None
