"""A reason is one printable line, whatever a response or a program put into it."""

from __future__ import annotations

MAX_LENGTH = 500


def printable_line(text: str) -> str:
    """The text on one line: white space of any kind as single spaces, every other character that a terminal would not show
    as itself (controls, marks of direction, halves of surrogate pairs) as `\\N{REPLACEMENT CHARACTER}`, cut at a length."""
    if len(text) <= MAX_LENGTH and text.isprintable() and "  " not in text and text == text.strip():
        return text  # as nearly all are
    line = " ".join(text[: 4 * MAX_LENGTH].split())
    line = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in line)
    return line if len(line) <= MAX_LENGTH else line[: MAX_LENGTH - 3] + "..."
