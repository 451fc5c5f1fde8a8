"""Group-relative advantages: each response against the others of the same prompt."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Baseline = Literal["mean", "leave-one-out"]


def group_advantages(rewards: Tensor, groups: Tensor, baseline: Baseline = "mean", divide_by_std: bool = True) -> Tensor:
    """Rewards relative to their group: A_i = (R_i - b_i) / std R.

    b_i is the group's mean (GRPO; Ring-lite report, section on C3PO), or the mean of the group's OTHER responses
    (leave-one-out: RLOO, arXiv 2402.14740). Without `divide_by_std` A_i = R_i - b_i (Dr. GRPO, arXiv 2503.20783). The
    standard deviation is the POPULATION one (divided by K, not K - 1), without an epsilon. A group whose rewards are all
    equal, up to a few units of rounding in their dtype (fp32's for half precision), gets exactly 0, and so does a group of
    one. Everything is computed in float64. Groups may be of any size and in any order.

    Args:
        rewards: [N] floating point, finite.
        groups: [N] int64, equal for the responses of one prompt (any ids).

    Returns:
        [N] float64, on the device of `rewards`; the same advantage serves every token of a response.

    Raises:
        ValueError: shapes differ or are not [N], or a reward is not finite.
    """
    differ = groups_that_differ(rewards, groups)
    values = rewards.detach().double()
    if values.numel() == 0:
        return values
    _, group_of = torch.unique(groups, return_inverse=True)
    zeros = values.new_zeros(int(group_of.max()) + 1)
    count = zeros.index_add(0, group_of, torch.ones_like(values))
    mean = zeros.index_add(0, group_of, values) / count
    advantages = values - mean[group_of]
    variance = zeros.index_add(0, group_of, advantages.square()) / count
    if baseline == "leave-one-out":  # R_i - mean of the others = K / (K - 1) * (R_i - mean of all)
        advantages = advantages * (count / (count - 1))[group_of]
    if divide_by_std:
        advantages = advantages / variance.sqrt()[group_of]
    return torch.where(differ, advantages, 0.0)


def groups_that_differ(rewards: Tensor, groups: Tensor) -> Tensor:
    """[N] bool: whether a response's group holds different rewards. Arguments and errors as of `group_advantages`.

    DAPO's dynamic sampling keeps these groups alone: in the others every advantage is 0.
    """
    if rewards.dim() != 1 or rewards.shape != groups.shape:
        raise ValueError(f"rewards {tuple(rewards.shape)} and groups {tuple(groups.shape)} must both be [N]")
    values = rewards.detach().double()
    if not bool(torch.isfinite(values).all()):
        raise ValueError("a reward is not finite")
    if values.numel() == 0:
        return values.bool()
    _, group_of = torch.unique(groups, return_inverse=True)
    zeros = values.new_zeros(int(group_of.max()) + 1)
    highest = zeros.scatter_reduce(0, group_of, values, "amax", include_self=False)
    lowest = zeros.scatter_reduce(0, group_of, values, "amin", include_self=False)
    # Dividing rounding noise by its own size would turn equal rewards into advantages of order 1.
    noise = 8 * _rounding_unit(rewards.dtype) * torch.maximum(highest.abs(), lowest.abs())
    return (highest - lowest > noise)[group_of]


def _rounding_unit(dtype: torch.dtype) -> float:
    """Relative rounding of `dtype`. Half precision counts as fp32: there, neighbouring values are different rewards."""
    if not dtype.is_floating_point:
        return torch.finfo(torch.float64).eps
    return min(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)
