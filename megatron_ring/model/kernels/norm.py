"""RMSNorm of a sum: y = s / sqrt(mean(s^2) + eps) * weight with s = x + residual, and its gradient, each one pass."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F


def rms_norm(x: torch.Tensor, weight_h: torch.Tensor, eps: float) -> torch.Tensor:
    """RMSNorm over the last dimension of x [..., hidden]; computed in fp32, returned in x's dtype."""
    return _fused(x, None, weight_h, eps)[0] if x.is_cuda else F.rms_norm(x, (x.shape[-1],), weight_h, eps)


def norm_and_pass(x: torch.Tensor, weight_h: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(rms_norm(x), x): the second for the residual path, so that both gradients meet in the norm's backward pass."""
    return _fused(x, None, weight_h, eps) if x.is_cuda else (F.rms_norm(x, (x.shape[-1],), weight_h, eps), x)


def add_and_norm(
    x: torch.Tensor, residual: torch.Tensor, weight_h: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(rms_norm(x + residual), x + residual), all [..., hidden]; the sum is rounded to x's dtype before it is normed."""
    if x.is_cuda:
        return _fused(x, residual, weight_h, eps)
    total = x + residual
    return F.rms_norm(total, (x.shape[-1],), weight_h, eps), total


def _fused(
    x: torch.Tensor, residual: torch.Tensor | None, weight_h: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    return FusedNorm.apply(x, residual, weight_h, eps)


class FusedNorm(torch.autograd.Function):
    """(norm, sum) of (x, residual or None, weight, eps), by Triton."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, residual: torch.Tensor | None, weight_h: torch.Tensor, eps: float) -> Any:
        from megatron_ring.model.kernels import norm_triton

        ctx.set_materialize_grads(False)
        ctx.residual = residual is not None
        shape = x.shape
        added = None if residual is None else residual.contiguous().view(-1, shape[-1])
        y, total, rstd = norm_triton.forward(x.contiguous().view(-1, shape[-1]), added, weight_h, eps)
        ctx.save_for_backward(total, weight_h, rstd)
        return y.view(shape), x if residual is None else total.view(shape)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor | None, dsum: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        from megatron_ring.model.kernels import norm_triton

        total, weight_h, rstd = ctx.saved_tensors
        if dy is None:
            return dsum, dsum if ctx.residual else None, None, None
        rows = total.shape
        other = None if dsum is None else dsum.contiguous().view(rows)
        dx, dw = norm_triton.backward(dy.contiguous().view(rows), other, total, weight_h, rstd)
        dx = dx.view(dy.shape)
        return dx, dx if ctx.residual else None, dw, None
