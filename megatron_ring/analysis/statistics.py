"""Uncertainty of pass rates: Wilson intervals, cluster bootstrap over problems, paired differences.

The unit that is drawn at random is the problem: several samples of one problem say little about another. With one
sample per problem the Wilson interval holds (Wilson 1927); with several, problems are resampled with all their
samples. All intervals are two-sided at `LEVEL`; every bootstrap is seeded, so the same data give the same interval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

LEVEL = 0.95
RESAMPLES = 10_000
_CHUNK_ENTRIES = 4_000_000  # bounds the memory of one block of resampled indices


@dataclass(frozen=True)
class Interval:
    """A two-sided confidence interval."""

    low: float
    high: float


@dataclass(frozen=True)
class Estimate:
    """A mean over problems (pass rate, or difference of two) with its interval and how that was obtained."""

    value: float
    interval: Interval
    problems: int
    samples: int
    method: str


def wilson_interval(successes: float, trials: int, level: float = LEVEL) -> Interval:
    """Wilson score interval of a proportion; raises ValueError unless 0 <= successes <= trials and trials > 0."""
    if trials <= 0 or not 0 <= successes <= trials:
        raise ValueError(f"need 0 <= successes <= trials and trials > 0, got {successes} of {trials}")
    z = NormalDist().inv_cdf(0.5 + level / 2)
    rate = successes / trials
    scale = 1 + z * z / trials
    centre = (rate + z * z / (2 * trials)) / scale
    half = z / scale * (rate * (1 - rate) / trials + z * z / (4 * trials * trials)) ** 0.5
    # At the ends the formula is exactly 0 or 1; rounding must not leave 1e-17.
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == trials else centre + half
    return Interval(low, high)


def bootstrap_mean(values: Sequence[float], seed: int = 0, level: float = LEVEL, resamples: int = RESAMPLES) -> Interval:
    """Percentile bootstrap interval of the mean of `values` (one value per problem)."""
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        raise ValueError("no values to resample")
    generator = np.random.default_rng(seed)
    means = np.empty(resamples)
    rows = max(1, _CHUNK_ENTRIES // array.size)
    for start in range(0, resamples, rows):
        stop = min(start + rows, resamples)
        means[start:stop] = array[generator.integers(array.size, size=(stop - start, array.size))].mean(axis=1)
    low, high = np.quantile(means, [0.5 - level / 2, 0.5 + level / 2])
    return Interval(float(low), float(high))


def pass_rate(rewards: Mapping[str, Sequence[float]], seed: int = 0, level: float = LEVEL) -> Estimate:
    """Mean over problems of each problem's mean reward.

    Args:
        rewards: problem → rewards of its samples, each in [0, 1]. Raises ValueError when empty.

    Wilson when every problem has one 0/1 sample, otherwise cluster bootstrap. When all problems have the same mean
    the bootstrap has nothing to vary and would claim certainty: then Wilson over problems, which is wider than the
    data strictly need.
    """
    if not rewards:
        raise ValueError("no problems")
    means = [sum(group) / len(group) for group in rewards.values()]
    samples = sum(len(group) for group in rewards.values())
    value = sum(means) / len(means)
    binary = all(reward in (0, 1) for group in rewards.values() for reward in group)
    if (samples == len(means) and binary) or len(set(means)) == 1:
        clamped = min(max(sum(means), 0.0), float(len(means)))
        return Estimate(value, wilson_interval(clamped, len(means), level), len(means), samples, "Wilson")
    interval = bootstrap_mean(means, seed, level)
    return Estimate(value, interval, len(means), samples, "bootstrap over problems")


def paired_difference(
    before: Mapping[str, Sequence[float]], after: Mapping[str, Sequence[float]], seed: int = 0, level: float = LEVEL
) -> Estimate:
    """Mean of after − before over the problems that both have, with a bootstrap interval over those problems.

    Raises ValueError when no problem is shared. When every problem changed by the same amount d the bootstrap cannot
    vary; then the share w of unseen problems that may behave otherwise is bounded by Wilson (0 of n), and those may
    change by −1 to 1.
    """
    shared = [problem for problem in before if problem in after]
    if not shared:
        raise ValueError("the two share no problem")
    changes = [sum(after[key]) / len(after[key]) - sum(before[key]) / len(before[key]) for key in shared]
    value = sum(changes) / len(changes)
    samples = sum(len(before[key]) + len(after[key]) for key in shared)
    if len(set(changes)) > 1:
        interval = bootstrap_mean(changes, seed, level)
        return Estimate(value, interval, len(shared), samples, "paired bootstrap over problems")
    other = wilson_interval(0, len(shared), level).high
    interval = Interval(max(-1.0, value * (1 - other) - other), min(1.0, value * (1 - other) + other))
    return Estimate(value, interval, len(shared), samples, "bound: every problem changed alike")
