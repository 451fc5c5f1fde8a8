"""Routed experts for the few tokens of a decoding step, where time is what it takes to read the weights.

Each program streams one tile of one expert's weights past rows of that expert; experts without rows are not read. Where an
expert has more rows than a program holds, programs beside each other take the same tile past other rows at the same time: it
comes from memory once.
Rows are found through an index, so nothing is gathered first, and SwiGLU with the router's weight is applied to sums that
are still in registers. No host synchronisation, no shape that depends on the routing: a CUDA graph can hold it.

Suffixes: t tokens, k experts of a token, n token-slots sorted by expert, h hidden, f expert width, e experts.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from megatron_ring.config.checks import require
from megatron_ring.model.kernels import few_fp8_triton
from megatron_ring.model.kernels.dependent import launch_options
from megatron_ring.model.kernels.dependent_triton import begin
from megatron_ring.model.kernels.fp8 import Fp8Matrix, Weight, widened
from megatron_ring.model.kernels.slots_triton import sort_slots

MOST_SLOTS = 1 << 17  # that one program sorts
MOST_ROWS = 128  # of an expert, that a program has in registers
MOST_FP8_ROWS = 64  # of an expert with weights in FP8
MOST_FP32_ROWS = 32  # which no tensor core multiplies
MOST_TOKENS = 1024  # beyond, products over gathered rows are faster
MOST_FP8_TOKENS = 2048  # in FP8: the products over gathered rows (525 us) want wide weights first, 518 us a layer


class Tile(NamedTuple):
    """Weight rows and columns that a program has at a time, and how deep it reads ahead."""

    rows: int
    columns: int
    stages: int
    warps: int


NARROW_DOWN = Tile(64, 64, 4, 4)
# By the rows of a program (the first: or fewer): the tiles of the first product and of the second, the widest first. Where
# one makes too few programs for a device of this many multiprocessors, the next is taken:
MULTIPROCESSORS = 132
Choices = dict[int, tuple[tuple[Tile, ...], tuple[Tile, ...]]]
# The best, or within 1 % of it, on an H200 (64 experts, 6 a token, hidden 2048, width 1408). Microseconds of both products:
# 256 tokens, 32 rows 189 + 104 (64 rows: 201 + 106); 512 tokens, 64 rows 204 + 108; 1,024 tokens, 128 rows 240 + 128
# (64 rows: 270 + 144). Reading takes 168 + 84. None takes more shared memory than an A100 has for a program, 163 kB.
WIDE_TILES: Choices = {
    32: ((Tile(64, 64, 3, 4),), (Tile(128, 64, 3, 8), NARROW_DOWN)),
    64: ((Tile(64, 64, 4, 4),), (Tile(128, 64, 4, 8), NARROW_DOWN)),
    128: ((Tile(64, 64, 3, 4),), (Tile(256, 64, 3, 8), Tile(128, 64, 4, 8), NARROW_DOWN)),
}
# In FP8 the second product takes as many columns at a time as the first has weight rows. The best such pairs of those
# tried, microseconds of both products, same machine and shape: 32 tokens, 16 rows 132; 128 tokens, 16 rows 145; 256 tokens,
# 32 rows 189 (16 rows: 212, 64 rows: 209); 512 tokens, 64 rows 215; 1,024 tokens, 64 rows 361 (128 rows: 413). Of fewer
# experts narrower tiles make more programs; these have not been timed.
FP8_TILES: Choices = {
    16: ((Tile(128, 128, 3, 4), Tile(64, 128, 3, 4)), (Tile(64, 128, 3, 4),)),
    32: ((Tile(128, 128, 2, 4), Tile(64, 128, 3, 4)), (Tile(64, 128, 3, 4),)),
    64: ((Tile(128, 128, 3, 8), Tile(64, 128, 3, 4)), (Tile(128, 128, 3, 4), Tile(64, 128, 3, 4))),
}
# Activations in one part: 256 tokens, 32 rows 147; 512 and 1,024 tokens, 64 rows 173 and 281. Up to 16 rows not tried.
FP8_ONE_PART_TILES: Choices = {
    16: FP8_TILES[16],
    32: ((Tile(128, 128, 3, 4), Tile(64, 128, 3, 4)), (Tile(256, 128, 3, 4), Tile(64, 128, 3, 4))),
    64: ((Tile(128, 128, 5, 8), Tile(64, 128, 3, 4)), (Tile(128, 128, 3, 4), Tile(64, 128, 3, 4))),
}


@triton.jit
def _few_gate_up(  # type: ignore[no-untyped-def]
    x_ptr, order_ptr, ends_ptr, weights_ptr, w_ptr, out_ptr, hidden, width,
    K: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, DEPTH: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    begin(DEPENDENT)
    expert = tl.program_id(2)
    end = tl.load(ends_ptr + expert)
    start = tl.load(ends_ptr + expert - 1, mask=expert > 0, other=0) + tl.program_id(0) * ROWS
    f = tl.program_id(1) * TILE + tl.arange(0, TILE)
    column = tl.arange(0, DEPTH)
    gate_at = w_ptr + (expert.to(tl.int64) * (2 * width) + f[:, None]) * hidden + column[None, :]
    up_at = gate_at + width.to(tl.int64) * hidden
    for first in range(start, end, ROWS * tl.num_programs(0)):
        row = first + tl.arange(0, ROWS)
        real = row < end
        slot = tl.load(order_ptr + row, mask=real, other=0)
        x_at = x_ptr + (slot // K).to(tl.int64)[None, :] * hidden + column[:, None]
        gate = tl.zeros([TILE, ROWS], tl.float32)
        up = tl.zeros([TILE, ROWS], tl.float32)
        for depth in range(0, hidden, DEPTH):
            inside = column < hidden - depth
            x = tl.load(x_at + depth, mask=real[None, :] & inside[:, None], other=0.0)
            wanted = (f < width)[:, None] & inside[None, :]
            g = tl.load(gate_at + depth, mask=wanted, other=0.0)
            u = tl.load(up_at + depth, mask=wanted, other=0.0)
            gate = tl.dot(g, x, gate, input_precision="ieee")
            up = tl.dot(u, x, up, input_precision="ieee")
        # As in training, where the products are rounded before SwiGLU reads them.
        gate = gate.to(x_ptr.dtype.element_ty).to(tl.float32)
        up = up.to(x_ptr.dtype.element_ty).to(tl.float32)
        weight = tl.load(weights_ptr + slot, mask=real, other=0.0)
        out = gate * tl.sigmoid(gate) * up * weight[None, :]
        out_at = out_ptr + row.to(tl.int64)[None, :] * width + f[:, None]
        tl.store(out_at, out.to(out_ptr.dtype.element_ty), mask=real[None, :] & (f < width)[:, None])


@triton.jit
def _few_down(  # type: ignore[no-untyped-def]
    x_ptr, ends_ptr, w_ptr, out_ptr, hidden, width,
    ROWS: tl.constexpr, TILE: tl.constexpr, DEPTH: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    begin(DEPENDENT)
    expert = tl.program_id(2)
    end = tl.load(ends_ptr + expert)
    start = tl.load(ends_ptr + expert - 1, mask=expert > 0, other=0) + tl.program_id(0) * ROWS
    h = tl.program_id(1) * TILE + tl.arange(0, TILE)
    column = tl.arange(0, DEPTH)
    w_at = w_ptr + (expert.to(tl.int64) * hidden + h[:, None]) * width + column[None, :]
    for first in range(start, end, ROWS * tl.num_programs(0)):
        row = first + tl.arange(0, ROWS)
        real = row < end
        x_at = x_ptr + row.to(tl.int64)[None, :] * width + column[:, None]
        total = tl.zeros([TILE, ROWS], tl.float32)
        for depth in range(0, width, DEPTH):
            inside = column < width - depth
            x = tl.load(x_at + depth, mask=real[None, :] & inside[:, None], other=0.0)
            w = tl.load(w_at + depth, mask=(h < hidden)[:, None] & inside[None, :], other=0.0)
            total = tl.dot(w, x, total, input_precision="ieee")
        out_at = out_ptr + row.to(tl.int64)[None, :] * hidden + h[:, None]
        tl.store(out_at, total.to(out_ptr.dtype.element_ty), mask=real[None, :] & (h < hidden)[:, None])


def check_slots(slots: int) -> None:
    """Raise `UserError` for more token-slots than a program can sort."""
    said = f"{slots} token-slots decode together over all ranks that share experts, above {MOST_SLOTS}"
    require(slots <= MOST_SLOTS, f"{said}: lower --sampling.max-batch")


def sorted_outputs(
    x_th: torch.Tensor, weights_tk: torch.Tensor, experts_tk: torch.Tensor, gate_up_e: Weight, down_e: Weight,
    tiles: tuple[Tile, Tile] | None = None, share: float = 1.0, idle_t: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """weight * expert(x) of each token-slot, sorted by expert, [N, hidden]; and int32 [T, k], where each slot's row is.

    Args:
        x_th: [T, hidden], contiguous; T at least 1.
        weights_tk: fp32 [T, k], contiguous; experts_tk: int64 [T, k], contiguous; those outside 0..E-1 are not computed.
        gate_up_e: [E, 2f, hidden], down_e: [E, hidden, f], contiguous; both in FP8 or none.
            Products in FP8 are of bf16 x; for another they are made wide first.
        share: of the slots that are computed, about; for speed alone.
        idle_t: bool [T], tokens for which nothing is computed, as if none of their experts were here.
    """
    num_experts, hidden, width = down_e.shape
    narrow = isinstance(down_e, Fp8Matrix) and x_th.dtype is torch.bfloat16
    split = few_fp8_triton.room_for(x_th, down_e.parts) if isinstance(down_e, Fp8Matrix) and narrow else None
    order, back, ends = sort_slots(experts_tk, num_experts, idle_t, split)
    most = MOST_FP32_ROWS if x_th.itemsize == 4 else MOST_FP8_ROWS if narrow else MOST_ROWS
    rows, beside = program_rows(share * order.numel() / num_experts, most, narrow)
    up, down = tiles or usual_tiles(rows, num_experts, hidden, width, 0 if split is None else split.parts.shape[1])
    if split is not None and isinstance(gate_up_e, Fp8Matrix) and isinstance(down_e, Fp8Matrix):
        given = (split, weights_tk, order, ends, gate_up_e, down_e, rows, beside, up, down)
        return few_fp8_triton.products(*given), back
    gate_up_e, down_e = widened(gate_up_e, x_th.dtype), widened(down_e, x_th.dtype)
    return products(x_th, weights_tk, order, ends, gate_up_e, down_e, rows, beside, up, down), back


def products(
    x_th: torch.Tensor, weights_tk: torch.Tensor, order: torch.Tensor, ends: torch.Tensor, gate_up_e: torch.Tensor,
    down_e: torch.Tensor, rows: int, beside: int, up: Tile, down: Tile,
) -> torch.Tensor:  # fmt: skip
    """What `sorted_outputs` returns first, of slots that `sort_slots` has sorted, in programs of so many rows."""
    num_experts, hidden, width = down_e.shape
    act_nf, y_nh = x_th.new_empty(order.numel(), width), x_th.new_empty(order.numel(), hidden)
    up_grid, down_grid = (
        (beside, triton.cdiv(size, tile.rows), num_experts) for size, tile in ((width, up), (hidden, down))
    )
    _few_gate_up[up_grid](
        x_th, order, ends, weights_tk, gate_up_e, act_nf, hidden, width, K=weights_tk.shape[1], ROWS=rows, TILE=up.rows,
        DEPTH=up.columns, num_stages=up.stages, num_warps=up.warps, **launch_options(),
    )  # fmt: skip
    _few_down[down_grid](
        act_nf, ends, down_e, y_nh, hidden, width, ROWS=rows, TILE=down.rows, DEPTH=down.columns,
        num_stages=down.stages, num_warps=down.warps, **launch_options(),
    )  # fmt: skip
    return y_nh


def program_rows(mean: float, most: int = MOST_ROWS, narrow: bool = False) -> tuple[int, int]:
    """Rows of a program, for experts that have so many in the mean; and programs beside each other. These have room for half
    as many rows again; an expert with more takes several rounds. With 12 rows one program with 32 takes 258 us and two with
    16 take 263; in FP8 it is the other way."""
    rows = max(16, min(most, triton.next_power_of_2(math.ceil(mean))))
    if rows == 16 and 1.5 * mean > 16 and not narrow:
        rows = min(most, 32)
    return rows, triton.cdiv(math.ceil(1.5 * mean), rows)


def usual_tiles(rows: int, num_experts: int, hidden: int, width: int, parts: int) -> tuple[Tile, Tile]:
    """Of the two products in programs of so many rows, with weights as the tokens are (0) or in FP8 (`parts` of a token)."""

    def first_enough(tiles: tuple[Tile, ...], size: int) -> Tile:
        enough = (tile for tile in tiles if triton.cdiv(size, tile.rows) * num_experts >= MULTIPROCESSORS)
        return next(enough, tiles[-1])

    choices = (WIDE_TILES, FP8_ONE_PART_TILES, FP8_TILES)[parts]
    ups, downs = choices[max(min(choices), rows)]
    up, down = first_enough(ups, width), first_enough(downs, hidden)
    return up, down._replace(columns=up.rows) if parts else down
