"""The algorithm: rollout records, advantages, the token budget and the losses. Pure functions on torch tensors."""

from megatron_ring.rl.advantages import group_advantages
from megatron_ring.rl.budget import BudgetSelection, select_budget
from megatron_ring.rl.c3po import c3po_loss
from megatron_ring.rl.grpo import grpo_loss, grpo_token_weights
from megatron_ring.rl.policy import combine_metrics
from megatron_ring.rl.records import Rollout, ScoredRollout

__all__ = [
    "BudgetSelection",
    "Rollout",
    "ScoredRollout",
    "c3po_loss",
    "combine_metrics",
    "group_advantages",
    "grpo_loss",
    "grpo_token_weights",
    "select_budget",
]
