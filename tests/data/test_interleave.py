"""Shares without chance: right to within one draw from the start, to within two anywhere."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ring.data.interleave import next_source, whole_shares

WEIGHTS = st.lists(st.integers(1, 40), min_size=1, max_size=6)


def draws(shares: list[int], count: int) -> list[int]:
    counts = [0 for _ in shares]
    sequence = []
    for _ in range(count):
        chosen = next_source(shares, counts)
        counts[chosen] += 1
        sequence.append(chosen)
    return sequence


@settings(deadline=None)
@given(shares=WEIGHTS)
def test_shares_hold_in_every_window(shares: list[int]) -> None:
    """Against the definition, over every window of a period and a half."""
    total, k = sum(shares), len(shares)
    sequence = draws(shares, total + total // 2)
    from_start = 1 - Fraction(1, 2 * k - 2) if k > 1 else Fraction(0)
    anywhere = 2 * from_start
    for source, share in enumerate(shares):
        counts = [0]
        for chosen in sequence:
            counts.append(counts[-1] + (chosen == source))
        errors = [count - Fraction(share * n, total) for n, count in enumerate(counts)]
        assert max(map(abs, errors)) <= from_start < 1 or k == 1
        assert max(errors) - min(errors) <= anywhere  # the worst window of all
        assert k > 2 or max(errors) - min(errors) <= 1
    assert sequence[total:] == sequence[: total // 2]


def test_small_cases() -> None:
    assert draws([1], 4) == [0, 0, 0, 0]
    assert draws([1, 1], 6) == [0, 1, 0, 1, 0, 1]
    assert draws([4, 2, 1], 7) == [0, 1, 0, 0, 2, 1, 0]


@pytest.mark.parametrize(
    ("weights", "shares"),
    [([0.7, 0.2, 0.1], [7, 2, 1]), ([1], [1]), ([2.5, 7.5], [1, 3]), ([73_000, 14_000, 3_833], [73_000, 14_000, 3_833]),
     ([1e-3, 1], [1, 1000])],
)  # fmt: skip
def test_weights_are_taken_as_they_are_written(weights: list[float], shares: list[int]) -> None:
    assert whole_shares(weights) == shares
