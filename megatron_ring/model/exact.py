"""--exact: the sampler's log-probabilities and expert choices are the training forward's, bit by bit.

A token's numbers depend on its batch through the order of sums alone. With --exact (`config.ring_exact`) every sum of the
forward pass has one order, in training and in sampling:

    products            `kernels/exact_mm_triton.py`, for `linear`, experts, router and head
    attention           `kernels/exact_attention_triton.py`, by `TokenLayout.attend_exactly`
    norms, RoPE, SwiGLU, choice of experts, combination, softmax statistics    as ever: their kernels go row by row

The backward pass is the usual one. Between tensor-parallel ranks sums would go through NCCL, in an order that depends on a
token's place: those layouts are refused. Experts on several ranks (EP) and pipeline stages change no sum.
"""

from __future__ import annotations

import importlib.util

import torch

from megatron_ring.config.checks import require
from megatron_ring.config.parallel import ParallelConfig
from megatron_ring.parallel.device import current_device, has_cuda, is_hopper


def check_exact(parallel: ParallelConfig, dtype: torch.dtype, layer_impl: str) -> None:
    """Raise `UserError` where --exact cannot keep its promise."""
    require(
        has_cuda() and dtype is torch.bfloat16,
        "--exact: its kernels want a CUDA device and --precision bf16 (on a CPU, measure what is left with "
        "tools/check_sampler.py)",
    )
    require(is_hopper(current_device()), "--exact: its kernels want a Hopper GPU (compute capability 9.0)")
    require(importlib.util.find_spec("triton") is not None, "--exact: its kernels want Triton: pip install triton")
    parallel.check_exact(layer_impl)
