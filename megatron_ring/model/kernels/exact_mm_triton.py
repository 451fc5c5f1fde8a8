"""Products whose every element is summed in one order, whatever the other rows: for one matrix, or one for each expert.

cuBLAS chooses its kernel, and with it the order of the sums, by the number of rows; a token's result then depends on its
batch. Here an element is always the sum over `k`, from 0 upwards, of tensor-core products 16 deep, in fp32: tiles differ in
how many rows and columns one program takes, never in how a column of the sum is made (`tests/gpu/test_exact_gpu.py` holds
every pair of tiles to equal bits). No split of k, no atomics, no choice that depends on the data.

Suffixes: n rows, o columns of the result, k what is summed over, e experts.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from megatron_ring.parallel.device import multiprocessors

SUPER = 8  # tiles of rows that programs side by side share a column tile's weights over


class Tile(NamedTuple):
    """What a program takes at a time, how many warps it has, stages of its pipeline, programs of one multiprocessor."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    programs: int


WIDE = Tile(128, 256, 64, warps=8, stages=3, programs=1)  # many rows: bound by tensor cores
NARROW = Tile(64, 128, 64, warps=4, stages=4, programs=2)  # few rows of a large matrix: bound by reading weights
THIN = Tile(64, 32, 128, warps=4, stages=4, programs=2)  # few rows of a small one, over as many programs as can be
TILES = (WIDE, NARROW, THIN)
SHARED = 232_448  # bytes of shared memory that a program may have on Hopper
# Of an H100, for the choice between tiles: ns that a multiprocessor takes to read a 16-bit number and to multiply two.
MULTIPROCESSORS, READ, MULTIPLY = 132, 2e-2, 4e-4


def fits(tile: Tile, itemsize: int) -> bool:
    """Whether shared memory holds the pipeline of bf16 factors and a tile of results of `itemsize` bytes."""
    factors = 2 * tile.stages * (tile.rows + tile.columns) * tile.depth
    return factors + tile.rows * tile.columns * itemsize <= SHARED


def tile_for(rows: int, columns: int, experts: int, itemsize: int) -> Tile:
    """The fastest tile that fits, by an estimate. Sizes are known on the host: nothing waits for the device."""

    def time(tile: Tile) -> float:
        tiles = experts * triton.cdiv(triton.cdiv(rows, experts), tile.rows) * triton.cdiv(columns, tile.columns)
        each = max((tile.rows + tile.columns) * READ, tile.rows * tile.columns * MULTIPLY)
        return triton.cdiv(tiles, MULTIPROCESSORS) * each

    return min((tile for tile in TILES if fits(tile, itemsize)), key=time)


