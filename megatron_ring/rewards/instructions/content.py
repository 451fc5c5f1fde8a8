"""`detectable_content:`: placeholders and a postscript."""

from __future__ import annotations

import re
from dataclasses import dataclass

from megatron_ring.rewards.instructions import arguments
from megatron_ring.rewards.instructions.finding import AT_LEAST, Check, Finding, compared, shown
from megatron_ring.rewards.instructions.text import holds_word, lines

_MARKERS = {
    "P.S.": re.compile(r"(?<!\w)p\.\s?s\.", re.IGNORECASE),
    "P.P.S": re.compile(r"(?<!\w)p\.\s?p\.\s?s", re.IGNORECASE),
}


@dataclass(frozen=True, slots=True)
class NumberPlaceholders:
    num_placeholders: int = arguments.integer()


def number_placeholders(text: str, wanted: NumberPlaceholders) -> Finding:
    """Placeholders stand in square brackets on one line; `[[a]]` is one, `[]` is one too, as in the public definition."""
    number = sum(map(_placeholders, lines(text)))
    return compared(number, AT_LEAST, wanted.num_placeholders, "placeholders")


def _placeholders(line: str) -> int:
    # Not a regular expression: on a line of open brackets it would search the rest of the line for each.
    number = 0
    opened = line.find("[")
    while opened >= 0 and (closed := line.find("]", opened)) >= 0:
        number += 1
        opened = line.find("[", closed)
    return number


@dataclass(frozen=True, slots=True)
class Postscript:
    postscript_marker: str = arguments.text()


def postscript(text: str, wanted: Postscript) -> Finding:
    """The marker occurs, apart from case, and does not start inside a word; `P. S.` is `P.S.`, with one space each.

    As in the public definition it may stand anywhere in the text, and `P.P.S.` has a `P.S.` in it.
    """
    marker = wanted.postscript_marker
    pattern = _MARKERS.get(marker)
    found = holds_word(marker, text) if pattern is None else pattern.search(text) is not None
    return Finding(found, f"{'a' if found else 'no'} postscript {shown(marker)}")


CHECKS = {
    "detectable_content:number_placeholders": Check(NumberPlaceholders, number_placeholders),
    "detectable_content:postscript": Check(Postscript, postscript),
}
