"""Two results of one benchmark compared problem by problem: paired bootstrap, and McNemar's exact test."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from megatron_ring.errors import UserError

RESAMPLES = 10_000


@dataclass(frozen=True)
class Comparison:
    """Second minus first over the problems that both have.

    Attributes:
        low, high: 95 % interval of the difference, by resampling problems.
        gained, lost: problems right (all samples: at least half) only in the second, only in the first.
        p_value: McNemar's exact test, two-sided, of these two.
    """

    problems: int
    first: float
    second: float
    low: float
    high: float
    gained: int
    lost: int
    p_value: float


def compare(first: Mapping[str, Sequence[float]], second: Mapping[str, Sequence[float]], seed: int = 0) -> Comparison:
    """Compare scores by problem. Raises `UserError` where no problem is in both."""
    shared = [key for key in first if key in second]
    if not shared:
        raise UserError("the two results share no problem: give two of the same benchmark and file")
    before = [sum(first[key]) / len(first[key]) for key in shared]
    after = [sum(second[key]) / len(second[key]) for key in shared]
    changes = [b - a for a, b in zip(before, after, strict=True)]
    low, high = bootstrap(changes, seed)
    gained = sum(b >= 0.5 > a for a, b in zip(before, after, strict=True))
    lost = sum(a >= 0.5 > b for a, b in zip(before, after, strict=True))
    count = len(shared)
    return Comparison(
        count, math.fsum(before) / count, math.fsum(after) / count, low, high, gained, lost, mcnemar(gained, lost)
    )


def bootstrap(values: Sequence[float], seed: int = 0, resamples: int = RESAMPLES) -> tuple[float, float]:
    """The 2.5 % and 97.5 % quantiles of the mean over problems that are drawn again with replacement."""
    rng, count = random.Random(seed), len(values)
    means = sorted(math.fsum(rng.choices(values, k=count)) / count for _ in range(resamples))
    return means[math.floor(0.025 * resamples)], means[math.ceil(0.975 * resamples) - 1]


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided p-value: how likely so uneven a split of the changed problems is where gain and loss are as likely."""
    changed = gained + lost
    if not changed:
        return 1.0
    tail = sum(math.comb(changed, k) for k in range(min(gained, lost) + 1)) / 2**changed
    return min(1.0, 2 * tail)
