"""Problems with one right answer, given as text: numbers are compared as numbers, other text line by line.

For problems from elsewhere whose answer is unique (see `reasoning_gym`). The answer stands in the last fenced block.
"""

from __future__ import annotations

from typing import Any

from megatron_ring.rewards.exact import parse_number
from megatron_ring.rewards.interface import Reward, ScoreRequest
from megatron_ring.rewards.logic.game import MalformedInstance, Violation, excerpt, fenced_score, field_of

MAX_WORD = 16  # letters; longer answers may be about their case


def read_text(answer: Any) -> str:
    """The expected text. Raises `MalformedInstance`."""
    text = field_of(answer, "text")
    if not isinstance(text, str) or not text.strip():
        raise MalformedInstance("'text' must be text that is not blank")
    return text


def check(expected: str, text: str) -> None:
    """Raise `Violation` unless the text is the expected one, apart from blanks, empty lines and a single word's case."""
    wanted, given = _lines(expected), _lines(text)
    if given == wanted:
        return
    if len(wanted) == len(given) == 1:
        numbers = parse_number(wanted[0]), parse_number(given[0])
        if numbers[0] is not None and numbers[1] is not None and numbers[0].value == numbers[1].value:
            return
        word = wanted[0].isalpha() and len(wanted[0]) <= MAX_WORD
        if word and given[0].casefold() == wanted[0].casefold():
            return
    raise Violation(f"{excerpt(text)} is not {excerpt(expected)}")


def _lines(text: str) -> list[str]:
    return [line for row in text.split("\n") if (line := " ".join(row.split()))]


_score = fenced_score(read_text, check)


def score(request: ScoreRequest) -> Reward:
    """The verifier of `logic/exact`."""
    return _score(request)
