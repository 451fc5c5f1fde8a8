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
from functools import cache
from typing import NamedTuple

import torch
import triton

from megatron_ring.config.checks import require
from megatron_ring.model.kernels import few_fp8_triton, few_plain_triton
from megatron_ring.model.kernels.fp8 import Fp8Matrix, Weight, widened
from megatron_ring.model.kernels.slots_triton import Slots, sort_slots
from megatron_ring.parallel.device import program_memory

MOST_SLOTS = 1 << 17  # that one program sorts
MOST_ROWS = 128  # of an expert, that a program has in registers
MOST_FP8_ROWS = 64  # of an expert with weights in FP8
MOST_FP32_ROWS = 32  # which no tensor core multiplies
MOST_TOKENS = 1024  # beyond, products over gathered rows are faster
MOST_FP8_TOKENS = 2048  # in FP8: the products over gathered rows (525 us) want wide weights first, 518 us a layer
# Rows of a program for experts with up to so many in the mean. Milliseconds of a pass with 16 rows and with 32: 48 tokens
# (4.5 in the mean) 8.51 and 8.58, 64 tokens 8.96 and 8.85, 96 tokens 9.89 and 9.41: a random model's router gives some
# experts twice as many. Microseconds of both products: 576 tokens, 96 rows 312 (64: 316); 768, 96 rows 325 (128: 336).
PLAIN_ROWS = {16: 5.6, 32: 32.0, 64: 50.0, 96: 86.0}


class Tile(NamedTuple):
    """Weight rows and columns that a program has at a time, and how deep it reads ahead."""

    rows: int
    columns: int
    stages: int
    warps: int


NARROW_DOWN = Tile(64, 64, 4, 4)
# By the rows of a program (the first: or fewer): the tiles of the first product and of the second, the widest first. Where
# one has no room in shared memory, or makes too few programs for a device of this many multiprocessors, the next is taken:
MULTIPROCESSORS = 132
Choices = dict[int, tuple[tuple[Tile, ...], tuple[Tile, ...]]]
# The best, or within 1 % of it, on an H200 (64 experts, 6 a token, hidden 2048, width 1408). Microseconds of both products,
# with the sorting: 64, 128 and 256 tokens, 32 rows 255, 259, 263; 512 tokens, 64 rows 280; 640, 768 and 896 tokens, 96 rows
# 293, 304, 326; 1,024 tokens, 128 rows 348. Reading takes 252. Where the first of several takes more than the 163 kB of an
# A100, the next takes 1 % longer.
WIDE_TILES: Choices = {
    32: ((Tile(64, 64, 3, 4),), (Tile(128, 64, 3, 8), NARROW_DOWN)),
    64: ((Tile(64, 64, 4, 4),), (Tile(128, 64, 4, 8), NARROW_DOWN)),
    96: (
        (Tile(64, 64, 4, 4), Tile(64, 64, 3, 4)),
        (Tile(256, 64, 4, 8), Tile(256, 64, 3, 8), Tile(128, 64, 4, 8), NARROW_DOWN),
    ),
    128: ((Tile(128, 64, 4, 8), Tile(64, 64, 3, 4)), (Tile(128, 64, 3, 4), NARROW_DOWN)),
}
# Of shared experts, for up to 64 tokens and for more.
SHARED_TILES = ((Tile(32, 128, 3, 4), Tile(32, 128, 4, 4)), (Tile(64, 64, 3, 4), Tile(64, 64, 4, 4)))
MOST_SHARED = 256  # tokens; of more a library's products are as fast
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
    slots = sort_slots(experts_tk, num_experts, idle_t, split)
    most = MOST_FP32_ROWS if x_th.itemsize == 4 else MOST_FP8_ROWS if narrow else MOST_ROWS
    rows, beside = program_rows(share * slots.order.numel() / num_experts, most, narrow)
    sizes = (0, x_th.itemsize) if split is None else (split.parts.shape[1], 1)
    up, down = tiles or usual_tiles(rows, num_experts, hidden, width, *sizes, program_memory(x_th.device))
    if split is not None and isinstance(gate_up_e, Fp8Matrix) and isinstance(down_e, Fp8Matrix):
        given = (split, weights_tk, slots, gate_up_e, down_e, rows, beside, up, down)
        return few_fp8_triton.products(*given), slots.back
    gate_up_e, down_e = widened(gate_up_e, x_th.dtype), widened(down_e, x_th.dtype)
    return few_plain_triton.products(x_th, weights_tk, slots, gate_up_e, down_e, rows, beside, up, down), slots.back


def one_expert(x_th: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """An expert that all tokens go to, [T, hidden] of contiguous x_th, without gradients; gate_up [2f, hidden], down
    [hidden, f]. Beside other kernels it takes little of a multiprocessor, where a library's product wants all of it and
    waits until it is free."""
    tokens = x_th.shape[0]
    rows = max(16, min(MOST_ROWS, triton.next_power_of_2(tokens)))
    up, down_tile = SHARED_TILES[rows > 64]
    weights, slots = _every(tokens, x_th.device)
    programs = (rows, triton.cdiv(tokens, rows), up, down_tile)
    return few_plain_triton.products(x_th, weights, slots, gate_up[None], down[None], *programs)


@cache
def _every(tokens: int, device: torch.device) -> tuple[torch.Tensor, Slots]:
    """The weights and slots of tokens that all go to one expert. Kept: a graph reads them again."""
    order = torch.arange(tokens, dtype=torch.int32, device=device)
    ends = torch.full((1,), tokens, dtype=torch.int32, device=device)
    return torch.ones(tokens, 1, device=device), Slots(order, order[:, None], ends, None)


def program_rows(mean: float, most: int = MOST_ROWS, narrow: bool = False) -> tuple[int, int]:
    """Rows of a program, for experts that have so many in the mean; and programs beside each other. These have room for half
    as many rows again; an expert with more takes several rounds."""
    if narrow:
        rows = max(16, triton.next_power_of_2(math.ceil(mean)))
    else:
        rows = next((rows for rows, highest in PLAIN_ROWS.items() if mean <= highest), MOST_ROWS)
    rows = min(most, rows)
    return rows, triton.cdiv(math.ceil(1.5 * mean), rows)


def usual_tiles(
    rows: int, num_experts: int, hidden: int, width: int, parts: int, itemsize: int = 2, room: int | None = None
) -> tuple[Tile, Tile]:
    """Of the two products in programs of so many rows, with weights as the tokens are (0) or in FP8 (`parts` of a token), of
    `itemsize` bytes, on a device whose programs have `room` bytes of shared memory (None: any)."""

    def first(tiles: tuple[Tile, ...], size: int, matrices: int) -> Tile:
        def fits(tile: Tile) -> bool:
            at_a_time = itemsize * tile.columns * (matrices * tile.rows + max(1, parts) * rows)
            return room is None or tile.stages * at_a_time <= room

        fitting = [tile for tile in tiles if fits(tile)] or [tiles[-1]]
        enough = (tile for tile in fitting if triton.cdiv(size, tile.rows) * num_experts >= MULTIPROCESSORS)
        return next(enough, fitting[-1])

    choices = (WIDE_TILES, FP8_ONE_PART_TILES, FP8_TILES)[parts]
    ups, downs = choices[max(min(choices), rows)]
    up = first(ups, width, 2)
    return up, first(tuple(down._replace(columns=up.rows) for down in downs) if parts else downs, hidden, 1)
