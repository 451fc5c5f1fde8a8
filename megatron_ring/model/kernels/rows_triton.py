"""Rows gathered, and sums of gathered rows."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from megatron_ring.model.kernels.dependent import launch_options
from megatron_ring.model.kernels.dependent_triton import begin
from megatron_ring.model.kernels.norm_triton import norm_warps


@triton.jit
def _permute_gather(x_ptr, index_ptr, out_ptr, width, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    source = tl.load(index_ptr + row).to(tl.int64)
    for start in range(0, width, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < width
        tl.store(out_ptr + row * width + column, tl.load(x_ptr + source * width + column, mask=inside), mask=inside)


@triton.jit
def _permute_spread(x_ptr, place_ptr, out_ptr, width, K: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    token = tl.program_id(0).to(tl.int64)
    for start in range(0, width, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < width
        x = tl.load(x_ptr + token * width + column, mask=inside)
        for k in tl.static_range(K):
            place = tl.load(place_ptr + token * K + k).to(tl.int64)
            tl.store(out_ptr + place * width + column, x, mask=inside)


@triton.jit
def _combined(  # type: ignore[no-untyped-def]
    y_ptr, index_ptr, first_ptr, second_ptr, token, column, width, K: tl.constexpr, PLUS: tl.constexpr
):
    """Of some columns of a token: the sum of its rows of y, and of what comes besides, in fp32."""
    inside = column < width
    total = tl.zeros(column.shape, dtype=tl.float32)
    for k in tl.static_range(K):
        source = tl.load(index_ptr + token * K + k).to(tl.int64)
        real = column < tl.where(source >= 0, width, 0)
        total += tl.load(y_ptr + source * width + column, mask=real, other=0.0).to(tl.float32)
    if PLUS > 0:
        total += tl.load(first_ptr + token * width + column, mask=inside, other=0.0).to(tl.float32)
    if PLUS > 1:
        total += tl.load(second_ptr + token * width + column, mask=inside, other=0.0).to(tl.float32)
    return total


@triton.jit
def _permute_combine(  # type: ignore[no-untyped-def]
    y_ptr, index_ptr, first_ptr, second_ptr, out_ptr, width,
    K: tl.constexpr, PLUS: tl.constexpr, BLOCK: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    begin(DEPENDENT)
    token = tl.program_id(0).to(tl.int64)
    for start in range(0, width, BLOCK):
        column = start + tl.arange(0, BLOCK)
        total = _combined(y_ptr, index_ptr, first_ptr, second_ptr, token, column, width, K, PLUS)
        tl.store(out_ptr + token * width + column, total.to(out_ptr.dtype.element_ty), mask=column < width)


@triton.jit
def _combine_and_norm(  # type: ignore[no-untyped-def]
    y_ptr, index_ptr, first_ptr, second_ptr, w_ptr, out_ptr, normed_ptr, width, eps,
    K: tl.constexpr, PLUS: tl.constexpr, BLOCK: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """`_permute_combine`, and what `norm_triton` makes of its result, with the same bits."""
    begin(DEPENDENT)
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < width
    total = _combined(y_ptr, index_ptr, first_ptr, second_ptr, token, column, width, K, PLUS)
    out = total.to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + token * width + column, out, mask=inside)
    x = out.to(tl.float32)
    rstd = tl.rsqrt(tl.sum(x * x, axis=0) / width + eps)
    w = tl.load(w_ptr + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(normed_ptr + token * width + column, (x * rstd * w).to(normed_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _permute_count(experts_ptr, counts_ptr, slots, blocks, E: tl.constexpr, E_BLOCK: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """How many of a block's slots each expert gets: int32 [E, blocks]."""
    block = tl.program_id(0)
    slot = block * BLOCK + tl.arange(0, BLOCK)
    number = tl.arange(0, E_BLOCK)
    expert = tl.load(experts_ptr + slot, mask=slot < slots, other=E_BLOCK).to(tl.int32)
    hit = (expert[:, None] == number[None, :]).to(tl.int32)
    tl.store(counts_ptr + number * blocks + block, tl.sum(hit, axis=0), mask=number < E)


