"""Metrics of n responses a problem: avg@n with its standard error, pass@k, cons@k, G-Pass@k.

avg@n is the mean over problems of each problem's mean; its standard error takes the problem as the unit drawn.
pass@k is the unbiased estimate 1 - C(n-c, k) / C(n, k) (Chen et al. 2021, arXiv 2107.03374, equation 1).
cons@n is the majority over equal answers of all n; ties are broken at random, and the expectation is reported.
G-Pass@k at tau is the chance that at least ceil(tau k) of k drawn are right (Liu et al. 2024, arXiv 2412.13147); its mean
over tau from 0.5 to 1 is mG-Pass@k.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import partial
from math import comb
from typing import Any

from megatron_ring.benchmarks.votes import Votes


def mean_and_error(groups: Sequence[Sequence[float]]) -> tuple[float, float | None]:
    """Mean over problems of each one's mean score, and its standard error; None for one problem. Raises ValueError
    where there are none."""
    if not groups or not all(groups):
        raise ValueError("no scores")
    means = [sum(group) / len(group) for group in groups]
    mean = sum(means) / len(means)
    if len(means) < 2:
        return mean, None
    variance = sum((value - mean) ** 2 for value in means) / (len(means) - 1)
    return mean, math.sqrt(variance / len(means))


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Chance that one of k, drawn from n without replacement of which so many are correct, is correct."""
    _check(n, correct, k)
    return 1.0 - comb(n - correct, k) / comb(n, k)


def g_pass_at_k(n: int, correct: int, k: int, tau: float) -> float:
    """Chance that at least ceil(tau k), and at least one, of k drawn from n are correct."""
    _check(n, correct, k)
    if not 0 <= tau <= 1:
        raise ValueError(f"tau is {tau}, outside 0..1")
    # Of the decimal number as it is written: 0.7 * 10 is a little more than 7 in binary.
    least = max(1, math.ceil(Fraction(str(tau)) * k))
    return _at_least(n, correct, k, least)


def mean_g_pass_at_k(n: int, correct: int, k: int) -> float:
    """mG-Pass@k: twice the integral of G-Pass@k over tau from 0.5 to 1, as the sum over i/k that its paper gives."""
    _check(n, correct, k)
    first = math.ceil(k / 2) + 1
    return 2 / k * sum(_at_least(n, correct, k, least) for least in range(first, k + 1))


def consensus(
    answers: Sequence[str | None], scores: Sequence[float], same: Callable[[str, str], bool] | None = None
) -> float:
    """Expected score of the majority answer; of equally frequent ones each is as likely. No answer at all votes for nothing.

    Args:
        answers: in a form in which equal answers are equal texts; None: no answer.
        scores: of each response. Equal answers count with the mean of their scores.
        same: whether two texts that differ are the same answer.
    """
    votes = Votes(same)
    for answer, score in zip(answers, scores, strict=True):
        votes.add(answer, score)
    return votes.value


def powers_of_two(n: int) -> list[int]:
    """1, 2, 4, … up to n, and n."""
    return sorted({min(2**power, n) for power in range(n.bit_length() + 1)})


def summarize(groups: Sequence[Sequence[float]], answers: Sequence[Sequence[str | None]], **options: Any) -> dict[str, Any]:
    """All metrics of a benchmark whose scores are by problem; pass@k and G-Pass@k count a score of 1 as right.

    Problems may have different numbers of responses (some without a verdict); k goes up to the fewest.
    """
    mean, error = mean_and_error(groups)
    n = min(map(len, groups))
    counts = [(len(group), sum(score >= 1 for score in group)) for group in groups]

    def over(metric: Callable[[int, int], float]) -> float:
        return sum(metric(total, right) for total, right in counts) / len(counts)

    found: dict[str, Any] = {"score": mean, "standard_error": error, "samples_per_problem": n}
    found["pass_at_k"] = {str(k): over(partial(_pass, k)) for k in powers_of_two(n)}
    if n > 1:
        votes = [consensus(given, group, **options) for given, group in zip(answers, groups, strict=True)]
        found["cons_at_n"] = sum(votes) / len(votes)
        k = min(16, n)
        found["g_pass"] = {"k": k, **{str(tau): over(partial(_g_pass, k, tau)) for tau in (0.25, 0.5, 0.75, 1.0)}}
        found["g_pass"]["mean"] = over(partial(_mean_g_pass, k))
    return found


def _pass(k: int, n: int, correct: int) -> float:
    return pass_at_k(n, correct, k)


def _g_pass(k: int, tau: float, n: int, correct: int) -> float:
    return g_pass_at_k(n, correct, k, tau)


def _mean_g_pass(k: int, n: int, correct: int) -> float:
    return mean_g_pass_at_k(n, correct, k)


def _at_least(n: int, correct: int, k: int, least: int) -> float:
    ways = sum(comb(correct, right) * comb(n - correct, k - right) for right in range(least, min(correct, k) + 1))
    return ways / comb(n, k)


def _check(n: int, correct: int, k: int) -> None:
    if not (0 <= correct <= n and 1 <= k <= n):
        raise ValueError(f"need 0 <= correct <= n and 1 <= k <= n, got {correct} correct, k {k}, n {n}")
