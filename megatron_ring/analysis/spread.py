"""Spread: how much a series swings from step to step, and whether settings differ by more than seeds do.

The unit of a study is the seed: one seed gives every setting the same data, start and order of prompts, so settings are
compared seed by seed, and the interval is Student's over the seeds' differences.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, stdev

from megatron_ring.analysis.statistics import Interval

# 97.5 % quantiles of Student's t, by degrees of freedom from 1.
_T_975 = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281, 2.2010, 2.1788, 2.1604, 2.1448,
          2.1314)  # fmt: skip
MAX_SEEDS = len(_T_975) + 1


@dataclass(frozen=True)
class Sample:
    """One number per seed: its mean, sample standard deviation (NaN for one seed), smallest and largest, and how many."""

    mean: float
    sd: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Difference:
    """Mean of the paired differences of n seeds, with its 95 % interval (None for one seed, where nothing is known)."""

    value: float
    interval: Interval | None
    n: int

    @property
    def exceeds_spread(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.interval is not None and not self.interval.low <= 0 <= self.interval.high


def coefficient_of_variation(values: Sequence[float]) -> float:
    """Population standard deviation over the mean; raises ValueError for no values or a mean that is not positive."""
    mean = _positive_mean(values)
    return math.sqrt(fmean((value - mean) ** 2 for value in values)) / mean


def step_to_step_deviation(values: Sequence[float]) -> float:
    """Like the standard deviation, from differences of neighbours: a trend counts for nothing.

    sqrt(mean((x_{t+1} − x_t)²) / 2) (von Neumann 1941); for independent values the two agree. Raises ValueError for fewer
    than two values.
    """
    if len(values) < 2:
        raise ValueError("one value has no neighbours")
    return math.sqrt(fmean((after - before) ** 2 for before, after in pairwise(values)) / 2)


def step_to_step_variation(values: Sequence[float]) -> float:
    """`step_to_step_deviation` over the mean; raises ValueError for a mean that is not positive, too."""
    return step_to_step_deviation(values) / _positive_mean(values)


def sample(values: Sequence[float]) -> Sample:
    """Mean and spread of one number per seed; raises ValueError for none."""
    if not values:
        raise ValueError("no seeds")
    spread = stdev(values) if len(values) > 1 else math.nan
    return Sample(fmean(values), spread, min(values), max(values), len(values))


def paired_seeds(first: Sequence[float], second: Sequence[float]) -> Difference:
    """Mean of second − first over seeds; raises ValueError unless both hold as many seeds, from 1 to `MAX_SEEDS`."""
    if len(first) != len(second) or not 1 <= len(first) <= MAX_SEEDS:
        raise ValueError(f"need as many seeds on both sides, 1 to {MAX_SEEDS}, got {len(first)} and {len(second)}")
    differences = sample([after - before for before, after in zip(first, second, strict=True)])
    return Difference(differences.mean, student(differences), differences.n)


def student(of: Sample) -> Interval | None:
    """Student's 95 % interval of the mean of 2 to `MAX_SEEDS` seeds; None for one."""
    if of.n == 1:
        return None
    half = _T_975[of.n - 2] * of.sd / math.sqrt(of.n)
    return Interval(of.mean - half, of.mean + half)


def _positive_mean(values: Sequence[float]) -> float:
    mean = fmean(values) if values else math.nan
    if not mean > 0:
        raise ValueError(f"{len(values)} values with mean {mean}: need a positive mean")
    return mean
