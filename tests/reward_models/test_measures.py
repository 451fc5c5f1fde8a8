"""Accuracy, calibration and length figures against brute force."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from megatron_ring.reward_models.measures import ScoredPair, calibration_error, correlation, summary


def drawn(count: int, scale: float, seed: int = 0) -> list[ScoredPair]:
    rng = random.Random(seed)
    return [
        ScoredPair(rng.gauss(0, scale), rng.gauss(0, scale), rng.randrange(1, 90), rng.randrange(1, 90),
                   rng.choice([0.0, 1.0]), rng.choice(["", "a", "b"]))
        for _ in range(count)
    ]  # fmt: skip


@pytest.mark.parametrize(("count", "scale", "bins"), [(1, 1.0, 10), (300, 0.3, 10), (300, 8.0, 7), (50, 900.0, 1)])
def test_figures_are_their_definitions(count: int, scale: float, bins: int) -> None:
    pairs = drawn(count, scale)
    found = summary(pairs, bins)
    gaps = np.array([pair.chosen - pair.rejected for pair in pairs])
    margins = np.array([pair.margin for pair in pairs])
    assert found["loss"] == pytest.approx(np.logaddexp(0, margins - gaps).mean())
    assert found["accuracy"] == pytest.approx((gaps > 0).mean())
    with np.errstate(over="ignore"):
        confidence = 1 / (1 + np.exp(-np.abs(gaps)))
    error = 0.0
    for number in range(bins):
        low, high = 0.5 + 0.5 * number / bins, 0.5 + 0.5 * (number + 1) / bins
        inside = (confidence >= low - 1e-12) & ((confidence < high - 1e-12) | (number == bins - 1))
        if inside.any():
            error += inside.mean() * abs((gaps[inside] > 0).mean() - confidence[inside].mean())
    assert found["ece"] == pytest.approx(error, abs=1e-9)
    assert sum(part["pairs"] for part in found["reliability"]) == count
    rewards = np.array([reward for pair in pairs for reward in (pair.chosen, pair.rejected)])
    lengths = np.array([length for pair in pairs for length in (pair.chosen_length, pair.rejected_length)])
    assert found["length_correlation"] == pytest.approx(np.corrcoef(rewards, lengths)[0, 1])
    assert found["reward_std"] == pytest.approx(rewards.std()) and found["reward_mean"] == pytest.approx(rewards.mean())
    for name, part in found["subsets"].items():
        right = [pair.chosen > pair.rejected for pair in pairs if pair.subset == name]
        assert part == {"pairs": len(right), "accuracy": pytest.approx(np.mean(right))}
    if count > 1:
        shorter = [pair.chosen > pair.rejected for pair in pairs if pair.chosen_length < pair.rejected_length]
        assert found["accuracy_shorter_chosen"] == pytest.approx(np.mean(shorter))


def test_a_calibrated_model_has_no_error_and_a_boastful_one_has() -> None:
    rng = random.Random(1)
    honest, boastful = [], []
    for _ in range(20_000):
        gap = abs(rng.gauss(0, 2))
        right = rng.random() < 1 / (1 + math.exp(-gap))
        pair = (gap, 0.0) if right else (0.0, gap)
        honest.append(ScoredPair(*pair, 1, 1))
        boastful.append(ScoredPair(5 * pair[0], 5 * pair[1], 1, 1))
    assert calibration_error(honest, 10) < 0.02 < 0.15 < calibration_error(boastful, 10)


def test_equal_rewards_are_wrong_and_what_cannot_be_said_is_not() -> None:
    found = summary([ScoredPair(1.0, 1.0, 5, 5)] * 3, 10)
    assert found["accuracy"] == 0.0 and found["loss"] == pytest.approx(math.log(2)) and found["ece"] == 0.5
    assert not {"length_correlation", "accuracy_shorter_chosen"} & found.keys()
    assert correlation([1.0, 1.0], [2.0, 3.0]) is None
    assert math.isnan(summary([ScoredPair(math.nan, 1.0, 5, 5)], 10)["loss"])
