"""Routed experts with weights of the tokens' own type: the products of `few_tokens_triton`.

A program of more than 64 rows multiplies as many as its expert has, to within 16 or 32: tensor cores take as long for rows
that are none, and what a program holds of them on the way to shared memory is room that deeper reading wants.

Suffixes: t tokens, k experts of a token, n token-slots sorted by expert, h hidden, f expert width, e experts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from megatron_ring.model.kernels.dependent import launch_options
from megatron_ring.model.kernels.dependent_triton import await_made, begin, end_behind, tell_made

if TYPE_CHECKING:
    from megatron_ring.model.kernels.few_tokens_triton import Tile
    from megatron_ring.model.kernels.slots_triton import Slots

WHOLE = 64  # rows of a program, beyond which they are two powers of two


@triton.jit
def _activated(gate, up, weights_ptr, slot, real, dtype: tl.constexpr):  # type: ignore[no-untyped-def]
    """SwiGLU with the router's weights. As in training the products are rounded before."""
    gate, up = gate.to(dtype).to(tl.float32), up.to(dtype).to(tl.float32)
    weight = tl.load(weights_ptr + slot, mask=real, other=0.0)
    return (gate * tl.sigmoid(gate) * up * weight[None, :]).to(dtype)


@triton.jit
def _gate_up_of(  # type: ignore[no-untyped-def]
    x_ptr, order_ptr, weights_ptr, gate_at, up_at, out_ptr, f, first, end, hidden, width,
    K: tl.constexpr, ROWS: tl.constexpr, MORE: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """The rows from `first` to `end`, ROWS + MORE at most."""
    column = tl.arange(0, DEPTH)
    row = first + tl.arange(0, ROWS)
    real, f_real = row < end, f < width
    slot = tl.load(order_ptr + row, mask=real, other=0)
    x_at = x_ptr + (slot // K).to(tl.int64)[None, :] * hidden + column[:, None]
    gate = tl.zeros([f.shape[0], ROWS], tl.float32)
    up = tl.zeros([f.shape[0], ROWS], tl.float32)
    if MORE > 0:
        row_2 = first + ROWS + tl.arange(0, MORE)
        real_2 = row_2 < end
        slot_2 = tl.load(order_ptr + row_2, mask=real_2, other=0)
        x_2_at = x_ptr + (slot_2 // K).to(tl.int64)[None, :] * hidden + column[:, None]
        gate_2 = tl.zeros([f.shape[0], MORE], tl.float32)
        up_2 = tl.zeros([f.shape[0], MORE], tl.float32)
    for depth in range(0, hidden, DEPTH):
        inside = column < hidden - depth
        x = tl.load(x_at + depth, mask=real[None, :] & inside[:, None], other=0.0)
        g = tl.load(gate_at + depth, mask=f_real[:, None] & inside[None, :], other=0.0)
        u = tl.load(up_at + depth, mask=f_real[:, None] & inside[None, :], other=0.0)
        gate = tl.dot(g, x, gate, input_precision="ieee")
        up = tl.dot(u, x, up, input_precision="ieee")
        if MORE > 0:
            x_2 = tl.load(x_2_at + depth, mask=real_2[None, :] & inside[:, None], other=0.0)
            gate_2 = tl.dot(g, x_2, gate_2, input_precision="ieee")
            up_2 = tl.dot(u, x_2, up_2, input_precision="ieee")
    out = _activated(gate, up, weights_ptr, slot, real, out_ptr.dtype.element_ty)
    tl.store(out_ptr + row.to(tl.int64)[None, :] * width + f[:, None], out, mask=real[None, :] & f_real[:, None])
    if MORE > 0:
        out_2 = _activated(gate_2, up_2, weights_ptr, slot_2, real_2, out_ptr.dtype.element_ty)
        tl.store(out_ptr + row_2.to(tl.int64)[None, :] * width + f[:, None], out_2, mask=real_2[None, :] & f_real[:, None])


@triton.jit
def _few_gate_up(  # type: ignore[no-untyped-def]
    x_ptr, order_ptr, ends_ptr, made_ptr, weights_ptr, w_ptr, out_ptr, hidden, width,
    K: tl.constexpr, ROWS: tl.constexpr, MORE: tl.constexpr, TILE: tl.constexpr, DEPTH: tl.constexpr,
    PARTLY: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    begin(DEPENDENT)
    expert = tl.program_id(2)
    end = tl.load(ends_ptr + expert)
    start = tl.load(ends_ptr + expert - 1, mask=expert > 0, other=0) + tl.program_id(0) * (ROWS + MORE)
    f = tl.program_id(1) * TILE + tl.arange(0, TILE)
    gate_at = w_ptr + (expert.to(tl.int64) * (2 * width) + f[:, None]) * hidden + tl.arange(0, DEPTH)[None, :]
    up_at = gate_at + width.to(tl.int64) * hidden
    for first in range(start, end, (ROWS + MORE) * tl.num_programs(0)):
        left = end - first
        if MORE > ROWS // 2 and left > ROWS + ROWS // 2:
            _gate_up_of(
                x_ptr, order_ptr, weights_ptr, gate_at, up_at, out_ptr, f, first, end, hidden, width, K, ROWS,
                MORE, DEPTH,
            )  # fmt: skip
        elif MORE > 0 and left > ROWS + ROWS // 4:
            _gate_up_of(
                x_ptr, order_ptr, weights_ptr, gate_at, up_at, out_ptr, f, first, end, hidden, width, K, ROWS,
                ROWS // 2, DEPTH,
            )  # fmt: skip
        elif MORE > 0 and left > ROWS:
            _gate_up_of(
                x_ptr, order_ptr, weights_ptr, gate_at, up_at, out_ptr, f, first, end, hidden, width, K, ROWS,
                ROWS // 4, DEPTH,
            )  # fmt: skip
        else:
            _gate_up_of(
                x_ptr, order_ptr, weights_ptr, gate_at, up_at, out_ptr, f, first, end, hidden, width, K, ROWS,
                0, DEPTH,
            )  # fmt: skip
    tell_made(made_ptr + expert, DEPENDENT and PARTLY)


@triton.jit
def _down_of(  # type: ignore[no-untyped-def]
    x_ptr, w_at, out_ptr, h, first, end, hidden, width, ROWS: tl.constexpr, MORE: tl.constexpr, DEPTH: tl.constexpr
):
    """The rows from `first` to `end`, ROWS + MORE at most."""
    column = tl.arange(0, DEPTH)
    row = first + tl.arange(0, ROWS)
    real, h_real = row < end, h < hidden
    x_at = x_ptr + row.to(tl.int64)[None, :] * width + column[:, None]
    total = tl.zeros([h.shape[0], ROWS], tl.float32)
    if MORE > 0:
        row_2 = first + ROWS + tl.arange(0, MORE)
        real_2 = row_2 < end
        x_2_at = x_ptr + row_2.to(tl.int64)[None, :] * width + column[:, None]
        total_2 = tl.zeros([h.shape[0], MORE], tl.float32)
    for depth in range(0, width, DEPTH):
        inside = column < width - depth
        x = tl.load(x_at + depth, mask=real[None, :] & inside[:, None], other=0.0)
        w = tl.load(w_at + depth, mask=h_real[:, None] & inside[None, :], other=0.0)
        total = tl.dot(w, x, total, input_precision="ieee")
        if MORE > 0:
            x_2 = tl.load(x_2_at + depth, mask=real_2[None, :] & inside[:, None], other=0.0)
            total_2 = tl.dot(w, x_2, total_2, input_precision="ieee")
    out = total.to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + row.to(tl.int64)[None, :] * hidden + h[:, None], out, mask=real[None, :] & h_real[:, None])
    if MORE > 0:
        out_2 = total_2.to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + row_2.to(tl.int64)[None, :] * hidden + h[:, None], out_2, mask=real_2[None, :] & h_real[:, None])


@triton.jit
def _few_down(  # type: ignore[no-untyped-def]
    x_ptr, ends_ptr, made_ptr, w_ptr, out_ptr, hidden, width, programs,
    ROWS: tl.constexpr, MORE: tl.constexpr, TILE: tl.constexpr, DEPTH: tl.constexpr,
    PARTLY: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    begin(DEPENDENT, PARTLY)
    expert = tl.program_id(2)
    end = tl.load(ends_ptr + expert)
    start = tl.load(ends_ptr + expert - 1, mask=expert > 0, other=0) + tl.program_id(0) * (ROWS + MORE)
    h = tl.program_id(1) * TILE + tl.arange(0, TILE)
    w_at = w_ptr + (expert.to(tl.int64) * hidden + h[:, None]) * width + tl.arange(0, DEPTH)[None, :]
    await_made(made_ptr + expert, tl.where(start < end, programs, 0), DEPENDENT and PARTLY)
    for first in range(start, end, (ROWS + MORE) * tl.num_programs(0)):
        left = end - first
        if MORE > ROWS // 2 and left > ROWS + ROWS // 2:
            _down_of(x_ptr, w_at, out_ptr, h, first, end, hidden, width, ROWS, MORE, DEPTH)
        elif MORE > 0 and left > ROWS + ROWS // 4:
            _down_of(x_ptr, w_at, out_ptr, h, first, end, hidden, width, ROWS, ROWS // 2, DEPTH)
        elif MORE > 0 and left > ROWS:
            _down_of(x_ptr, w_at, out_ptr, h, first, end, hidden, width, ROWS, ROWS // 4, DEPTH)
        else:
            _down_of(x_ptr, w_at, out_ptr, h, first, end, hidden, width, ROWS, 0, DEPTH)
    end_behind(DEPENDENT and PARTLY)


def products(
    x_th: torch.Tensor, weights_tk: torch.Tensor, slots: Slots, gate_up_e: torch.Tensor, down_e: torch.Tensor, rows: int,
    beside: int, up: Tile, down: Tile,
) -> torch.Tensor:  # fmt: skip
    """What `few_tokens_triton.sorted_outputs` returns first, of slots that `sort_slots` has sorted, in programs of so many
    rows: a power of two up to `WHOLE`, or `WHOLE` and half or all of it more."""
    num_experts, hidden, width = down_e.shape
    order, ends = slots.order, slots.ends
    act_nf, y_nh = x_th.new_empty(order.numel(), width), x_th.new_empty(order.numel(), hidden)
    whole, tiles = min(rows, WHOLE), triton.cdiv(width, up.rows)
    made, partly = (ends, False) if slots.made is None else (slots.made, True)
    sizes = {"ROWS": whole, "MORE": rows - whole, "PARTLY": partly}
    _few_gate_up[(beside, tiles, num_experts)](
        x_th, order, ends, made, weights_tk, gate_up_e, act_nf, hidden, width, K=weights_tk.shape[1], TILE=up.rows,
        DEPTH=up.columns, num_stages=up.stages, num_warps=up.warps, **sizes, **launch_options(),
    )  # fmt: skip
    _few_down[(beside, triton.cdiv(hidden, down.rows), num_experts)](
        act_nf, ends, made, down_e, y_nh, hidden, width, beside * tiles, TILE=down.rows, DEPTH=down.columns,
        num_stages=down.stages, num_warps=down.warps, **sizes, **launch_options(),
    )  # fmt: skip
    return y_nh
