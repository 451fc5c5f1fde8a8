"""Corrections for the sampler/trainer mismatch, and its measure. The losses that use them: test_objectives.py."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ring.algorithm.corrections import IcePop, KPop, TruncatedImportance, binary_kl
from megatron_ring.algorithm.mismatch import ratio_histogram, ratio_quantiles

probabilities = st.lists(st.tuples(st.floats(1e-6, 0.999), st.floats(1e-6, 0.999)), min_size=1, max_size=20)


@settings(max_examples=80, deadline=None)
@given(probabilities, st.floats(0.01, 3.0))
def test_weights_are_the_formula_s(pairs: list[tuple[float, float]], phi: float) -> None:
    trainer, sampler = (torch.tensor([pair[i] for pair in pairs], dtype=torch.float64).log() for i in (0, 1))
    tis = TruncatedImportance(2.0).weights(trainer, sampler).tolist()
    icepop = IcePop(0.5, 5.0).weights(trainer, sampler).tolist()
    kpop = KPop(phi).weights(trainer, sampler).tolist()
    for i, (p, q) in enumerate(pairs):
        k = p / q
        both = [a * math.log(a / b) + (1 - a) * math.log((1 - a) / (1 - b)) for a, b in ((p, q), (q, p))]
        assert tis[i] == pytest.approx(min(k, 2.0))
        if min(abs(k - 0.5), abs(k - 5.0)) > 1e-9:
            assert icepop[i] == pytest.approx(k if 0.5 < k < 5 else 0.0)
        if abs(max(both) - phi) > 1e-9:
            assert kpop[i] == pytest.approx(k if max(both) < phi else 0.0)
        assert binary_kl(trainer, sampler)[i].item() == pytest.approx(both[0], abs=1e-9)


def test_the_bounds_belong_to_the_kept_range() -> None:
    trainer, sampler = torch.tensor([0.5, 4.0, 0.25, 8.0]).log(), torch.zeros(4)
    assert IcePop(0.5, 4.0).weights(trainer, sampler).bool().tolist() == [True, True, False, False]


@pytest.mark.parametrize("pair", [(0.0, 0.0), (0.0, -1e-9), (-80.0, 0.0), (0.0, -80.0), (-80.0, -80.0)])
def test_certain_and_impossible_tokens_stay_finite(pair: tuple[float, float]) -> None:
    trainer, sampler = torch.tensor([pair[0]]), torch.tensor([pair[1]])
    assert binary_kl(trainer, sampler).isfinite().all()
    for correction in (TruncatedImportance(2.0), IcePop(0.5, 5.0), KPop(2.0)):
        assert correction.weights(trainer, sampler).isfinite().all()
    assert KPop(2.0).weights(trainer, sampler).bool().item() == (abs(pair[0] - pair[1]) < 1)


def test_equal_probabilities_are_left_alone() -> None:
    logprobs = -torch.rand(50)
    for correction in (TruncatedImportance(2.0), IcePop(0.5, 5.0), KPop(2.0)):
        assert correction.weights(logprobs, logprobs).eq(1).all()
    assert ratio_quantiles(ratio_histogram(torch.zeros(9)), [0.01, 0.5, 0.99]) == [1.0, 1.0, 1.0]
    assert ratio_quantiles(ratio_histogram(torch.zeros(0)), [0.5]) == [1.0]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-8.0, 8.0), min_size=1, max_size=60), st.integers(0, 60))
def test_quantiles_from_added_histograms(values: list[float], cut: int) -> None:
    log_ratio = torch.tensor(values, dtype=torch.float64)
    histogram = ratio_histogram(log_ratio[:cut]) + ratio_histogram(log_ratio[cut:])
    assert int(histogram.sum()) == len(values)
    for quantile, found in zip((0.01, 0.5, 0.99), ratio_quantiles(histogram, (0.01, 0.5, 0.99)), strict=True):
        exact = sorted(values)[math.ceil(quantile * len(values)) - 1]
        assert math.log(found) == pytest.approx(exact, rel=0.075, abs=2e-7)
