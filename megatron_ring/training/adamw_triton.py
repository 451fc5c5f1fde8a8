"""The optimizer's kernels: AdamW of one tensor in one pass, and sums into fp32 gradient buffers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

BLOCK, WARPS = 4096, 8


@triton.jit
def _adamw(  # type: ignore[no-untyped-def]
    p_ptr, g_ptr, m_ptr, v_ptr, copy_ptr, scale_ptr, count, lr, beta1, beta2, eps, decay, correction1, correction2,
    COPY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    g = tl.load(g_ptr + at, mask=inside, other=0.0).to(tl.float32) * tl.load(scale_ptr)
    m = tl.load(m_ptr + at, mask=inside, other=0.0).to(tl.float32)
    v = tl.load(v_ptr + at, mask=inside, other=0.0).to(tl.float32)
    p = tl.load(p_ptr + at, mask=inside, other=0.0)
    m = m + (g - m) * (1.0 - beta1)
    v = v * beta2 + g * g * (1.0 - beta2)
    p = p * (1.0 - lr * decay)
    p = p - lr * (m / correction1) / (tl.sqrt(v / correction2) + eps)
    tl.store(m_ptr + at, m.to(m_ptr.dtype.element_ty), mask=inside)
    tl.store(v_ptr + at, v.to(v_ptr.dtype.element_ty), mask=inside)
    tl.store(p_ptr + at, p, mask=inside)
    if COPY:
        tl.store(copy_ptr + at, p.to(copy_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _gradient_accumulate(sum_ptr, x_ptr, count, FIRST: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if not FIRST:
        x += tl.load(sum_ptr + at, mask=inside, other=0.0)
    tl.store(sum_ptr + at, x, mask=inside)


def adamw(
    parameter: torch.Tensor, gradient: torch.Tensor, first: torch.Tensor, second: torch.Tensor, scale: torch.Tensor,
    copy: torch.Tensor | None, lr: float, betas: tuple[float, float], eps: float, decay: float, step: int,
) -> None:  # fmt: skip
    """One AdamW update (Loshchilov & Hutter, arXiv 1711.05101) of contiguous fp32 `parameter` with gradient * scale
    (a fp32 scalar on the device), moments in fp32 or bf16, written to `copy` as well in its dtype."""
    count = parameter.numel()
    if count:
        _adamw[(triton.cdiv(count, BLOCK),)](
            parameter, gradient, first, second, parameter if copy is None else copy, scale, count,
            lr, betas[0], betas[1], eps, decay, 1.0 - betas[0] ** step, 1.0 - betas[1] ** step,
            COPY=copy is not None, BLOCK=BLOCK, num_warps=WARPS,
        )  # fmt: skip


def accumulate(total: torch.Tensor, x: torch.Tensor, first: bool = False) -> None:
    """total += x, or total = x where it is the first; contiguous, total in fp32."""
    count = total.numel()
    if count:
        _gradient_accumulate[(triton.cdiv(count, BLOCK),)](total, x, count, FIRST=first, BLOCK=BLOCK, num_warps=WARPS)
