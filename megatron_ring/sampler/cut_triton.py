"""Where top-k, top-p and min-p cut a row of logits, on the device and without sorting: all three keep what is not below
some logit, and that is found by bisection over the bit patterns of floating-point numbers, which are in the order of their
values. Each row has cuts of its own, or none.

Suffixes: n sequences, v vocabulary.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from megatron_ring.sampler.row_settings import RowSettings

TILE, WARPS = 16384, 32


@triton.jit
def _rank(x, SHIFT: tl.constexpr):  # type: ignore[no-untyped-def]
    """int32 in the order of fp32 `x`, less its lowest SHIFT bits."""
    bits = x.to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)) >> SHIFT


@triton.jit
def _halfway(low, high):  # type: ignore[no-untyped-def]
    """floor((low + high) / 2), of which the sum may not fit into int32."""
    return (low & high) + ((low ^ high) >> 1)


@triton.jit
def _find_least_kept(  # type: ignore[no-untyped-def]
    logits_ptr, out_ptr, width, inverse_temperature_ptr, top_k_ptr, top_p_ptr, below_highest_ptr,
    SHIFT: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """fp32 [N], minus infinity for a row without cuts, whose logits are not read. Each loop keeps `low`, which leaves
    enough, and `high`, which does not. Sums are by column of a tile and added up once a pass: a thread that had to wait for
    the others after each tile would take several times as long."""
    row = tl.program_id(0)
    logits_ptr += row.to(tl.int64) * width
    inverse_temperature = tl.load(inverse_temperature_ptr + row).to(tl.float32)
    top_k = tl.load(top_k_ptr + row).to(tl.int32)
    top_p = tl.load(top_p_ptr + row).to(tl.float32)
    below_highest = tl.load(below_highest_ptr + row).to(tl.float32)
    cuts_k = (top_k > 0) & (top_k < width)
    cuts_p = top_p < 1.0
    end = tl.where(cuts_k | cuts_p | (below_highest < float("inf")), width, 0)
    columns = tl.arange(0, TILE)
    highest_c = tl.full((TILE,), -1e37, tl.float32)
    for start in range(0, end, TILE):
        x = tl.load(logits_ptr + start + columns, mask=start + columns < width, other=-1e37).to(tl.float32)
        highest_c = tl.maximum(highest_c, x)
    highest = tl.max(highest_c, 0)
    top = _rank(highest, SHIFT) + 1
    low = tl.full((), -2139095041, tl.int32) >> SHIFT  # of minus infinity
    if cuts_k:
        high = top
        for _ in range(33 - SHIFT):
            middle = _halfway(low, high)
            count_c = tl.zeros((TILE,), tl.int32)
            for start in range(0, width, TILE):
                inside = start + columns < width
                x = tl.load(logits_ptr + start + columns, mask=inside, other=-1e37).to(tl.float32)
                count_c += (inside & (_rank(x, SHIFT) >= middle)).to(tl.int32)
            count = tl.sum(count_c, 0)
            low = tl.where(count >= top_k, middle, low)
            high = tl.where(count >= top_k, high, middle)
    if cuts_p:
        high = top
        wanted = tl.full((), 0.0, tl.float64)  # less than any sum: the first round leaves all that top-k kept
        for turn in range(34 - SHIFT):
            middle = tl.where(turn == 0, low, _halfway(low, high))
            mass_c = tl.zeros((TILE,), tl.float32)
            for start in range(0, width, TILE):
                inside = start + columns < width
                x = tl.load(logits_ptr + start + columns, mask=inside, other=-1e37).to(tl.float32)
                kept = inside & (_rank(x, SHIFT) >= middle)
                mass_c += tl.where(kept, tl.exp((x - highest) * inverse_temperature), 0.0)
            mass = tl.sum(mass_c.to(tl.float64), 0)
            wanted = tl.where(turn == 0, top_p * mass, wanted)
            low = tl.where(mass >= wanted, middle, low)
            high = tl.where(mass >= wanted, high, middle)
    rank = (low << SHIFT) | ((1 << SHIFT) - 1)  # negative numbers have their lowest bits inverted
    rank = tl.where(low >= 0, low << SHIFT, rank)
    least = (rank ^ ((rank >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
    tl.store(out_ptr + row, tl.maximum(least, highest - below_highest))


def least_kept(logits_nv: torch.Tensor, rows: RowSettings) -> torch.Tensor:
    """fp32 [N]: of each row of logits [N, V] (fp32 or bf16, contiguous) the smallest one that is kept, as
    `sampling.processed` defines it; of a greedy row the highest one; minus infinity where all are kept."""
    count, width = logits_nv.shape
    out = torch.empty(count, dtype=torch.float32, device=logits_nv.device)
    _find_least_kept[(count,)](
        logits_nv, out, width, rows.inverse_temperature, rows.top_k, rows.top_p, rows.below_highest,
        SHIFT=16 if logits_nv.dtype == torch.bfloat16 else 0, TILE=TILE, num_warps=WARPS,
    )  # fmt: skip
    return out
