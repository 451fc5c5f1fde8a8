"""Shares of several sources kept without chance: which source comes next, from how often each has come.

Tijdeman's rule for the chairman assignment problem (Discrete Mathematics 32, 1980): with k sources of shares w_i, after any
n draws each has come n w_i times to within 1 - 1/(2k - 2), which no rule can better for all shares. So any number of draws
from the start is right to within one; a window anywhere is right to within one for two sources, and within less than two
for more (sequences right to within one in every window exist for a few shares only).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction


def whole_shares(weights: Sequence[int | float | Fraction]) -> list[int]:
    """Positive integers in exactly the ratio that the weights are written in (0.7 is seven tenths).

    Args:
        weights: positive and finite.
    """
    exact = [Fraction(str(weight)) for weight in weights]
    common = math.lcm(*(fraction.denominator for fraction in exact))
    whole = [int(fraction * common) for fraction in exact]
    divisor = math.gcd(*whole)
    return [number // divisor for number in whole]


def next_source(shares: Sequence[int], counts: Sequence[int]) -> int:
    """The source of the next draw.

    Args:
        shares: of each source, from `whole_shares`.
        counts: how often each has been drawn since the start, by this rule.

    Returns:
        its place in `shares`.
    """
    total, draws, width = sum(shares), sum(counts) + 1, max(1, 2 * len(shares) - 2)
    best, soonest = 0, None
    for i, (share, count) in enumerate(zip(shares, counts, strict=True)):
        behind = (share * draws - total * count) * width  # by how many draws, times total * width
        if behind < total and len(shares) > 1:
            continue
        deadline = Fraction((width - 1) * total - behind, share)
        if soonest is None or deadline < soonest:
            best, soonest = i, deadline
    return best
