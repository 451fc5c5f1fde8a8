"""Products of rows sorted by expert with each expert's matrix: one persistent kernel on tensor memory access (Hopper), whose
programs take tiles in turn, so that one tile's result is written while the next one's factors come; optionally with SwiGLU
behind the product, which spares a pass over its result.

Suffixes: n rows, a inner dimension, b outer dimension, e experts, f expert width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from megatron_ring.parallel.device import multiprocessors


@dataclass(frozen=True)
class Tile:
    """Rows, columns and depth of a tile, loads under way, warps; `flatten`: begin the next tile's loads before the last
    one's result is written."""

    rows: int = 128
    columns: int = 256
    depth: int = 64
    stages: int = 3
    warps: int = 8
    flatten: bool = True


WIDE, NARROW = Tile(stages=4), Tile(columns=128, stages=4)
WITH_SWIGLU = NARROW  # columns of the gates, and as many of the ups


@triton.jit
def _grouped_tiles(  # type: ignore[no-untyped-def]
    ends_ptr, table_ptr, room, E: tl.constexpr, E_BLOCK: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    """Of each tile of rows its expert, first row, and the expert's end: int32 [3, room], and behind that their number."""
    number = tl.arange(0, E_BLOCK)
    end = tl.load(ends_ptr + number, mask=number < E, other=0)
    start = tl.load(ends_ptr + number - 1, mask=(number < E) & (number > 0), other=0)
    tiles = tl.where(number < E, (end - start + ROWS - 1) // ROWS, 0)
    upto = tl.cumsum(tiles, axis=0)
    tl.store(table_ptr + 3 * room, tl.sum(tiles, axis=0))
    tile = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    expert = tl.sum((upto[None, :] <= tile[:, None]).to(tl.int32), axis=1)
    mine = expert[:, None] == number[None, :]
    first = tl.sum(tl.where(mine, (start - (upto - tiles) * ROWS)[None, :], 0), axis=1) + tile * ROWS
    tl.store(table_ptr + tile, expert, mask=tile < room)
    tl.store(table_ptr + room + tile, first, mask=tile < room)
    tl.store(table_ptr + 2 * room + tile, tl.sum(tl.where(mine, end[None, :], 0), axis=1), mask=tile < room)


@triton.jit
def _grouped_product(  # type: ignore[no-untyped-def]
    x_desc, w_desc, out_ptr, table_ptr, room, inner, width,
    TRANSPOSED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, PROGRAMS: tl.constexpr,
    FLATTEN: tl.constexpr,
):  # fmt: skip
    across = tl.cdiv(width, COLUMNS)
    total = tl.load(table_ptr + 3 * room) * across
    steps = tl.cdiv(inner, DEPTH)
    written = tl.program_id(0) - PROGRAMS
    for tile in tl.range(tl.program_id(0), total, PROGRAMS, flatten=FLATTEN):
        expert, row = tl.load(table_ptr + tile // across), tl.load(table_ptr + room + tile // across)
        column = (tile % across) * COLUMNS
        total_mn = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
        for step in range(steps):
            x = x_desc.load([row, step * DEPTH])
            if TRANSPOSED:
                w = w_desc.load([expert * width + column, step * DEPTH]).T
            else:
                w = w_desc.load([expert * inner + step * DEPTH, column])
            total_mn = tl.dot(x, w, total_mn)
        written += PROGRAMS  # found anew, so that loads for later tiles do not have to keep it
        row_tile = table_ptr + room + written // across
        row, end = tl.load(row_tile), tl.load(row_tile + room)
        column = (written % across) * COLUMNS
        rows, columns = row + tl.arange(0, ROWS), column + tl.arange(0, COLUMNS)
        at = out_ptr + rows[:, None].to(tl.int64) * width + columns[None, :]
        mask = (rows < end)[:, None] & (columns < width)[None, :]
        tl.store(at, total_mn.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _grouped_swiglu(  # type: ignore[no-untyped-def]
    x_desc, w_desc, both_ptr, out_ptr, weights_ptr, table_ptr, room, inner, width,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, PROGRAMS: tl.constexpr, FLATTEN: tl.constexpr,
):  # fmt: skip
    """Each tile has the same columns of the gates and of the ups."""
    across = tl.cdiv(width, COLUMNS)
    total = tl.load(table_ptr + 3 * room) * across
    steps = tl.cdiv(inner, DEPTH)
    written = tl.program_id(0) - PROGRAMS
    for tile in tl.range(tl.program_id(0), total, PROGRAMS, flatten=FLATTEN):
        expert, row = tl.load(table_ptr + tile // across), tl.load(table_ptr + room + tile // across)
        column = (tile % across) * COLUMNS
        both = tl.zeros((ROWS, 2 * COLUMNS), dtype=tl.float32)
        for step in range(steps):
            x = x_desc.load([row, step * DEPTH])
            w = w_desc.load([2 * expert, column, step * DEPTH]).reshape(2 * COLUMNS, DEPTH)
            both = tl.dot(x, w.T, both)
        written += PROGRAMS
        row_tile = table_ptr + room + written // across
        row, end = tl.load(row_tile), tl.load(row_tile + room)
        column = (written % across) * COLUMNS
        rows = row + tl.arange(0, ROWS)
        weight = tl.load(weights_ptr + rows, mask=rows < end, other=0.0)
        gates, ups = tl.split(tl.permute(tl.reshape(both, (ROWS, 2, COLUMNS)), (0, 2, 1)))
        gate, up = gates.to(out_ptr.dtype.element_ty), ups.to(out_ptr.dtype.element_ty)
        exact = gate.to(tl.float32)
        out = (exact * tl.sigmoid(exact) * up.to(tl.float32) * weight[:, None]).to(out_ptr.dtype.element_ty)
        columns = column + tl.arange(0, COLUMNS)
        mask = (rows < end)[:, None] & (columns < width)[None, :]
        at = both_ptr + rows[:, None].to(tl.int64) * (2 * width) + columns[None, :]
        tl.store(at, gate, mask=mask)
        tl.store(at + width, up, mask=mask)
        tl.store(out_ptr + rows[:, None].to(tl.int64) * width + columns[None, :], out, mask=mask)


def product(
    x_na: torch.Tensor, weight_e: torch.Tensor, ends_e: torch.Tensor, transposed: bool, tile: Tile | None = None
) -> torch.Tensor:
    """Each expert's rows times its matrix: weight [E, b, a] if `transposed`, else [E, a, b] -> [N, b].

    Args:
        x_na: [N, a], in 16 bit; a and b are multiples of 8, and a of the tile's depth unless `transposed`.
        ends_e: int32 [E], where each expert's rows end, the last at N.
        tile: default: the widest that b fills.
    """
    rows, inner = x_na.shape
    width = weight_e.shape[1 if transposed else 2]
    if tile is None:
        tile = NARROW if width % WIDE.columns else WIDE
    out = x_na.new_empty(rows, width)
    if rows:
        w_block = [tile.columns, tile.depth] if transposed else [tile.depth, tile.columns]
        _grouped_product[(multiprocessors(x_na.device),)](
            TensorDescriptor.from_tensor(x_na.contiguous(), [tile.rows, tile.depth]),
            TensorDescriptor.from_tensor(weight_e.flatten(0, 1), w_block),
            out, *_table(ends_e, rows, tile), inner, width, TRANSPOSED=transposed, **_sizes(x_na.device, tile),
        )  # fmt: skip
    return out


def product_and_swiglu(
    x_na: torch.Tensor, gate_up_e: torch.Tensor, ends_e: torch.Tensor, weights_n: torch.Tensor, tile: Tile = WITH_SWIGLU
) -> tuple[torch.Tensor, torch.Tensor]:
    """(gates and ups [N, 2f], weight * silu(gate) * up [N, f]) of rows and weights [E, 2f, a] as in `product`; row weights
    fp32 [N]."""
    (rows, inner), both_width = x_na.shape, gate_up_e.shape[1]
    both, out = x_na.new_empty(rows, both_width), x_na.new_empty(rows, both_width // 2)
    if rows:
        _grouped_swiglu[(multiprocessors(x_na.device),)](
            TensorDescriptor.from_tensor(x_na.contiguous(), [tile.rows, tile.depth]),
            TensorDescriptor.from_tensor(gate_up_e.view(-1, both_width // 2, inner), [2, tile.columns, tile.depth]),
            both, out, weights_n, *_table(ends_e, rows, tile), inner, both_width // 2, **_sizes(x_na.device, tile),
        )  # fmt: skip
    return both, out


def _table(ends_e: torch.Tensor, rows: int, tile: Tile) -> tuple[torch.Tensor, int]:
    experts = ends_e.numel()
    room = rows // tile.rows + experts  # an expert's last tile may be a part of one
    table = torch.empty(3 * room + 1, dtype=torch.int32, device=ends_e.device)
    _grouped_tiles[(triton.cdiv(room, 128),)](
        ends_e, table, room, E=experts, E_BLOCK=triton.next_power_of_2(experts), ROWS=tile.rows, BLOCK=128
    )
    return table, room


def _sizes(device: torch.device, tile: Tile) -> dict[str, Any]:
    return {
        "ROWS": tile.rows, "COLUMNS": tile.columns, "DEPTH": tile.depth, "PROGRAMS": multiprocessors(device),
        "FLATTEN": tile.flatten, "num_stages": tile.stages, "num_warps": tile.warps,
    }  # fmt: skip
