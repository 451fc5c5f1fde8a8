r"""Find the final answer: the content of the last complete `\boxed{...}`, in linear time whatever the text."""

from __future__ import annotations

import re
from bisect import bisect

_BOX_START = re.compile(r"\\boxed\s*+\{")
# `\boxed 5`: TeX takes one digit; a whole number is meant.
_UNBRACED = re.compile(
    r"\\boxed(?:\s{1,8}|(?=[-.\d\\]))"
    r"(-?\d[\d,]{0,60}(?:\.\d{1,60})?(?<!,)|-?\.\d{1,60}|[A-Za-z](?=\s{0,8}(?:[$.]|\\[\])]|\n|\Z))"
    r"|-?\\[A-Za-z]{1,20}(?:\{[^{}\\]{0,80}\}){0,2})"
)
_INNER = re.compile(r"\\boxed(?![A-Za-z])")
_BLANK = re.compile(r"\s*+")
_EMPTY_LINE = re.compile(r"\n[ \t]*\n")
# A run of backslashes, with the box it may open, or a brace. Possessive: no backtracking, so linear on any input.
_TOKEN = re.compile(r"(\\++)(boxed\s*+\{)?+|[{}]")


def last_boxed(text: str) -> str | None:
    r"""Content of the last `\boxed{...}` that closes, or None when no box closes.

    Braces may nest; escaped ones (`\{`, `\}`) are text. A box left open, as in a response cut by its length limit,
    does not count: the last complete one does. So does one inside the thinking, where none follows. A box within a
    complete one is a part of that answer: `\boxed{\boxed{5}}` is 5, `\boxed{\boxed{5} or \boxed{6}}` names two values.
    Without a brace, as in `\boxed 5`, the next number, letter or command is the content.
    """
    first = text.find("\\boxed")
    if first < 0:
        return None
    unbraced = max(_UNBRACED.finditer(text, first), key=re.Match.start, default=None)
    starts = [match.start() for match in _BOX_START.finditer(text, first)]
    span = _last_complete(text, starts[0]) if starts else None
    if (
        unbraced is not None
        and (not starts or unbraced.start() > starts[-1])
        and (span is None or unbraced.start() > span[1])
    ):
        return unbraced[1]
    content = None if span is None else text[span[0] : span[1]]
    return _INNER.sub(" ", content).strip() if content and "\\boxed" in content else content


def _last_complete(text: str, start: int) -> tuple[int, int] | None:
    """Where the content of the last complete box at or after `start` begins and ends, in one pass. Of nested boxes it is the
    outermost, or the one that is all of it; one with an empty line in it is no box of TeX's, but one that was left open."""
    depth = 0
    open_boxes: list[tuple[int, int, int]] = []  # (depth outside the box, where it starts, where its content does)
    best: tuple[int, int, int, int] | None = None  # (where the box starts and ends, where its content does)
    escaped = -1
    breaks = [line.start() for line in _EMPTY_LINE.finditer(text, start)]
    for token in _TOKEN.finditer(text, start):
        if token[2]:
            open_boxes.append((depth, token.start(), token.end()))
            depth += 1
        elif token[1]:
            escaped = token.end() if len(token[1]) % 2 else -1
        elif token.start() == escaped:
            continue
        elif token[0] == "{":
            depth += 1
        elif depth > 0:
            depth -= 1
            if open_boxes and open_boxes[-1][0] == depth:
                _, box_start, content_start = open_boxes.pop()
                if best is None or content_start > best[2]:
                    best = (box_start, token.end(), content_start, token.start())
                elif bisect(breaks, content_start) == bisect(breaks, token.start()):
                    alone = _BLANK.fullmatch(text, content_start, best[0]) and _BLANK.fullmatch(text, best[1], token.start())
                    content = best[2:] if alone else (content_start, token.start())
                    best = (box_start, token.end(), *content)
    return None if best is None else best[2:]


def marked_answer(text: str) -> str | None:
    """The final answer of a worked solution in GSM8K's form: what follows the last `####`, to the end of its line."""
    _, mark, after = text.rpartition("####")
    answer = after.strip().split("\n", 1)[0].strip()
    return answer if mark and answer else None
