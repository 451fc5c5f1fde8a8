"""What rewards of pairs say of a reward model: accuracy, calibration, and how far rewards follow length. Pure Python.

A pair is right where the chosen answer's reward is above the rejected one's; equal rewards are wrong, as RewardBench counts.
A reward model predicts with probability sigmoid(r_c - r_r) that the chosen answer is preferred. Its confidence is that
probability, or one minus it where it would choose the other; it is calibrated where its confidence is its accuracy. ECE
(expected calibration error) is the mean distance of the two over bins of confidence from 1/2 to 1, weighted by their pairs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev
from typing import Any


@dataclass(frozen=True)
class ScoredPair:
    """Rewards of a pair, lengths of its answers (tokens), its margin and its subset."""

    chosen: float
    rejected: float
    chosen_length: int
    rejected_length: int
    margin: float = 0.0
    subset: str = ""

    @property
    def gap(self) -> float:
        return self.chosen - self.rejected

    @property
    def right(self) -> bool:
        return self.gap > 0

    @property
    def confidence(self) -> float:
        """1/2 to 1."""
        return 1.0 / (1.0 + math.exp(-min(abs(self.gap), 700.0)))

    @property
    def loss(self) -> float:
        """-log sigmoid(gap - margin), in nats."""
        x = self.gap - self.margin
        return max(0.0, -x) + math.log1p(math.exp(-abs(x)))


def accuracy(pairs: Sequence[ScoredPair]) -> float:
    return fmean(pair.right for pair in pairs)


def by_subset(pairs: Sequence[ScoredPair]) -> dict[str, list[ScoredPair]]:
    """Pairs of each subset, in the subsets' order; those of none are left out."""
    names = sorted({pair.subset for pair in pairs if pair.subset})
    return {name: [pair for pair in pairs if pair.subset == name] for name in names}


def reliability(pairs: Sequence[ScoredPair], bins: int) -> list[dict[str, Any]]:
    """Of each bin of confidence that holds a pair: its borders, pairs, mean confidence and accuracy."""
    held: list[list[ScoredPair]] = [[] for _ in range(bins)]
    for pair in pairs:
        held[min(bins - 1, int((pair.confidence - 0.5) * 2 * bins))].append(pair)
    return [
        {
            "from": 0.5 + number / (2 * bins),
            "to": 0.5 + (number + 1) / (2 * bins),
            "pairs": len(part),
            "confidence": fmean(pair.confidence for pair in part),
            "accuracy": accuracy(part),
        }
        for number, part in enumerate(held)
        if part
    ]


def calibration_error(pairs: Sequence[ScoredPair], bins: int) -> float:
    """ECE, 0 to 1."""
    parts = reliability(pairs, bins)
    return sum(part["pairs"] * abs(part["accuracy"] - part["confidence"]) for part in parts) / len(pairs)


def correlation(xs: Sequence[float], ys: Sequence[float]) -> float | None:
    """Pearson's; None where one of them does not vary."""
    mean_x, mean_y = fmean(xs), fmean(ys)
    spread = math.sqrt(sum((x - mean_x) ** 2 for x in xs) * sum((y - mean_y) ** 2 for y in ys))
    if not spread > 0:
        return None
    return max(-1.0, min(1.0, sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / spread))


def length_figures(pairs: Sequence[ScoredPair]) -> dict[str, float]:
    """Correlation of rewards with lengths over all answers, of gaps with differences of lengths over pairs, and accuracy
    where the chosen answer is the shorter or the longer one; without what cannot be said."""
    rewards = [reward for pair in pairs for reward in (pair.chosen, pair.rejected)]
    lengths = [float(length) for pair in pairs for length in (pair.chosen_length, pair.rejected_length)]
    differences = [float(pair.chosen_length - pair.rejected_length) for pair in pairs]
    shorter = [pair for pair in pairs if pair.chosen_length < pair.rejected_length]
    longer = [pair for pair in pairs if pair.chosen_length > pair.rejected_length]
    found = {
        "length_correlation": correlation(rewards, lengths),
        "gap_length_correlation": correlation([pair.gap for pair in pairs], differences),
        "accuracy_shorter_chosen": accuracy(shorter) if shorter else None,
        "accuracy_longer_chosen": accuracy(longer) if longer else None,
    }
    return {name: value for name, value in found.items() if value is not None}


def summary(pairs: Sequence[ScoredPair], bins: int) -> dict[str, Any]:
    """All figures of some pairs, as JSON; not a number where rewards are not finite."""
    rewards = [reward for pair in pairs for reward in (pair.chosen, pair.rejected)]
    if not all(map(math.isfinite, rewards)):
        return {"pairs": len(pairs), "loss": math.nan}
    return {
        "pairs": len(pairs),
        "loss": fmean(pair.loss for pair in pairs),
        "accuracy": accuracy(pairs),
        "ece": calibration_error(pairs, bins),
        "reward_mean": fmean(rewards),
        "reward_std": pstdev(rewards),
        "gap_mean": fmean(pair.gap for pair in pairs),
        **length_figures(pairs),
        "subsets": {name: {"pairs": len(part), "accuracy": accuracy(part)} for name, part in by_subset(pairs).items()},
        "reliability": reliability(pairs, bins),
    }
