"""Queries, keys and values out of their fused product, with rotary embeddings on the first two."""

from __future__ import annotations

from typing import Any

import torch

Parts = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def split_and_rotate(qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> Parts:
    """q [T, heads, d], k and v [T, groups, d], contiguous, of qkv [T, groups, queries a group + 2, d] (in each group the
    queries, the key, the value), with q and k turned by the angles of cos and sin, fp32 [T, 1, d]."""
    return FusedSplit.apply(qkv, cos, sin)


class FusedSplit(torch.autograd.Function):
    """`split_and_rotate`, both ways in one pass."""

    @staticmethod
    def forward(ctx: Any, qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> Parts:
        tokens, groups, per_group, d = qkv.shape
        q = qkv.new_empty(tokens, groups * (per_group - 2), d)
        k, v = qkv.new_empty(tokens, groups, d), qkv.new_empty(tokens, groups, d)
        _split(qkv.contiguous(), q, k, v, cos, sin, backward=False)
        ctx.save_for_backward(cos, sin)
        ctx.shape = qkv.shape
        return q, k, v

    @staticmethod
    def backward(ctx: Any, dq: torch.Tensor, dk: torch.Tensor, dv: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        dqkv = dq.new_empty(ctx.shape)
        _split(dqkv, dq.contiguous(), dk.contiguous(), dv.contiguous(), cos, sin, backward=True)
        return dqkv, None, None


def _split(
    qkv: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    backward: bool,
) -> None:
    """Writes q, k and v; or, backward, qkv."""
    if qkv.is_cuda:
        from megatron_ring.model.kernels import rope_triton

        rope_triton.split(qkv, q, k, v, cos, sin, backward)
        return
    cos, sin = cos[:, None], sin[:, None]
    for parts, whole in ((qkv[:, :, :-2], q.view_as(qkv[:, :, :-2])), (qkv[:, :, -2:-1], k[:, :, None])):
        if backward:
            _turn(whole, cos, -sin, parts)
        else:
            _turn(parts, cos, sin, whole)
    if backward:
        qkv[:, :, -1] = v
    else:
        v.copy_(qkv[:, :, -1])


def _turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, out: torch.Tensor) -> None:
    """out = x turned by the angles, in pairs of channels half a head apart; cos and sin have both halves alike."""
    half = x.shape[-1] // 2
    exact = out if out.dtype in (torch.float32, torch.float64) else torch.empty_like(out, dtype=torch.float32)
    torch.mul(x, cos, out=exact)
    exact[..., :half].addcmul_(x[..., half:], sin[..., half:], value=-1)
    exact[..., half:].addcmul_(x[..., :half], sin[..., :half])
    if exact is not out:
        out.copy_(exact)
