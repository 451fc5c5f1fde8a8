"""Votes over equal answers of one problem, and when a majority is sure enough to stop sampling.

The rule is Adaptive-Consistency's (Aggarwal et al. 2023, arXiv 2305.11860, the Beta criterion): with v1 and v2 votes for the
two most frequent answers, stop where the first one's share among the two is above one half with the wanted probability,
under Beta(v1 + 1, v2 + 1). For whole numbers that probability is a sum of binomials, so that it is exact.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from math import comb

Same = Callable[[str, str], bool]


@dataclass
class _Class:
    """Equal answers: how many, and the scores of those that have one."""

    count: int = 0
    scored: int = 0
    total: float = 0.0

    @property
    def mean(self) -> float:
        return self.total / self.scored if self.scored else 0.0


class Votes:
    """The answers of one problem as they come.

    Args:
        same: whether two texts that differ are the same answer. An answer joins the first class that it equals.

    Attributes:
        silent: responses without an answer. They vote for nothing.
    """

    def __init__(self, same: Same | None = None) -> None:
        self._same = same
        self._classes: dict[str, _Class] = {}
        self._class_of: dict[str, str] = {}
        self.silent = 0

    def add(self, answer: str | None, score: float | None) -> None:
        """One response. `answer` is in a form in which equal answers are equal texts; `score` None: no verdict."""
        if answer is None:
            self.silent += 1
            return
        found = self._classes.setdefault(self._key(answer), _Class())
        found.count += 1
        if score is not None:
            found.scored += 1
            found.total += score

    def _key(self, answer: str) -> str:
        same = self._same
        if answer not in self._class_of:
            equal = next((other for other in self._classes if same(other, answer)), answer) if same else answer
            self._class_of[answer] = equal
        return self._class_of[answer]

    @property
    def value(self) -> float:
        """Expected score of the majority: the mean over the most frequent answers, equal answers with the mean of their
        scores; 0 without any answer."""
        if not self._classes:
            return 0.0
        most = max(found.count for found in self._classes.values())
        leading = [found.mean for found in self._classes.values() if found.count == most]
        return sum(leading) / len(leading)

    @property
    def certainty(self) -> Fraction:
        """`majority_certainty` of the two largest groups. Responses without an answer are a group here: where all are
        silent, more of them help as little as where all agree."""
        first, second = sorted([self.silent, *(found.count for found in self._classes.values()), 0])[:-3:-1]
        return majority_certainty(first, second)


@functools.lru_cache(maxsize=1 << 16)
def majority_certainty(first: int, second: int) -> Fraction:
    """P(p > 1/2) for p from Beta(first + 1, second + 1): 1/2 for equal counts; 4 to 0 give 31/32.

    It is P(X <= first) for X binomial with first + second + 1 trials of chance 1/2.

    Raises:
        ValueError: a count below 0, or fewer votes for the first.
    """
    if not 0 <= second <= first:
        raise ValueError(f"need first >= second >= 0 votes, got {first} and {second}")
    trials = first + second + 1
    return Fraction(sum(comb(trials, k) for k in range(first + 1)), 2**trials)
