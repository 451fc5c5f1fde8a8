"""Which of a step's responses are trained, and on what advantage: dynamic sampling, KL in the reward, the token budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from megatron_ring.algorithm.advantages import group_advantages, groups_that_differ
from megatron_ring.algorithm.budget_order import ORDERS, StepResponses
from megatron_ring.algorithm.updates import Piece, equal_budgets, whole_responses
from megatron_ring.config.objective import ObjectiveConfig
from megatron_ring.config.rl import RLConfig
from megatron_ring.rollout.records import ScoredRollout
from megatron_ring.sampler.requests import request_seed

# What a run that is continued may change of its steps (MAY_CHANGE).
_MORE_ROUNDS = "raise --budget.max-rounds, with which this run can be continued"


@dataclass(frozen=True)
class Selection:
    """What of a step is trained.

    Attributes:
        kept: the responses that may be.
        advantages: of each of these.
        trained: how many of its first tokens are trained (0: none).
        distances: its KL from the reference in nats, which was taken off its reward; None when the KL is elsewhere.
        updates: for each optimizer update of the step, the trained tokens that it takes.
    """

    kept: list[ScoredRollout]
    advantages: list[float]
    trained: list[int]
    distances: list[float] | None
    updates: list[list[Piece]]

    @property
    def trained_tokens(self) -> int:
        return sum(self.trained)

    @property
    def kl(self) -> float | None:
        """Mean KL of a token that was taken off the rewards (nats)."""
        if self.distances is None:
            return None
        return torch.tensor(self.distances, dtype=torch.float64).sum().item() / sum(response_lengths(self.kept))


def response_lengths(scored: Sequence[ScoredRollout]) -> list[int]:
    """Tokens of each response."""
    return [item.rollout.response_length for item in scored]


def with_verdict(scored: Sequence[ScoredRollout]) -> list[ScoredRollout]:
    """Those whose reward is a verdict."""
    return [item for item in scored if item.has_verdict]


def kept_responses(config: RLConfig, scored: Sequence[ScoredRollout], budget: int | None) -> list[ScoredRollout]:
    """The responses that may be trained: all that have a verdict, or with dynamic sampling those of groups whose rewards
    differ; of these, without a budget, the first `prompts_per_step` groups. A response for which the machine or the
    judge failed is no part of its group's baseline either."""
    scored = with_verdict(scored)
    if not config.objective.dynamic_sampling:
        return scored
    kept = [item for item, differs in zip(scored, _differ(scored).tolist(), strict=True) if differs]
    if budget is not None:
        return kept
    first = set(list(dict.fromkeys(item.rollout.prompt_index for item in kept))[: config.prompts_per_step])
    return [item for item in kept if item.rollout.prompt_index in first]


def response_advantages(
    objective: ObjectiveConfig, kept: Sequence[ScoredRollout], shaped: Sequence[float], distances: Sequence[float] | None
) -> list[float]:
    """The advantage of each response in its group.

    Args:
        shaped: the reward of each that counts (`shaping.RewardShaping`).
        distances: KL of each (nats), to be taken off its reward.
    """
    rewards = torch.tensor(shaped, dtype=torch.float64)
    if distances is not None:
        rewards = rewards - objective.kl_beta * torch.tensor(distances, dtype=torch.float64)
    return group_advantages(rewards, _groups(kept), objective.baseline, objective.std is not False).tolist()


def budget_order(
    config: RLConfig, step: int, kept: Sequence[ScoredRollout], advantages: Sequence[float]
) -> list[int]:  # fmt: skip
    """In which order responses fill the budget. The 0-based `step` seeds a random one."""
    groups, seed = [item.rollout.prompt_index for item in kept], request_seed(config.seed, step)
    return ORDERS[config.budget.order](StepResponses(response_lengths(kept), advantages, groups, seed))


def step_updates(config: RLConfig, trained: Sequence[int], order: Sequence[int]) -> list[list[Piece]]:
    """The trained tokens dealt to the updates of the step. `order`: in which the budget took the responses."""
    if config.objective.has_budget:
        return equal_budgets(trained, config.updates_per_step, order)
    return whole_responses(trained, config.updates_per_step)


def usable_tokens(config: RLConfig, scored: Sequence[ScoredRollout], budget: int) -> int:
    """Response tokens among which the budget may choose."""
    return sum(response_lengths(kept_responses(config, scored, budget)))


def missing(config: RLConfig, scored: Sequence[ScoredRollout], budget: int | None) -> str:
    """What keeps these responses from being a step, with mends; empty when nothing does. Without a budget and dynamic
    sampling any responses will do, if one has a verdict."""
    if budget is not None:
        tokens = usable_tokens(config, scored, budget)
        mean, failed = sum(response_lengths(scored)) / max(1, len(scored)), [one for one in scored if not one.has_verdict]
        if tokens < budget and 2 * len(failed) > len(scored):
            without = f"{len(failed):,} of {len(scored):,} responses have no verdict, the first for this reason"
            return f"{tokens:,} tokens of the budget {budget:,}, as {without}: {failed[0].reason}"
        shortage = f"{tokens:,} tokens (mean response {mean:.1f}) of the budget {budget:,}: {_MORE_ROUNDS}; a lower"
        return f"{shortage} --budget.tokens or a larger --prompts-per-step needs a new run" if tokens < budget else ""
    groups = len({item.rollout.prompt_index for item in kept_responses(config, scored, budget)})
    if not config.objective.dynamic_sampling and not groups:
        return f"no response with a verdict, the machine or the judge failed for each: {_MORE_ROUNDS}"
    if not config.objective.dynamic_sampling or groups >= config.prompts_per_step:
        return ""
    shortage = f"{groups} groups whose rewards differ, of {config.prompts_per_step}"
    return f"{shortage}: {_MORE_ROUNDS}; --objective.dynamic-sampling False needs a new run"


def equal_rewards_fraction(scored: Sequence[ScoredRollout]) -> float:
    """Share of groups whose rewards are all equal, of those that have a verdict."""
    scored = with_verdict(scored)
    groups, differ = _groups(scored), _differ(scored)
    return 1 - len(groups[differ].unique()) / len(groups.unique())


def _groups(scored: Sequence[ScoredRollout]) -> torch.Tensor:
    return torch.tensor([item.rollout.prompt_index for item in scored])


def _differ(scored: Sequence[ScoredRollout]) -> torch.Tensor:
    rewards = torch.tensor([item.reward for item in scored], dtype=torch.float64)
    return groups_that_differ(rewards, _groups(scored))
