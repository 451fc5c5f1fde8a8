"""Rotary position embeddings, rotate-half convention over the whole head (as in `bailing_moe`), with YaRN scaling."""

from __future__ import annotations

import math
from functools import cache

import torch

from megatron_ring.config.model import RopeScaling


def inverse_frequencies(head_dim: int, theta: float, scaling: RopeScaling | None) -> torch.Tensor:
    """Angle per position of each pair of channels, fp32 [head_dim / 2]: theta^(-2j/head_dim), stretched by `scaling`.

    YaRN (Peng et al. 2023, "NTK-by-parts"): pairs that turn more than beta_fast times over the original positions stay as
    they are, those that turn less than beta_slow times are slowed down by the factor, with a linear ramp between.
    """
    plain = 1.0 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    if scaling is None:
        return plain
    if scaling.kind == "linear":
        return plain / scaling.factor

    def pair_that_turns(times: float) -> float:
        positions_a_radian = scaling.original_max_positions / (times * 2 * math.pi)
        return head_dim * math.log(positions_a_radian) / (2 * math.log(theta))

    low = max(math.floor(pair_that_turns(scaling.beta_fast)), 0)
    high = min(math.ceil(pair_that_turns(scaling.beta_slow)), head_dim - 1)
    span = high - low if high != low else 0.001
    slowed = ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / span).clamp(0, 1)
    return plain / scaling.factor * slowed + plain * (1 - slowed)


def attention_factor(scaling: RopeScaling | None) -> float:
    """What cos and sin are multiplied with (YaRN's attention temperature); 1 without scaling."""
    if scaling is None or scaling.kind != "yarn" or scaling.factor <= 1:
        return 1.0

    def magnitude(mscale: float) -> float:
        return 0.1 * mscale * math.log(scaling.factor) + 1.0

    return magnitude(scaling.mscale) / magnitude(scaling.mscale_all_dim)


def rope_tables(
    positions: torch.Tensor, head_dim: int, theta: float, scaling: RopeScaling | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin, fp32 [T, 1, head_dim], of positions int [T]."""
    frequencies = _frequencies_on(positions.device, head_dim, theta, scaling)
    angles = positions.float()[:, None] * frequencies[None, :]
    angles = torch.cat((angles, angles), dim=-1)[:, None, :]
    factor = attention_factor(scaling)
    if factor == 1.0:
        return angles.cos(), angles.sin()
    return angles.cos() * factor, angles.sin() * factor


@cache
def _frequencies_on(device: torch.device, head_dim: int, theta: float, scaling: RopeScaling | None) -> torch.Tensor:
    """Kept: a CUDA graph cannot hold a copy from the host, and a training step would wait for it behind all earlier work."""
    return inverse_frequencies(head_dim, theta, scaling).to(device)
