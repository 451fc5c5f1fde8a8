"""Rows gathered, and sums of gathered rows."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl


@triton.jit
def _permute_gather(x_ptr, index_ptr, out_ptr, width, DIVISOR: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    source = tl.load(index_ptr + row).to(tl.int64) // DIVISOR
    for start in range(0, width, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < width
        tl.store(out_ptr + row * width + column, tl.load(x_ptr + source * width + column, mask=inside), mask=inside)


@triton.jit
def _permute_combine(  # type: ignore[no-untyped-def]
    y_ptr, index_ptr, first_ptr, second_ptr, out_ptr, width, K: tl.constexpr, PLUS: tl.constexpr, BLOCK: tl.constexpr
):
    token = tl.program_id(0).to(tl.int64)
    for start in range(0, width, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < width
        total = tl.zeros([BLOCK], dtype=tl.float32)
        for k in tl.static_range(K):
            source = tl.load(index_ptr + token * K + k).to(tl.int64)
            real = column < tl.where(source >= 0, width, 0)
            total += tl.load(y_ptr + source * width + column, mask=real, other=0.0).to(tl.float32)
        if PLUS > 0:
            total += tl.load(first_ptr + token * width + column, mask=inside, other=0.0).to(tl.float32)
        if PLUS > 1:
            total += tl.load(second_ptr + token * width + column, mask=inside, other=0.0).to(tl.float32)
        tl.store(out_ptr + token * width + column, total.to(out_ptr.dtype.element_ty), mask=inside)


def _launch(width: int) -> dict[str, Any]:
    block = min(4096, triton.next_power_of_2(width))
    return {"BLOCK": block, "num_warps": max(1, min(8, block // 256))}


def gather(x_th: torch.Tensor, index_n: torch.Tensor, divisor: int) -> torch.Tensor:
    """x[index // divisor], [N, hidden]."""
    out = x_th.new_empty(index_n.shape[0], x_th.shape[1])
    if index_n.numel():
        _permute_gather[(index_n.shape[0],)](x_th, index_n, out, x_th.shape[1], DIVISOR=divisor, **_launch(x_th.shape[1]))
    return out


def combine(
    y_nh: torch.Tensor, index_tk: torch.Tensor, plus: tuple[torch.Tensor, ...], dtype: torch.dtype | None = None
) -> torch.Tensor:
    """The sum over k of y[index[t, k]], and of the tensors of `plus` (two at most, [T, hidden]), added up in fp32; in
    `dtype` (default: y's). A negative index stands for nothing."""
    tokens, k = index_tk.shape
    out = y_nh.new_empty(tokens, y_nh.shape[1], dtype=dtype)
    first, second = (*plus, y_nh, y_nh)[:2]
    if tokens:
        _permute_combine[(tokens,)](
            y_nh, index_tk, first, second, out, y_nh.shape[1], K=k, PLUS=len(plus), **_launch(y_nh.shape[1])
        )
    return out
