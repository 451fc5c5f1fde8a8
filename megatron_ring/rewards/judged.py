"""What rows of the judge's domains hold: criteria, or the true answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from megatron_ring.errors import UserError


def criteria(answer: Any) -> list[str]:
    """The criteria of a rubric: one text, or a list of them. Raises `UserError`."""
    found = [answer] if isinstance(answer, str) else answer
    if not isinstance(found, list) or not found or not all(isinstance(text, str) and text.strip() for text in found):
        raise UserError("a rubric is a text, or a list of texts, none of them empty: one criterion each")
    return found


def true_answer(answer: Any) -> str:
    """The true answer that a judge compares with, as text. Raises `UserError`."""
    number = isinstance(answer, int | float) and not isinstance(answer, bool)
    if not number and not (isinstance(answer, str) and answer.strip()):
        raise UserError("the true answer is a text, not empty, or a number")
    return str(answer)


def reference_text(answer: Any) -> str:
    """The reference answer of a row that may have none: its text, or \"\"."""
    return answer.strip() if isinstance(answer, str) else ""


REFERENCES: dict[str, Callable[[Any], object]] = {"RubricJudge": criteria, "ReferenceJudge": true_answer}
"""`check_reference` of the judge's scorers."""
