"""Intervals against published values, brute force and the coverage that they promise."""

from __future__ import annotations

import itertools
import random

import pytest

from megatron_ring.analysis.statistics import bootstrap_mean, paired_difference, pass_rate, wilson_interval


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        # Newcombe 1998, Statistics in Medicine 17: table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_gives_published_values(successes: int, trials: int, low: float, high: float) -> None:
    interval = wilson_interval(successes, trials)
    assert (round(interval.low, 4), round(interval.high, 4)) == (low, high)


def test_wilson_solves_its_defining_equation() -> None:
    """The ends are where |rate − p| equals z standard errors of p."""
    interval = wilson_interval(7, 40)
    for end in (interval.low, interval.high):
        assert abs(7 / 40 - end) == pytest.approx(1.959963985 * (end * (1 - end) / 40) ** 0.5, rel=1e-8)


@pytest.mark.parametrize(("successes", "trials"), [(1, 0), (3, 2), (-1, 2), (float("nan"), 2)])
def test_wilson_refuses_nonsense(successes: float, trials: int) -> None:
    with pytest.raises(ValueError, match="need 0 <= successes"):
        wilson_interval(successes, trials)


def test_bootstrap_agrees_with_all_resamples() -> None:
    values = [0.0, 0.25, 0.5, 1.0, 1.0]
    means = sorted(sum(draw) / 5 for draw in itertools.product(values, repeat=5))  # all 3,125 equally likely resamples
    interval = bootstrap_mean(values, resamples=40_000)
    assert interval.low == pytest.approx(means[int(0.025 * len(means))], abs=0.051)
    assert interval.high == pytest.approx(means[int(0.975 * len(means))], abs=0.051)


def test_bootstrap_is_seeded_and_independent_of_its_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    values = [index % 7 / 6 for index in range(100)]
    first = bootstrap_mean(values, seed=3)
    assert first == bootstrap_mean(values, seed=3) != bootstrap_mean(values, seed=4)
    monkeypatch.setattr("megatron_ring.analysis.statistics._CHUNK_ENTRIES", 1_000)
    assert bootstrap_mean(values, seed=3) == first


def test_one_sample_per_problem_is_wilson() -> None:
    estimate = pass_rate({f"p{index}": [float(index < 81)] for index in range(263)})
    assert (estimate.method, estimate.problems, estimate.samples) == ("Wilson", 263, 263)
    assert estimate.interval == wilson_interval(81, 263)


def test_samples_of_one_problem_do_not_narrow_the_interval() -> None:
    """Problems that are all right or all wrong: 16 equal samples each carry no more than one."""
    once = {f"p{index}": [float(index % 2)] for index in range(100)}
    often = {problem: group * 16 for problem, group in once.items()}
    narrow, wide = pass_rate(once).interval, pass_rate(often).interval
    assert wide.high - wide.low == pytest.approx(narrow.high - narrow.low, rel=0.1)


def test_unanimous_problems_claim_no_certainty() -> None:
    assert pass_rate({f"p{index}": [0.0] * 4 for index in range(20)}).interval.high == pytest.approx(0.1611, abs=1e-4)
    assert pass_rate({f"p{index}": [1.0] * 4 for index in range(20)}).interval.low == pytest.approx(0.8389, abs=1e-4)
    same = paired_difference({f"p{i}": [0.0] for i in range(20)}, {f"p{i}": [0.0] for i in range(20)})
    assert same.interval.low == pytest.approx(-0.1611, abs=1e-4)
    assert same.interval.high == pytest.approx(0.1611, abs=1e-4)


def test_pairing_uses_shared_problems_only() -> None:
    before = {"a": [0.0, 1.0], "b": [0.0], "only before": [1.0]}
    after = {"b": [1.0], "a": [1.0, 1.0], "only after": [0.0]}
    estimate = paired_difference(before, after)
    assert (estimate.value, estimate.problems) == (0.75, 2)
    with pytest.raises(ValueError, match="share no problem"):
        paired_difference({"a": [1.0]}, {"b": [1.0]})


def test_pairing_removes_the_spread_between_problems() -> None:
    before = {f"p{index}": [float(index % 2)] for index in range(200)}
    after = {
        problem: ([1.0] if problem in ("p0", "p2", "p4", "p6", "p8", "p10") else group) for problem, group in before.items()
    }
    paired = paired_difference(before, after)
    assert paired.interval.low > 0  # six gains, no loss
    assert pass_rate(before).interval.high > pass_rate(after).interval.low  # unpaired, the two overlap


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    generator, hits, trials = random.Random(5), 0, 300
    for trial in range(trials):
        rewards = {}
        for problem in range(60):
            chance = generator.random() ** 2  # mean 1/3
            rewards[str(problem)] = [float(generator.random() < chance) for _ in range(4)]
        interval = pass_rate(rewards, seed=trial).interval
        hits += interval.low <= 1 / 3 <= interval.high
    assert 0.90 <= hits / trials <= 0.985
