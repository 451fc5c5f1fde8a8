"""What a check finds, and what a check is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

LESS_THAN = "less than"
AT_LEAST = "at least"


@dataclass(frozen=True, slots=True)
class Finding:
    """Whether one instruction is followed, and the numbers that decided it, for the reason of a reward."""

    followed: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Check:
    """How one kind of instruction is checked.

    Attributes:
        arguments: the dataclass of its arguments; its fields are made by `arguments.integer` and its like.
        find: takes the response's text (line breaks are `\\n`, not blank) and the arguments.
        quick: certain to take milliseconds for a response of a few thousand words. False where a language is
            detected or sentences are split, which load a model first.
    """

    arguments: type
    find: Callable[[str, Any], Finding]
    quick: bool = True


@dataclass(frozen=True, slots=True)
class NoArguments:
    """For instructions that take none."""


def compared(number: int, relation: str, threshold: int, what: str) -> Finding:
    """`number` against a threshold, by one of the two relations of the public files."""
    followed = number < threshold if relation == LESS_THAN else number >= threshold
    return Finding(followed, f"{number} {what}, {relation} {threshold} wanted")


def exactly(number: int, wanted: int, what: str) -> Finding:
    """`number` against the one that was asked for."""
    return Finding(number == wanted, f"{number} {what}, exactly {wanted} wanted")


def within(number: int, minimum: int, maximum: int, what: str) -> Finding:
    """`number` against a closed range."""
    return Finding(minimum <= number <= maximum, f"{number} {what}, {minimum} to {maximum} wanted")


def shown(text: str, limit: int = 60) -> str:
    """A text, shortened and on one line, for a reason."""
    return repr(text if len(text) <= limit else text[: limit - 3] + "...")
