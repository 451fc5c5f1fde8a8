"""Spread against brute force, known distributions and mpmath's Student quantiles."""

from __future__ import annotations

import itertools
import math

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_ring.analysis.spread import (
    _T_975,
    MAX_SEEDS,
    coefficient_of_variation,
    paired_seeds,
    sample,
    step_to_step_deviation,
    step_to_step_variation,
)

positive = st.lists(st.floats(0.01, 1e6), min_size=2, max_size=40)


@given(values=positive, scale=st.floats(0.01, 100))
def test_coefficient_of_variation_is_numpys_and_has_no_unit(values: list[float], scale: float) -> None:
    expected = np.std(values) / np.mean(values)
    assert coefficient_of_variation(values) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert coefficient_of_variation([scale * value for value in values]) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_no_variation_is_exactly_zero() -> None:
    assert coefficient_of_variation([6144.0] * 90) == 0.0
    assert step_to_step_variation([6144.0] * 90) == 0.0


def test_step_to_step_ignores_a_trend_and_agrees_without_one() -> None:
    trend = [100.0 + step for step in range(1000)]
    assert coefficient_of_variation(trend) > 0.4 and step_to_step_variation(trend) < 0.002
    noise = list(np.random.default_rng(0).normal(100, 10, 50_000))
    assert step_to_step_variation(noise) == pytest.approx(coefficient_of_variation(noise), rel=0.02)


@given(values=positive)
def test_step_to_step_by_hand(values: list[float]) -> None:
    total = sum((b - a) ** 2 for a, b in itertools.pairwise(values)) / (len(values) - 1)
    expected = math.sqrt(total / 2) / (sum(values) / len(values))
    assert step_to_step_variation(values) == pytest.approx(expected, rel=1e-9)
    assert step_to_step_deviation(values) == pytest.approx(math.sqrt(total / 2), rel=1e-9)


def test_quantiles_are_students() -> None:
    assert len(_T_975) == MAX_SEEDS - 1
    for freedom, quantile in enumerate(_T_975, start=1):
        # P(|T| > t) = I_{v/(v+t²)}(v/2, 1/2)
        tail = mpmath.betainc(freedom / 2, 0.5, 0, freedom / (freedom + quantile**2), regularized=True)
        assert float(tail) == pytest.approx(0.05, abs=5e-6)


def test_paired_differences_by_hand() -> None:
    found = paired_seeds([1.0, 2.0, 3.0], [2.0, 4.0, 6.0])  # 1, 2, 3: mean 2, sd 1
    assert found.value == 2.0 and found.interval is not None
    assert found.interval.low == pytest.approx(2 - 4.3027 / math.sqrt(3))
    assert found.interval.high == pytest.approx(2 + 4.3027 / math.sqrt(3))
    assert not found.exceeds_spread
    assert paired_seeds([1.0, 2.0, 3.0], [3.0, 4.1, 4.9]).exceeds_spread
    # What all seeds share cancels out.
    assert paired_seeds([0.0, 10.0, 20.0], [1.0, 11.1, 20.9]).exceeds_spread


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    generator = np.random.default_rng(1)
    hits = 0
    for _ in range(4000):
        first, second = generator.normal(5, 3, 4), generator.normal(0.7, 1, 4)
        interval = paired_seeds(list(first), list(first + second)).interval
        assert interval is not None
        hits += interval.low <= 0.7 <= interval.high
    assert hits / 4000 == pytest.approx(0.95, abs=0.012)


def test_what_one_seed_cannot_say() -> None:
    assert math.isnan(sample([3.0]).sd)
    one = paired_seeds([1.0], [5.0])
    assert one.value == 4.0 and one.interval is None and not one.exceeds_spread


@pytest.mark.parametrize(
    "call",
    [
        lambda: coefficient_of_variation([]),
        lambda: coefficient_of_variation([-1.0, 1.0]),
        lambda: step_to_step_deviation([1.0]),
        lambda: step_to_step_variation([0.0, 0.0]),
        lambda: sample([]),
        lambda: paired_seeds([1.0], [1.0, 2.0]),
        lambda: paired_seeds([1.0] * 17, [1.0] * 17),
    ],
)
def test_nothing_is_made_up(call) -> None:
    with pytest.raises(ValueError):
        call()
