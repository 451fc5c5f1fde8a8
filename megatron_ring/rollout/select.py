"""Which of a step's responses are trained, and on what advantage: dynamic sampling, KL in the reward, the token budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from megatron_ring.algorithm.advantages import group_advantages, groups_that_differ
from megatron_ring.algorithm.budget import select_budget
from megatron_ring.algorithm.budget_order import ORDERS, StepResponses
from megatron_ring.config.rl import RLConfig
from megatron_ring.rollout.records import ScoredRollout
from megatron_ring.rollout.reward_kl import RewardKL
from megatron_ring.sampler.requests import request_seed

# What a run that is continued may change of its steps (MAY_CHANGE).
_MORE_ROUNDS = "raise --budget.max-rounds, with which this run can be continued"


@dataclass(frozen=True)
class Selection:
    """For each response of a step its advantage and how many of its first tokens are trained (0: none).

    equal_fraction: share of groups whose rewards are all equal. kl: mean KL per token that was taken off the rewards (nats),
    None when the KL is elsewhere.
    """

    advantages: list[float]
    trained: list[int]
    equal_fraction: float
    kl: float | None


def _groups(scored: Sequence[ScoredRollout]) -> torch.Tensor:
    return torch.tensor([item.rollout.prompt_index for item in scored])


def _differ(scored: Sequence[ScoredRollout]) -> torch.Tensor:
    rewards = torch.tensor([item.reward for item in scored], dtype=torch.float64)
    return groups_that_differ(rewards, _groups(scored))


def _kept(config: RLConfig, scored: Sequence[ScoredRollout], budget: int | None) -> list[int]:
    """Indices of the responses that may be trained: all of them, or with dynamic sampling those of groups whose rewards
    differ; of these, without a budget, the first `prompts_per_step` groups."""
    if not config.objective.dynamic_sampling:
        return list(range(len(scored)))
    kept = _differ(scored).nonzero()[:, 0].tolist()
    if budget is not None:
        return kept
    first = list(dict.fromkeys(scored[i].rollout.prompt_index for i in kept))[: config.prompts_per_step]
    return [i for i in kept if scored[i].rollout.prompt_index in set(first)]


def usable_tokens(config: RLConfig, scored: Sequence[ScoredRollout], budget: int) -> int:
    """Response tokens among which the budget may choose."""
    return sum(scored[i].rollout.response_length for i in _kept(config, scored, budget))


def missing(config: RLConfig, scored: Sequence[ScoredRollout], budget: int | None) -> str:
    """What keeps these responses from being a step, with mends; empty when nothing does. Without a budget and dynamic
    sampling any responses will do."""
    if budget is not None:
        tokens = usable_tokens(config, scored, budget)
        mean = sum(item.rollout.response_length for item in scored) / max(1, len(scored))
        lacks = f"{tokens:,} tokens (mean response {mean:.1f}) of the budget {budget:,}: {_MORE_ROUNDS}; a lower"
        return f"{lacks} --budget.tokens or a larger --prompts-per-step needs a new run" if tokens < budget else ""
    groups = len({scored[i].rollout.prompt_index for i in _kept(config, scored, budget)})
    if not config.objective.dynamic_sampling or groups >= config.prompts_per_step:
        return ""
    lacks = f"{groups} groups whose rewards differ, of {config.prompts_per_step}"
    return f"{lacks}: {_MORE_ROUNDS}; --objective.dynamic-sampling False needs a new run"


def select_step(
    config: RLConfig, step: int, scored: Sequence[ScoredRollout], budget: int | None, reward_kl: RewardKL | None
) -> Selection:
    """Advantages from every response of a kept group, then the budget. `step` (0-based) seeds a random order."""
    objective = config.objective
    kept = _kept(config, scored, budget)
    items = [scored[i] for i in kept]
    lengths = [item.rollout.response_length for item in items]
    rewards, groups = torch.tensor([item.reward for item in items], dtype=torch.float64), _groups(items)
    kl = None
    if reward_kl is not None:
        distances = torch.tensor(reward_kl([item.rollout for item in items]), dtype=torch.float64)
        rewards = rewards - objective.kl_beta * distances
        kl = distances.sum().item() / sum(lengths)
    advantages = group_advantages(rewards, groups, objective.baseline, objective.std is not False).tolist()
    trained = list(lengths)
    if budget is not None:
        responses = StepResponses(lengths, advantages, groups.tolist(), request_seed(config.seed, step))
        trained = select_budget(lengths, budget, ORDERS[config.budget.order](responses)).trained
    selection = Selection([0.0] * len(scored), [0] * len(scored), 1 - _share_of_groups_that_differ(scored), kl)
    for i, advantage, count in zip(kept, advantages, trained, strict=True):
        selection.advantages[i], selection.trained[i] = advantage, count
    return selection


def _share_of_groups_that_differ(scored: Sequence[ScoredRollout]) -> float:
    groups, differ = _groups(scored), _differ(scored)
    return len(groups[differ].unique()) / len(groups.unique())