@triton.jit
def _permute_scan(counts_ptr, totals_ptr, blocks, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Of one expert, what each block's count becomes: that of the blocks before it."""
    expert = tl.program_id(0)
    carry = 0
    for start in range(0, blocks, BLOCK):
        at = start + tl.arange(0, BLOCK)
        count = tl.load(counts_ptr + expert * blocks + at, mask=at < blocks, other=0)
        tl.store(counts_ptr + expert * blocks + at, carry + tl.cumsum(count, axis=0) - count, mask=at < blocks)
        carry += tl.sum(count, axis=0)
    tl.store(totals_ptr + expert, carry)


@triton.jit
def _permute_place(  # type: ignore[no-untyped-def]
    experts_ptr, before_ptr, totals_ptr, order_ptr, back_ptr, ends_ptr, slots, blocks,
    E: tl.constexpr, E_BLOCK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0)
    slot = block * BLOCK + tl.arange(0, BLOCK)
    number = tl.arange(0, E_BLOCK)
    total = tl.load(totals_ptr + number, mask=number < E, other=0)
    end = tl.cumsum(total, axis=0)
    if block == 0:
        tl.store(ends_ptr + number, end, mask=number < E)
    start = end - total + tl.load(before_ptr + number * blocks + block, mask=number < E, other=0)
    expert = tl.load(experts_ptr + slot, mask=slot < slots, other=E_BLOCK).to(tl.int32)
    hit = (expert[:, None] == number[None, :]).to(tl.int32)
    place = tl.sum(hit * (tl.cumsum(hit, axis=0) - hit + start[None, :]), axis=1)
    tl.store(back_ptr + slot, place.to(tl.int64), mask=slot < slots)
    tl.store(order_ptr + place, slot.to(tl.int64), mask=slot < slots)


def sort(experts_n: torch.Tensor, num_experts: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A stable counting sort of contiguous experts int64 [N]: the slot at each sorted place int64 [N], the sorted place of
    each slot int64 [N], where each expert's slots end int32 [E]."""
    slots, device = experts_n.numel(), experts_n.device
    order, back = torch.empty_like(experts_n), torch.empty_like(experts_n)
    if not slots:
        return order, back, torch.zeros(num_experts, dtype=torch.int32, device=device)
    e_block = triton.next_power_of_2(num_experts)
    block = max(32, min(256, 16384 // e_block))
    blocks = triton.cdiv(slots, block)
    found = torch.empty(num_experts * (blocks + 2), dtype=torch.int32, device=device)
    counts, totals, ends = found.split((num_experts * blocks, num_experts, num_experts))
    sizes: Any = {"E": num_experts, "E_BLOCK": e_block, "BLOCK": block}
    _permute_count[(blocks,)](experts_n, counts, slots, blocks, **sizes)
    _permute_scan[(num_experts,)](counts, totals, blocks, BLOCK=min(1024, triton.next_power_of_2(blocks)))
    _permute_place[(blocks,)](experts_n, counts, totals, order, back, ends, slots, blocks, **sizes)
    return order, back, ends


def _launch(width: int) -> dict[str, Any]:
    block = min(4096, triton.next_power_of_2(width))
    return {"BLOCK": block, "num_warps": max(1, min(8, block // 256))}


def gather(x_th: torch.Tensor, index_n: torch.Tensor) -> torch.Tensor:
    """x[index], [N, hidden]."""
    out = x_th.new_empty(index_n.shape[0], x_th.shape[1])
    if index_n.numel():
        _permute_gather[(index_n.shape[0],)](x_th, index_n, out, x_th.shape[1], **_launch(x_th.shape[1]))
    return out


def spread(x_th: torch.Tensor, place_tk: torch.Tensor) -> torch.Tensor:
    """out[place[t, k]] = x[t], [T * k, hidden], every place being taken once. Reads each row once, where a gather in the
    order of places reads it k times, each time from memory."""
    (tokens, width), k = x_th.shape, place_tk.shape[1]
    out = x_th.new_empty(tokens * k, width)
    if tokens:
        _permute_spread[(tokens,)](x_th, place_tk, out, width, K=k, **_launch(width))
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
            y_nh,
            index_tk,
            first,
            second,
            out,
            y_nh.shape[1],
            K=k,
            PLUS=len(plus),
            **_launch(y_nh.shape[1]),
            **launch_options(),
        )
    return out


def combine_and_norm(
    y_nh: torch.Tensor, index_tk: torch.Tensor, plus: tuple[torch.Tensor, ...], weight_h: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """`combine`, and RMSNorm of its result: two [T, hidden]."""
    (tokens, k), width = index_tk.shape, y_nh.shape[1]
    out, normed = (y_nh.new_empty(tokens, width) for _ in range(2))
    block = triton.next_power_of_2(width)
    if tokens:
        _combine_and_norm[(tokens,)](
            y_nh, index_tk, *(*plus, y_nh, y_nh)[:2], weight_h, out, normed, width, eps, K=k, PLUS=len(plus), BLOCK=block,
            num_warps=norm_warps(block), **launch_options(),
        )  # fmt: skip
    return out, normed
