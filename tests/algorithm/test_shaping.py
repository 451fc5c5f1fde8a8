"""Shaped rewards against their definitions, written out over all rewards with their weights."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_ring.algorithm.shaping import MEMORY, RunningMoments, length_gains

STEPS = st.lists(st.lists(st.floats(-50, 50), max_size=6), min_size=1, max_size=8)


@given(STEPS)
def test_moments_are_those_of_all_rewards_with_older_ones_weighing_less(steps: list[list[float]]) -> None:
    """Exactly, in fractions; a step without rewards leaves everything as it is."""
    moments = RunningMoments()
    told = [step for step in steps if step]
    for step in steps:
        moments.add(step)
    weighted = [
        (Fraction(MEMORY) ** (len(told) - 1 - age), Fraction(value)) for age, step in enumerate(told) for value in step
    ]
    total = sum(weight for weight, _ in weighted)
    if not total:
        assert (moments.count, moments.std, moments.normalised(3.0)) == (0.0, 0.0, 3.0)
        return
    mean = sum(weight * value for weight, value in weighted) / total
    variance = sum(weight * (value - mean) ** 2 for weight, value in weighted) / total
    assert moments.count == pytest.approx(float(total), rel=1e-12)
    assert moments.mean == pytest.approx(float(mean), rel=1e-9, abs=1e-9)
    assert moments.std == pytest.approx(math.sqrt(variance), rel=1e-6, abs=1e-6)
    again = RunningMoments.of(moments.state_dict())
    assert again.normalised(1.5) == moments.normalised(1.5)


def test_equal_rewards_are_not_divided_by_rounding() -> None:
    moments = RunningMoments()
    for _ in range(50):
        moments.add([0.1] * 3)
    assert abs(moments.normalised(0.1)) < 1e-12 and moments.normalised(1.1) == pytest.approx(1.0)


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(0, 3)), max_size=12), st.floats(0, 3))
def test_gains_by_length(responses: list[tuple[int, int]], weight: float) -> None:
    lengths, groups = [length for length, _ in responses], [group for _, group in responses]
    gains = length_gains(lengths, groups, weight)
    for place, (length, group) in enumerate(responses):
        own = [other for other, its in responses if its == group]
        low, high = min(own), max(own)
        shares = [Fraction(high - other, max(1, high - low)) for other in own]
        expected = Fraction(high - length, max(1, high - low)) - sum(shares) / len(shares)
        assert gains[place] == pytest.approx(weight * float(expected), abs=1e-12)
    for group in set(groups):
        own_gains = [gain for gain, its in zip(gains, groups, strict=True) if its == group]
        assert sum(own_gains) == pytest.approx(0, abs=1e-9)
        assert max(own_gains) - min(own_gains) == pytest.approx(
            weight * (len({length for length, its in responses if its == group}) > 1)
        )
