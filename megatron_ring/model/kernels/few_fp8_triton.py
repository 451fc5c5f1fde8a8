"""Routed experts in FP8: the products of `few_tokens_triton` by tensor cores that multiply e4m3, and matrices made wide.

Activations are split into two values of e4m3 with a power of two as scale: a = scale * (high + low / 16). e4m3 has 4 bits of
mantissa with its leading one, bf16 has 8, so that both together are a bf16 value exactly, down to 2^-13 of the largest that
has the same scale; what is smaller is off by 2^-21 of the largest at most. A product is that of `high` and that of `low`,
which take tensor cores as long as one product of bf16. In programs of few rows both are one product.

A Hopper GPU is said to add such products with 13 bits of fraction (DeepSeek-V3, arXiv:2412.19437, 3.3.2). Triton's
`max_num_imprecise_acc` would add to fp32 in between, but reads the tensor cores' sums before it has waited for them. So each
block of columns is a product of its own, which starts at zero and is added in fp32 here. A scale for each block then costs
nothing: a program of the first product has one block of SwiGLU's result, and splits it before it leaves registers. `low`
goes first, and `high` starts from it, so that beside the totals the sums of one product are in registers.

With one part alone activations are rounded to e4m3: off by 2^-4 of themselves at most, or 2^-17 of the largest.

Suffixes: t tokens, k experts of a token, n token-slots sorted by expert, h hidden, f expert width, e experts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
import triton
import triton.language as tl

from megatron_ring.model.kernels.dependent import launch_options
from megatron_ring.model.kernels.dependent_triton import await_made, begin, end_behind, tell_made
from megatron_ring.model.kernels.fp8 import E4M3, Fp8Matrix, padded

if TYPE_CHECKING:
    from megatron_ring.model.kernels.few_tokens_triton import Tile
    from megatron_ring.model.kernels.slots_triton import Slots

BOTH = tl.constexpr(16)  # rows of a program up to which one product takes `high` and `low`
LOW = tl.constexpr(1 / 16)  # of `low`: e4m3's relative error, so that `low` has the range of `high`


@triton.jit
def _rounded(x):  # type: ignore[no-untyped-def]
    """fp32 values, 448 at most, to the nearest of e4m3, ties to even. A conversion then has nothing left to round, which
    Triton's interpreter does otherwise."""
    exponent = tl.maximum(x.to(tl.int32, bitcast=True) >> 23 & 255, 127 - 6)  # below 2^-6 values are 2^-9 apart
    shift = (exponent + 23 - 3 << 23 | 0x400000).to(tl.float32, bitcast=True)  # what lies beside it is as far apart as e4m3
    return (x + shift) - shift


@triton.jit
def _split(x, AXIS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Of fp32 values: `high`, `low`, and the least scale that brings the largest along an axis to 448 or below; NaN where
    one is not finite."""
    largest = tl.max(x.to(tl.int32, bitcast=True) & 0x7FFFFFFF, AXIS)  # by bits, where NaN is above all
    exponent = tl.maximum((largest >> 23) - 8 + ((largest & 0x7FFFFF) > 0x600000).to(tl.int32), 1)
    scale = tl.where(largest < 0x7F800000, exponent << 23, 0x7FC00000).to(tl.float32, bitcast=True)
    x = x * tl.expand_dims(((254 - exponent) << 23).to(tl.float32, bitcast=True), AXIS)
    high = _rounded(x)
    low = _rounded((x - high) * 16)
    return high.to(tl.float8e4nv), low.to(tl.float8e4nv), scale


@triton.jit
def split_row(  # type: ignore[no-untyped-def]
    x_ptr, parts_ptr, scales_ptr, row, hidden, columns, PARTS: tl.constexpr, BLOCK: tl.constexpr
):
    """A token's hidden states, for all columns of weights: `columns`, zeros beyond `hidden`."""
    row = row.to(tl.int64)
    column = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row * hidden + column, mask=column < hidden, other=0.0).to(tl.float32)
    high, low, scale = _split(x, 0)
    part_at = parts_ptr + PARTS * row * columns + column
    tl.store(part_at, high, mask=column < columns)
    if PARTS == 2:
        tl.store(part_at + columns, low, mask=column < columns)
    tl.store(scales_ptr + row, scale)


