"""Shaped rewards of a step: normalised by domain, then with what a response gains by its length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from megatron_ring.algorithm.shaping import RunningMoments, length_gains
from megatron_ring.config.shaping import ShapingConfig
from megatron_ring.rollout.records import ScoredRollout
from megatron_ring.rollout.select import with_verdict


class RewardShaping:
    """Holds the running numbers of each domain; every rank comes to the same."""

    def __init__(self, config: ShapingConfig) -> None:
        self.config = config
        self._moments: dict[str, RunningMoments] = {}

    def rewards(self, scored: Sequence[ScoredRollout], kept: Sequence[ScoredRollout]) -> list[float]:
        """The rewards that advantages are made of, of each response in `kept`. Called once a step.

        Args:
            scored: all responses of the step; those with a verdict count in the running numbers.
        """
        rewards = [item.reward for item in kept]
        if self.config.normalise == "running":
            self._observe(with_verdict(scored))
            rewards = [self._moments[item.rollout.domain].normalised(item.reward) for item in kept]
        if self.config.length_weight:
            chosen = self.config.length_domains
            places = [place for place, item in enumerate(kept) if not chosen or item.rollout.domain in chosen]
            gains = length_gains(
                [kept[place].rollout.response_length for place in places],
                [kept[place].rollout.prompt_index for place in places], self.config.length_weight,
            )  # fmt: skip
            for place, gain in zip(places, gains, strict=True):
                rewards[place] += gain
        return rewards

    def _observe(self, scored: Sequence[ScoredRollout]) -> None:
        of_domain: dict[str, list[float]] = {}
        for item in scored:
            of_domain.setdefault(item.rollout.domain, []).append(item.reward)
        for domain, rewards in of_domain.items():
            self._moments.setdefault(domain, RunningMoments()).add(rewards)

    def figures(self) -> dict[str, float]:
        """Running mean and standard deviation by domain, for the metrics."""
        return {
            f"shaping/{name}/{domain}": getattr(moments, name)
            for domain, moments in sorted(self._moments.items())
            for name in ("mean", "std")
        }

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs, as JSON."""
        return {domain: moments.state_dict() for domain, moments in self._moments.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on as the one would that gave `state`."""
        self._moments = {domain: RunningMoments.of(numbers) for domain, numbers in state.items()}
