"""Rewards of several domains on one scale, and a gain for the shorter response of a group. All in float64."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

MEMORY = 0.99  # what the numbers so far weigh after another step
LEAST_STD = 1e-6


class RunningMoments:
    """Mean and standard deviation (population) of the rewards of one domain over the run so far.

    With x_1 … x_n the rewards of a step and (N, μ, M2) the numbers before it, N' = MEMORY · N:

        δ = mean(x) - μ;  N = N' + n;  μ += δ n / N;  M2 = MEMORY · M2 + Σ (x - mean x)² + δ² N' n / N;  σ = sqrt(M2 / N)

    This merges two samples by Chan, Golub and LeVeque (1979), the older one with less weight the older it is. Scales that
    follow a running mean and deviation of each task are PopArt's (arXiv 1602.07714, 1809.04474).
    """

    def __init__(self) -> None:
        self.count = self.mean = self.squares = 0.0

    def add(self, rewards: Sequence[float]) -> None:
        """Take in the rewards of a step."""
        if not rewards:
            return
        new, before = len(rewards), MEMORY * self.count
        mean = math.fsum(rewards) / new
        distance, self.count = mean - self.mean, before + new
        self.squares = MEMORY * self.squares + math.fsum((reward - mean) ** 2 for reward in rewards)
        self.squares += distance**2 * before * new / self.count
        self.mean += distance * new / self.count

    @property
    def std(self) -> float:
        return math.sqrt(self.squares / self.count) if self.count else 0.0

    def normalised(self, reward: float) -> float:
        """(reward - μ) / σ; with a σ of less than `LEAST_STD`, which rounding may have made, reward - μ."""
        return (reward - self.mean) / (self.std if self.std >= LEAST_STD else 1.0)

    def state_dict(self) -> dict[str, float]:
        return {"count": self.count, "mean": self.mean, "squares": self.squares}

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> RunningMoments:
        """As it was when `state_dict` gave `state`."""
        moments = cls()
        moments.count, moments.mean, moments.squares = state["count"], state["mean"], state["squares"]
        return moments


def length_gains(lengths: Sequence[int], groups: Sequence[int], weight: float) -> list[float]:
    """What each response gains by its length (tokens) within its group: zero on the group's mean.

        w_i = (l_max - l_i) / (l_max - l_min);  gain_i = weight · (w_i - mean_j w_j);  0 where all lengths are equal

    The shortest response is `weight` ahead of the longest. The fraction is that of the length reward of Kimi k1.5 (arXiv
    2501.12599, section 2.3.3), which takes 1/2 off instead of the mean; zero-centred within the group as in NeMo-Gym's
    comparisons by a judge. It is applied to all responses, right or wrong.
    """
    of_group: dict[int, list[int]] = {}
    for length, group in zip(lengths, groups, strict=True):
        of_group.setdefault(group, []).append(length)

    def share(length: int, group: int) -> float:
        low, high = min(of_group[group]), max(of_group[group])
        return (high - length) / (high - low) if high > low else 0.0

    means = {group: math.fsum(share(one, group) for one in own) / len(own) for group, own in of_group.items()}
    return [
        weight * (share(length, group) - means[group]) for length, group in zip(lengths, groups, strict=True)
    ]  # fmt: skip
