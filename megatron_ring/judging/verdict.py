"""What a judge has decided, read strictly: a text that does not end in exactly one verdict line has none.

The line bears a code that each prompt draws anew from all that it asks. A response cannot know the code, so that a verdict
that it dictates, and that the judge repeats, is not taken for the judge's own.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

LETTERS = "BCDFGHJKLMNPQRSTVWXZ"  # no vowels: a code is no word
_DECORATION = r"[*_` \t\r]*"
OPEN, CLOSE = "<think>", "</think>"
COMPLETE = "stop"  # OpenAI's word for an answer that ended by itself


@dataclass(frozen=True)
class Reply:
    """What a judge has written.

    Attributes:
        text: with its thinking, if that is no part of its own.
        finish: what ended it; `COMPLETE` where it ended by itself.
        opened: the prompt has opened the thinking.
        problem: why there is no text.
    """

    text: str
    finish: str
    opened: bool = False
    problem: str | None = None


@dataclass(frozen=True)
class Verdict:
    """A verdict, or why there is none: exactly one of the two is there."""

    value: str | None
    problem: str | None = None


def code_of(*parts: str) -> str:
    """Six letters that depend on all of these texts."""
    digest = hashlib.sha256("\0".join(f"{len(part)}:{part}" for part in parts).encode(errors="surrogatepass")).digest()
    number = int.from_bytes(digest[:8], "big")
    letters = []
    for _ in range(6):
        number, place = divmod(number, len(LETTERS))
        letters.append(LETTERS[place])
    return "".join(letters)


def read_verdict(reply: Reply, code: str, values: Sequence[str]) -> Verdict:
    """The verdict of a reply. A cut reply has none: `1` may have been going to be `10`."""
    if reply.problem is not None:
        return Verdict(None, reply.problem)
    if reply.finish != COMPLETE:
        return Verdict(None, f"the judge's text is cut ({reply.finish or 'what ended it is not said'})")
    text = _after_thinking(reply.text, reply.opened)
    if text is None:
        return Verdict(None, "the judge's thinking never ends")
    found = len(re.findall(rf"verdict\W*{code}", text, re.IGNORECASE))
    if found != 1:
        return Verdict(None, "no verdict line" if not found else f"{found} verdict lines")
    last = text.rstrip(" \t\r\n").rsplit("\n", 1)[-1]
    either = "|".join(map(re.escape, values))
    match = re.fullmatch(rf"{_DECORATION}Verdict {code}:{_DECORATION}({either}){_DECORATION}", last)
    return Verdict(match[1]) if match else Verdict(None, "the last line is not a verdict line")


def read_grades(reply: Reply, code: str, names: Sequence[str]) -> dict[str, int]:
    """The grades, 1 to 10, that a reply gives beside its verdict, by name. One that it gives twice, or not, is left out."""
    lines = (_after_thinking(reply.text, reply.opened) or "").splitlines() if names else []
    found = {}
    for name in names:
        form = re.compile(rf"{_DECORATION}Grade {code} {re.escape(name)}:{_DECORATION}(10|[1-9]){_DECORATION}")
        given = [match[1] for line in lines if (match := form.fullmatch(line))]
        if len(given) == 1:
            found[name] = int(given[0])
    return found


def _after_thinking(text: str, opened: bool) -> str | None:
    _, close, after = text.rpartition(CLOSE)
    if close:
        return after
    return None if opened or OPEN in text else text
