"""RMSNorm of a sum: y = s / sqrt(mean(s^2) + eps) * weight with s = x + residual, and its gradient, each one pass."""

from __future__ import annotations

from typing import Any

import torch


def rms_norm(x: torch.Tensor, weight_h: torch.Tensor, eps: float) -> torch.Tensor:
    """RMSNorm over the last dimension of x [..., hidden]; computed in fp32, returned in x's dtype."""
    return norm_and_pass(x, weight_h, eps)[0]


def norm_and_pass(x: torch.Tensor, weight_h: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(rms_norm(x), x): the second for the residual path, so that both gradients meet in the norm's backward pass."""
    return FusedNorm.apply(x, None, weight_h, eps)


def add_and_norm(
    x: torch.Tensor, residual: torch.Tensor, weight_h: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(rms_norm(x + residual), x + residual), all [..., hidden]; the sum is rounded to x's dtype before it is normed."""
    return FusedNorm.apply(x, residual, weight_h, eps)


class FusedNorm(torch.autograd.Function):
    """(norm, sum) of (x, residual or None, weight, eps)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, residual: torch.Tensor | None, weight_h: torch.Tensor, eps: float) -> Any:
        ctx.set_materialize_grads(False)
        ctx.residual = residual is not None
        shape = x.shape
        added = None if residual is None else residual.contiguous().view(-1, shape[-1])
        y, total, rstd = _forward(x.contiguous().view(-1, shape[-1]), added, weight_h, eps)
        ctx.save_for_backward(total, weight_h, rstd)
        return y.view(shape), x if residual is None else total.view(shape)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor | None, dsum: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        total, weight_h, rstd = ctx.saved_tensors
        if dy is None:
            return dsum, dsum if ctx.residual else None, None, None
        rows = total.shape
        other = None if dsum is None else dsum.contiguous().view(rows)
        dx, dw = _backward(dy.contiguous().view(rows), other, total, weight_h, rstd)
        dx = dx.view(dy.shape)
        return dx, dx if ctx.residual else None, dw, None


def _forward(
    x_rh: torch.Tensor, residual_rh: torch.Tensor | None, weight_h: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(normed [R, hidden], what was normed [R, hidden], 1/rms [R]) of contiguous x (+ residual)."""
    if x_rh.is_cuda:
        from megatron_ring.model.kernels import norm_triton

        return norm_triton.forward(x_rh, residual_rh, weight_h, eps)
    total = x_rh if residual_rh is None else x_rh + residual_rh
    exact = _at_least_fp32(total)
    length = torch.linalg.vector_norm(exact, dim=-1)
    rstd = length.square_().div_(total.shape[1]).add_(eps).rsqrt_()
    return (exact * rstd[:, None]).mul_(weight_h).to(total.dtype), total, rstd


def _backward(
    dy_rh: torch.Tensor, dsum_rh: torch.Tensor | None, x_rh: torch.Tensor, weight_h: torch.Tensor, rstd_r: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(gradient by x [R, hidden], by the weight [hidden]); `dsum_rh` is a gradient that came to x another way."""
    if dy_rh.is_cuda:
        from megatron_ring.model.kernels import norm_triton

        return norm_triton.backward(dy_rh, dsum_rh, x_rh, weight_h, rstd_r)
    dy, weight = _at_least_fp32(dy_rh), _at_least_fp32(weight_h)
    normed = x_rh * rstd_r[:, None]
    by_weight = dy * normed
    shrink_r = by_weight @ weight
    dx = (dy * weight).sub_(normed.mul_(shrink_r.div_(x_rh.shape[1])[:, None])).mul_(rstd_r[:, None])
    if dsum_rh is not None:
        dx += dsum_rh
    return dx.to(x_rh.dtype), by_weight.sum(0).to(weight_h.dtype)


def _at_least_fp32(x: torch.Tensor) -> torch.Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()
