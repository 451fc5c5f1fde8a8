"""RMSNorm, with the residual's addition before it and its gradient's addition behind it, in one pass each."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from megatron_ring.model.kernels.dependent import launch_options
from megatron_ring.model.kernels.dependent_triton import begin

PROGRAMS = 132 * 4  # of the backward pass; each keeps one sum of the weight's gradient


@triton.jit
def _rms_norm_forward(  # type: ignore[no-untyped-def]
    x_ptr, r_ptr, w_ptr, sum_ptr, y_ptr, rstd_ptr, width, eps,
    ADD: tl.constexpr, BLOCK: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    begin(DEPENDENT)
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < width
    x = tl.load(x_ptr + row * width + column, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        r = tl.load(r_ptr + row * width + column, mask=inside, other=0.0).to(tl.float32)
        rounded = (x + r).to(sum_ptr.dtype.element_ty)
        tl.store(sum_ptr + row * width + column, rounded, mask=inside)
        x = rounded.to(tl.float32)
    rstd = tl.rsqrt(tl.sum(x * x, axis=0) / width + eps)
    tl.store(rstd_ptr + row, rstd)
    w = tl.load(w_ptr + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(y_ptr + row * width + column, (x * rstd * w).to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _rms_norm_backward(  # type: ignore[no-untyped-def]
    dy_ptr, ds_ptr, x_ptr, w_ptr, rstd_ptr, dx_ptr, dw_ptr, rows, each, width, ADD: tl.constexpr, BLOCK: tl.constexpr
):
    program = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    inside = column < width
    w = tl.load(w_ptr + column, mask=inside, other=0.0).to(tl.float32)
    dw = tl.zeros([BLOCK], dtype=tl.float32)
    for i in range(0, each):
        row = program + i * tl.num_programs(0)
        at = row.to(tl.int64) * width + column
        real = column < tl.where(row < rows, width, 0)
        x = tl.load(x_ptr + at, mask=real, other=0.0).to(tl.float32)
        dy = tl.load(dy_ptr + at, mask=real, other=0.0).to(tl.float32)
        rstd = tl.load(rstd_ptr + row, mask=row < rows, other=0.0)
        normed = x * rstd
        dw += dy * normed
        wdy = dy * w
        dx = (wdy - normed * (tl.sum(normed * wdy, axis=0) / width)) * rstd
        if ADD:
            dx += tl.load(ds_ptr + at, mask=real, other=0.0).to(tl.float32)
        tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask=real)
    tl.store(dw_ptr + program * width + column, dw, mask=inside)


def norm_warps(block: int) -> int:
    """Of a program that has a row of so many columns."""
    return max(1, min(16, block // 256))


def forward(
    x_rh: torch.Tensor, residual_rh: torch.Tensor | None, weight_h: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(normed [R, hidden], what was normed [R, hidden], 1/rms fp32 [R]) of contiguous x (+ residual)."""
    rows, width = x_rh.shape
    y, rstd = torch.empty_like(x_rh), torch.empty(rows, dtype=torch.float32, device=x_rh.device)
    added = x_rh if residual_rh is None else torch.empty_like(x_rh)
    block = triton.next_power_of_2(width)
    arguments: Any = (x_rh, residual_rh if residual_rh is not None else x_rh, weight_h, added, y, rstd, width, eps)
    if rows:
        options = {"BLOCK": block, "num_warps": norm_warps(block), **launch_options()}
        _rms_norm_forward[(rows,)](*arguments, ADD=residual_rh is not None, **options)
    return y, added, rstd


def backward(
    dy_rh: torch.Tensor, dsum_rh: torch.Tensor | None, x_rh: torch.Tensor, weight_h: torch.Tensor, rstd_r: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(gradient by x [R, hidden], by the weight [hidden]); `dsum_rh` is a gradient that came to x another way."""
    rows, width = x_rh.shape
    dx = torch.empty_like(x_rh)
    programs = min(PROGRAMS, max(1, rows))
    dw = torch.empty(programs, width, dtype=torch.float32, device=x_rh.device)
    block = triton.next_power_of_2(width)
    _rms_norm_backward[(programs,)](
        dy_rh, dsum_rh if dsum_rh is not None else dy_rh, x_rh, weight_h, rstd_r, dx, dw, rows,
        triton.cdiv(rows, programs), width, ADD=dsum_rh is not None, BLOCK=block, num_warps=norm_warps(block),
    )  # fmt: skip
    return dx, dw.sum(0).to(weight_h.dtype)
