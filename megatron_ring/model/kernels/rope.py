"""Queries, keys and values out of their fused product, with rotary embeddings on the first two."""

from __future__ import annotations

from typing import Any

import torch

from megatron_ring.model.rope import apply_rope

Parts = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def split_and_rotate(qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> Parts:
    """q [T, heads, d], k and v [T, groups, d], contiguous, of qkv [T, groups, queries a group + 2, d] (in each group the
    queries, the key, the value), with q and k turned by the angles of cos and sin, fp32 [T, 1, d]."""
    if qkv.is_cuda:
        return FusedSplit.apply(qkv, cos, sin)
    q, k, v = qkv[:, :, :-2].flatten(1, 2), qkv[:, :, -2], qkv[:, :, -1]
    return apply_rope(q, cos, sin), apply_rope(k, cos, sin), v


class FusedSplit(torch.autograd.Function):
    """`split_and_rotate` by Triton."""

    @staticmethod
    def forward(ctx: Any, qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> Parts:
        from megatron_ring.model.kernels import rope_triton

        tokens, groups, per_group, d = qkv.shape
        q = qkv.new_empty(tokens, groups * (per_group - 2), d)
        k, v = qkv.new_empty(tokens, groups, d), qkv.new_empty(tokens, groups, d)
        rope_triton.split(qkv.contiguous(), q, k, v, cos, sin, backward=False)
        ctx.save_for_backward(cos, sin)
        ctx.shape = qkv.shape
        return q, k, v

    @staticmethod
    def backward(ctx: Any, dq: torch.Tensor, dk: torch.Tensor, dv: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        from megatron_ring.model.kernels import rope_triton

        cos, sin = ctx.saved_tensors
        dqkv = dq.new_empty(ctx.shape)
        rope_triton.split(dqkv, dq.contiguous(), dk.contiguous(), dv.contiguous(), cos, sin, backward=True)
        return dqkv, None, None
