"""Group-relative advantages: each response against the others of the same prompt."""

from __future__ import annotations

import torch
from torch import Tensor


def group_advantages(rewards: Tensor, groups: Tensor) -> Tensor:
    """Normalise rewards within their group: A_i = (R_i - mean R) / std R (GRPO; Ring-lite report, section on C3PO).

    The standard deviation is the POPULATION one (divided by K, not K - 1), without an epsilon. A group whose rewards
    are all equal, up to a few units of rounding in their dtype (fp32's for half precision), gets exactly 0, and so does
    a group of one. Everything is computed in float64. Groups may be of any size and in any order.

    Args:
        rewards: [N] floating point, finite.
        groups: [N] int64, equal for the responses of one prompt (any ids).

    Returns:
        [N] float64, on the device of `rewards`; the same advantage serves every token of a response.

    Raises:
        ValueError: shapes differ or are not [N], or a reward is not finite.
    """
    if rewards.dim() != 1 or rewards.shape != groups.shape:
        raise ValueError(f"rewards {tuple(rewards.shape)} and groups {tuple(groups.shape)} must both be [N]")
    values = rewards.detach().double()
    if not bool(torch.isfinite(values).all()):
        raise ValueError("a reward is not finite")
    if values.numel() == 0:
        return values

    _, group_of = torch.unique(groups, return_inverse=True)
    zeros = values.new_zeros(int(group_of.max()) + 1)
    count = zeros.index_add(0, group_of, torch.ones_like(values))
    mean = zeros.index_add(0, group_of, values) / count
    centered = values - mean[group_of]
    variance = zeros.index_add(0, group_of, centered.square()) / count

    # Dividing rounding noise by its own size would turn equal rewards into advantages of order 1.
    highest = zeros.scatter_reduce(0, group_of, values, "amax", include_self=False)
    lowest = zeros.scatter_reduce(0, group_of, values, "amin", include_self=False)
    noise = 8 * _rounding_unit(rewards.dtype) * torch.maximum(highest.abs(), lowest.abs())
    all_equal = highest - lowest <= noise
    scale = torch.where(all_equal, 1.0, variance.sqrt())
    return torch.where(all_equal[group_of], 0.0, centered / scale[group_of])


def _rounding_unit(dtype: torch.dtype) -> float:
    """Relative rounding of `dtype`. Half precision counts as fp32: there, neighbouring values are different rewards."""
    if not dtype.is_floating_point:
        return torch.finfo(torch.float64).eps
    return min(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)