@triton.jit
def _parts(ROWS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Of 2 * ROWS places, where one product takes two halves, such as `high` before `low`: the half, and the row in it."""
    both = tl.arange(0, 2 * ROWS)
    return both // ROWS, both % ROWS


@triton.jit
def _added(sums, part):  # type: ignore[no-untyped-def]
    """[TILE, ROWS] of such a product's sums."""
    sums = sums * tl.where(part == 0, 1.0, LOW)[None, :]
    return tl.sum(tl.reshape(sums, [sums.shape[0], 2, sums.shape[1] // 2]), 1)


@triton.jit
def _gate_up(  # type: ignore[no-untyped-def]
    x_ptr, x_scales_ptr, order_ptr, ends_ptr, made_ptr, weights_ptr, w_ptr, scales_ptr, act_ptr, act_scales_ptr,
    columns, width, act_columns, slots, K: tl.constexpr, PARTS: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr,
    DEPTH: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    begin(DEPENDENT)
    expert = tl.program_id(2).to(tl.int64)
    end = tl.load(ends_ptr + expert)
    start = tl.load(ends_ptr + expert - 1, mask=expert > 0, other=0) + tl.program_id(0) * ROWS
    f = tl.program_id(1) * TILE + tl.arange(0, TILE)
    column = tl.arange(0, DEPTH)
    inside = (f < width)[:, None]
    gate_at = w_ptr + (expert * (2 * width) + f[:, None]) * columns + column[None, :]
    up_at = gate_at + width.to(tl.int64) * columns
    for first in range(start, end, ROWS * tl.num_programs(0)):
        row = first + tl.arange(0, ROWS)
        real = row < end
        slot = tl.load(order_ptr + row, mask=real, other=0)
        token = slot // K
        if PARTS == 2 and ROWS <= BOTH:
            part, row_of_part = _parts(ROWS)
            token_of_part = tl.load(order_ptr + first + row_of_part, mask=first + row_of_part < end, other=0) // K
            x_at = x_ptr + (token_of_part.to(tl.int64) * 2 + part)[None, :] * columns + column[:, None]
            which, f_of_both = _parts(TILE)  # gate before up
            f_of_both += tl.program_id(1) * TILE
            both_at = w_ptr + (expert * (2 * width) + which * width + f_of_both)[:, None] * columns + column[None, :]
            sums = tl.zeros([2 * TILE, 2 * ROWS], tl.float32)
            for depth in range(0, columns, DEPTH):
                w = tl.load(both_at + depth, mask=(f_of_both < width)[:, None], other=0.0)
                x = tl.load(x_at + depth, mask=(first + row_of_part < end)[None, :], other=0.0)
                sums += tl.dot(w, x)
            gate, up = tl.split(tl.permute(tl.reshape(_added(sums, part), [2, TILE, ROWS]), (1, 2, 0)))
        else:
            high_at = x_ptr + token.to(tl.int64)[None, :] * (PARTS * columns) + column[:, None]
            low_at = high_at + columns
            gate = tl.zeros([TILE, ROWS], tl.float32)
            up = tl.zeros([TILE, ROWS], tl.float32)
            for depth in range(0, columns, DEPTH):
                g = tl.load(gate_at + depth, mask=inside, other=0.0)
                u = tl.load(up_at + depth, mask=inside, other=0.0)
                high = tl.load(high_at + depth, mask=real[None, :], other=0.0)
                if PARTS == 2:
                    low = tl.load(low_at + depth, mask=real[None, :], other=0.0)
                    gate += tl.dot(g, high, tl.dot(g, low) * LOW)
                    up += tl.dot(u, high, tl.dot(u, low) * LOW)
                else:
                    gate += tl.dot(g, high)
                    up += tl.dot(u, high)
        scale_at = scales_ptr + expert * (2 * width) + f
        x_scale = tl.load(x_scales_ptr + token, mask=real, other=0.0)[None, :]
        gate *= tl.load(scale_at, mask=f < width, other=0.0)[:, None] * x_scale
        up *= tl.load(scale_at + width, mask=f < width, other=0.0)[:, None] * x_scale
        weight = tl.load(weights_ptr + slot, mask=real, other=0.0)
        high, low, scale = _split(gate * tl.sigmoid(gate) * up * weight[None, :], 0)
        act_at = act_ptr + row.to(tl.int64)[None, :] * (PARTS * act_columns) + f[:, None]
        tl.store(act_at, high, mask=real[None, :])
        if PARTS == 2:
            tl.store(act_at + act_columns, low, mask=real[None, :])
        tl.store(act_scales_ptr + tl.program_id(1) * slots + row, scale, mask=real)
    tell_made(made_ptr + expert, DEPENDENT)


@triton.jit
def _down(  # type: ignore[no-untyped-def]
    act_ptr, act_scales_ptr, ends_ptr, made_ptr, w_ptr, scales_ptr, out_ptr, hidden, width, columns, slots, programs,
    PARTS: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, DEPTH: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    begin(DEPENDENT, True)
    expert = tl.program_id(2).to(tl.int64)
    end = tl.load(ends_ptr + expert)
    start = tl.load(ends_ptr + expert - 1, mask=expert > 0, other=0) + tl.program_id(0) * ROWS
    h = tl.program_id(1) * TILE + tl.arange(0, TILE)
    column = tl.arange(0, DEPTH)
    inside = (h < hidden)[:, None]
    w_at = w_ptr + (expert * hidden + h[:, None]) * columns + column[None, :]
    await_made(made_ptr + expert, tl.where(start < end, programs, 0), DEPENDENT)
    for first in range(start, end, ROWS * tl.num_programs(0)):
        row = first + tl.arange(0, ROWS)
        real = row < end
        if PARTS == 2 and ROWS <= BOTH:
            part, row_of_part = _parts(ROWS)
            real_of_part = first + row_of_part < end
            act_at = act_ptr + ((first + row_of_part).to(tl.int64) * 2 + part)[None, :] * columns + column[:, None]
            scale_at = act_scales_ptr + first + row_of_part
            totals = tl.zeros([TILE, 2 * ROWS], tl.float32)
            for depth in range(0, width, DEPTH):
                w = tl.load(w_at + depth, mask=inside, other=0.0)
                act = tl.load(act_at + depth, mask=real_of_part[None, :], other=0.0)
                scale = tl.load(scale_at, mask=real_of_part, other=0.0)[None, :]
                scale_at += slots
                totals += tl.dot(w, act) * scale
            total = _added(totals, part)
        else:
            high_at = act_ptr + row.to(tl.int64)[None, :] * (PARTS * columns) + column[:, None]
            low_at = high_at + columns
            scale_at = act_scales_ptr + row
            total = tl.zeros([TILE, ROWS], tl.float32)
            for depth in range(0, width, DEPTH):
                w = tl.load(w_at + depth, mask=inside, other=0.0)
                high = tl.load(high_at + depth, mask=real[None, :], other=0.0)
                scale = tl.load(scale_at, mask=real, other=0.0)[None, :]
                scale_at += slots
                if PARTS == 2:
                    low = tl.load(low_at + depth, mask=real[None, :], other=0.0)
                    total += tl.dot(w, high, tl.dot(w, low) * LOW) * scale
                else:
                    total += tl.dot(w, high) * scale
        total *= tl.load(scales_ptr + expert * hidden + h, mask=h < hidden, other=0.0)[:, None]
        out_at = out_ptr + row.to(tl.int64)[None, :] * hidden + h[:, None]
        tl.store(out_at, total.to(out_ptr.dtype.element_ty), mask=real[None, :] & inside)
    end_behind(DEPENDENT)


@triton.jit
def _wide(  # type: ignore[no-untyped-def]
    values_ptr, scales_ptr, out_ptr, rows, columns, padded_columns, TILE: tl.constexpr, DEPTH: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    column = tl.program_id(1) * DEPTH + tl.arange(0, DEPTH)
    real = (row < rows)[:, None] & (column < columns)[None, :]
    value = tl.load(values_ptr + row[:, None] * padded_columns + column[None, :], mask=real, other=0.0).to(tl.float32)
    value *= tl.load(scales_ptr + row, mask=row < rows, other=0.0)[:, None]
    tl.store(out_ptr + row[:, None] * columns + column[None, :], value.to(out_ptr.dtype.element_ty), mask=real)


def wide(matrix: Fp8Matrix, dtype: torch.dtype) -> torch.Tensor:
    """The weights [..., b, a] that it stands for, contiguous."""
    out = torch.empty(matrix.shape, dtype=dtype, device=matrix.values.device)
    rows, of_row = matrix.scales.numel(), matrix.values.shape[-1]
    grid = (triton.cdiv(rows, 64), triton.cdiv(matrix.columns, 128))
    _wide[grid](matrix.values, matrix.scales, out, rows, matrix.columns, of_row, TILE=64, DEPTH=128)
    return out


class Split(NamedTuple):
    """Activations x [T, hidden]; their parts, e4m3 [T, 2 or 1, hidden padded as weights are]; scales fp32 [T]."""

    x: torch.Tensor
    parts: torch.Tensor
    scales: torch.Tensor


def room_for(x_th: torch.Tensor, count: int = 2) -> Split:
    """For the parts of contiguous x, which `slots_triton.sort_slots` makes beside its own work."""
    tokens, hidden = x_th.shape
    parts = torch.empty(tokens, count, padded(hidden), dtype=E4M3, device=x_th.device)
    return Split(x_th, parts, torch.empty(tokens, dtype=torch.float32, device=x_th.device))


def products(
    split: Split, weights_tk: torch.Tensor, slots: Slots, gate_up_e: Fp8Matrix, down_e: Fp8Matrix, rows: int, beside: int,
    up: Tile, down: Tile,
) -> torch.Tensor:  # fmt: skip
    """What `few_tokens_triton.sorted_outputs` returns first, of bf16 x, in programs of so many rows. `down` has as many
    columns as `up` has weight rows: these share a scale."""
    x_th, parts, x_scales = split
    num_experts, hidden, width = down_e.shape
    order, _, ends, made = slots
    n, columns, act_columns = order.numel(), gate_up_e.values.shape[-1], down_e.values.shape[-1]
    blocks = triton.cdiv(width, up.rows)
    count = parts.shape[1]
    act = torch.empty(n, count, act_columns, dtype=E4M3, device=x_th.device)
    act_scales = torch.empty(blocks, n, dtype=torch.float32, device=x_th.device)
    y_nh = x_th.new_empty(n, hidden)
    _gate_up[(beside, blocks, num_experts)](
        parts, x_scales, order, ends, made, weights_tk, gate_up_e.values, gate_up_e.scales, act, act_scales,
        columns, width, act_columns, n, K=weights_tk.shape[1], PARTS=count, ROWS=rows, TILE=up.rows, DEPTH=up.columns,
        num_stages=up.stages, num_warps=up.warps, **launch_options(),
    )  # fmt: skip
    _down[(beside, triton.cdiv(hidden, down.rows), num_experts)](
        act, act_scales, ends, made, down_e.values, down_e.scales, y_nh, hidden, width, act_columns, n,
        beside * blocks, PARTS=count, ROWS=rows, TILE=down.rows, DEPTH=up.rows, num_stages=down.stages, num_warps=down.warps,
        **launch_options(),
    )  # fmt: skip
    return y_nh