@triton.jit(do_not_specialize=["rows"])
def _exact_mm(  # type: ignore[no-untyped-def]
    x_desc, w_desc, ends_ptr, bias_ptr, out_ptr, rows, columns, depth,
    EXPERTS: tl.constexpr, E_BLOCK: tl.constexpr, BIAS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr, SUPER: tl.constexpr,
):  # fmt: skip
    """EXPERTS 0: one matrix. A tile of rows begins at an expert's first row, and reads on into the next one's: those rows
    are not stored."""
    expert = tl.arange(0, E_BLOCK)
    if EXPERTS > 0:
        real = expert < EXPERTS
        start = tl.load(ends_ptr + expert - 1, mask=real & (expert > 0), other=0)
        end = tl.load(ends_ptr + expert, mask=real, other=0)
        tiles_e = tl.where(real, (end - start + ROWS - 1) // ROWS, 0)
        last_e = tl.cumsum(tiles_e, 0)
        tiles_n = tl.sum(tiles_e, 0)
    else:
        tiles_n = tl.cdiv(rows, ROWS)
    tiles_o = tl.cdiv(columns, COLUMNS)
    for tile in tl.range(tl.program_id(0), tiles_n * tiles_o, tl.num_programs(0), flatten=True):
        # Neighbours take the same columns of SUPER tiles of rows, then the next columns.
        first = tile // (SUPER * tiles_o) * SUPER
        here = min(tiles_n - first, SUPER)
        within = tile % (SUPER * tiles_o)
        row_tile, column = first + within % here, within // here * COLUMNS
        if EXPERTS > 0:
            passed = last_e <= row_tile
            which = tl.sum(passed.to(tl.int32), 0)
            before = tl.max(tl.where(passed, last_e, 0), 0)
            row = tl.sum(tl.where(expert == which, start, 0), 0) + (row_tile - before) * ROWS
            row_end = tl.sum(tl.where(expert == which, end, 0), 0)
            weight_row = which * columns + column
        else:
            row, row_end, weight_row = row_tile * ROWS, rows, column
        total = tl.zeros([ROWS, COLUMNS], tl.float32)
        for k in range(0, depth, DEPTH):
            x = x_desc.load([row, k])
            w = w_desc.load([weight_row, k])
            total = tl.dot(x, w.T, total, input_precision="ieee")
        row_n, column_o = row + tl.arange(0, ROWS), column + tl.arange(0, COLUMNS)
        inside = column_o < columns
        if BIAS:
            total += tl.load(bias_ptr + column_o, mask=inside, other=0.0).to(tl.float32)[None, :]
        at = out_ptr + row_n[:, None].to(tl.int64) * columns + column_o[None, :]
        tl.store(at, total.to(out_ptr.dtype.element_ty), mask=(row_n < row_end)[:, None] & inside[None, :])


def exact_mm(
    x_nk: torch.Tensor, weight_ok: torch.Tensor, bias_o: torch.Tensor | None = None, out_dtype: torch.dtype | None = None,
    tile: Tile | None = None,
) -> torch.Tensor:  # fmt: skip
    """x @ weight^T + bias -> [N, O] in `out_dtype` (None: x's); sums in fp32. K is a multiple of 8."""
    return _launch(x_nk, weight_ok[None], None, bias_o, out_dtype, tile)


def exact_grouped_mm(
    x_nk: torch.Tensor, weight_eok: torch.Tensor, ends_e: torch.Tensor, tile: Tile | None = None
) -> torch.Tensor:
    """Each expert's rows times its weight^T -> [N, O] in x's dtype; `ends_e` int32 [E] tells where each one's rows end. What
    lies behind the last one's is left as it is found."""
    return _launch(x_nk, weight_eok, ends_e, None, None, tile)


def _launch(
    x_nk: torch.Tensor, weight_eok: torch.Tensor, ends_e: torch.Tensor | None, bias_o: torch.Tensor | None,
    out_dtype: torch.dtype | None, tile: Tile | None,
) -> torch.Tensor:  # fmt: skip
    experts, columns, depth = weight_eok.shape
    x_nk, weight_rk = x_nk.contiguous(), weight_eok.contiguous().view(-1, depth)
    rows = x_nk.shape[0]
    out = x_nk.new_empty(rows, columns, dtype=out_dtype or x_nk.dtype)
    if rows == 0:
        return out
    tile = tile or tile_for(rows, columns, experts, out.itemsize)
    most = (triton.cdiv(rows, tile.rows) + (experts if ends_e is not None else 0)) * triton.cdiv(columns, tile.columns)
    programs = min(most, multiprocessors(x_nk.device) * tile.programs)
    arguments: Any = (
        TensorDescriptor.from_tensor(x_nk, [tile.rows, tile.depth]),
        TensorDescriptor.from_tensor(weight_rk, [tile.columns, tile.depth]),
        out if ends_e is None else ends_e, out if bias_o is None else bias_o, out, rows, columns, depth,
    )  # fmt: skip
    _exact_mm[(programs,)](
        *arguments, EXPERTS=0 if ends_e is None else experts, E_BLOCK=triton.next_power_of_2(experts),
        BIAS=bias_o is not None, ROWS=tile.rows, COLUMNS=tile.columns, DEPTH=tile.depth, SUPER=SUPER,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return out
