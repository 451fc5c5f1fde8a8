"""The parts of an answer, and how a text is cut into them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Kind = Literal["atom", "equation", "sequence", "set", "list", "union", "matrix", "cases"]

_TOKEN = re.compile(
    r"\\begin\s*\{[a-z]+\}|\\end\s*\{[a-z]+\}|\\[{}]|\\[A-Za-z]+|\\.|[()\[\]{}]| (?:or|and)(?= )|[,;=<>&]", re.DOTALL
)
_OPENING = ("(", "[", "{", "\\{")
_CLOSING = (")", "]", "}", "\\}")
_VARIABLE = re.compile(r"[A-Za-z]|\\[a-z]+")
_NOT_VARIABLES = frozenset({"e", "i", "\\pi", "\\infty"})


@dataclass(frozen=True, slots=True)
class Answer:
    """A part of an answer.

    Attributes:
        kind: what it is; "equation" is one whose left side is more than a name.
        text: the whole of it, with its name.
        value: the text of an atom, without its name.
        items: the parts; a matrix has its rows as sequences.
        brackets: of a sequence, both in one string; "()" for any that is not a pair.
        name: what stands before `=`, or the variable of an inequality.
        also: other sides of a chain `a = b = c`, which must be equal to it.
        approximation: the decimal after `\\approx`.
        parameter, domain: of an atom, a letter in it that stands for all integers ("Z") or natural numbers ("N").
    """

    kind: Kind
    text: str
    value: str = ""
    items: tuple[Answer, ...] = ()
    brackets: str = ""
    name: str = ""
    also: tuple[str, ...] = ()
    approximation: str = ""
    parameter: str = ""
    domain: str = ""


def split(text: str, separators: frozenset[str], found: list[str] | None = None) -> list[str]:
    """Parts between separators that stand outside all brackets; `found` receives the separators."""
    parts, depth, start = [], 0, 0
    for match in _TOKEN.finditer(text):
        token = match[0]
        if token in _OPENING or token.startswith("\\begin"):
            depth += 1
        elif token in _CLOSING or token.startswith("\\end"):
            depth -= 1
        elif depth == 0 and token in separators:
            parts.append(text[start : match.start()].strip())
            start = match.end()
            if found is not None:
                found.append(token)
    parts.append(text[start:].strip())
    return parts


def is_variable(text: str) -> bool:
    """Whether a text is the name of a variable, and of one only."""
    return _VARIABLE.fullmatch(text) is not None and text not in _NOT_VARIABLES
