r"""Find the final answer: the content of the last complete `\boxed{...}`, in linear time whatever the text."""

from __future__ import annotations

import re

_BOX_START = re.compile(r"\\boxed\s*+\{")
# `\boxed 5`: TeX takes one digit; a whole number is meant.
_UNBRACED = re.compile(
    r"\\boxed(?:\s{1,8}|(?=[-.\d\\]))"
    r"(-?\d[\d,]{0,60}(?:\.\d{1,60})?(?<!,)|-?\.\d{1,60}|[A-Za-z](?=\s{0,8}(?:[$.]|\\[\])]|\n|\Z))"
    r"|-?\\[A-Za-z]{1,20}(?:\{[^{}\\]{0,80}\}){0,2})"
)
# A run of backslashes, with the box it may open, or a brace. Possessive: no backtracking, so linear on any input.
_TOKEN = re.compile(r"(\\++)(boxed\s*+\{)?+|[{}]")


def last_boxed(text: str) -> str | None:
    r"""Content of the `\boxed{...}` that starts last among those that close, or None when no box closes.

    Braces may nest; escaped ones (`\{`, `\}`) are text. A box left open, as in a response cut by its length limit,
    does not count: the last complete one does. So does one inside the thinking, where none follows. Of nested boxes the
    inner one is the answer. Without a brace, as in `\boxed 5`, the next number, letter or command is the content.
    """
    first = text.find("\\boxed")
    if first < 0:
        return None
    unbraced = max(_UNBRACED.finditer(text, first), key=re.Match.start, default=None)
    starts = [match.start() for match in _BOX_START.finditer(text, first)]
    if unbraced is not None and (not starts or unbraced.start() > starts[-1]):
        return unbraced[1]
    if not starts:
        return None
    content = _last_complete(text, starts[-1])
    if content is None and len(starts) > 1:
        content = _last_complete(text, starts[0])
    return content


def _last_complete(text: str, start: int) -> str | None:
    """The last complete box at or after `start`, in one pass."""
    depth = 0
    open_boxes: list[tuple[int, int]] = []  # (depth outside the box, where its content starts)
    best: tuple[int, int] | None = None
    escaped = -1
    for token in _TOKEN.finditer(text, start):
        if token[2]:
            open_boxes.append((depth, token.end()))
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
                _, content_start = open_boxes.pop()
                if best is None or content_start > best[0]:
                    best = (content_start, token.start())
    return None if best is None else text[best[0] : best[1]]


def marked_answer(text: str) -> str | None:
    """The final answer of a worked solution in GSM8K's form: what follows the last `####`, to the end of its line."""
    _, mark, after = text.rpartition("####")
    answer = after.strip().split("\n", 1)[0].strip()
    return answer if mark and answer else None
