"""Drawing from softmax(logits / temperature), or what is kept of it, on the device: one pass over the logits, then one tile
of each row.

Inversion of the distribution function at splitmix64's number of (seed, position), as `sampling.draw_tokens` has it, and
log-probability and entropy from the same pass. A row's result does not depend on the others, nor on whether they are cut.

Suffixes: n sequences, v vocabulary.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from megatron_ring.sampler.row_settings import RowSettings

TILE = 4096


@triton.jit
def _draw_tile_statistics(  # type: ignore[no-untyped-def]
    logits_ptr, least_ptr, out_ptr, inverse_temperature_ptr, width, tiles, CUT: tl.constexpr, TILE: tl.constexpr
):
    """Of each tile: maximum m, sum of exp(x - m), sum of exp(x - m) (x - m), of the kept ones sum of exp(x - m); fp32
    [3 or 4, N, tiles]."""
    row, tile = tl.program_id(0), tl.program_id(1)
    column = tile * TILE + tl.arange(0, TILE)
    inside = column < width
    logits = tl.load(logits_ptr + row.to(tl.int64) * width + column, mask=inside, other=-1e37).to(tl.float32)
    x = logits * tl.load(inverse_temperature_ptr + row).to(tl.float32)
    highest = tl.max(x, 0)
    x = x - highest
    p = tl.where(inside, tl.exp(x), 0.0)
    at = row * tiles + tile
    plane = tl.num_programs(0) * tiles
    tl.store(out_ptr + at, highest)
    tl.store(out_ptr + plane + at, tl.sum(p, 0))
    tl.store(out_ptr + 2 * plane + at, tl.sum(tl.where(p > 0.0, p * x, 0.0), 0))
    if CUT:
        tl.store(out_ptr + 3 * plane + at, tl.sum(tl.where(logits >= tl.load(least_ptr + row), p, 0.0), 0))


@triton.jit
def _mix(x, shift: tl.constexpr):  # type: ignore[no-untyped-def]
    return x ^ (x >> shift)


@triton.jit
def _draw_token(  # type: ignore[no-untyped-def]
    logits_ptr, least_ptr, statistics_ptr, seeds_ptr, positions_ptr, out_ptr, inverse_temperature_ptr, greedy_ptr, width,
    tiles, CUT: tl.constexpr, TILE: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """fp64 [4, N]: token, its log-probability, that among the kept ones, entropy. Of a greedy row the highest logits are
    kept: its token is the first of them, as certain."""
    row = tl.program_id(0)
    rows = tl.num_programs(0)
    x = tl.load(seeds_ptr + row).to(tl.uint64, bitcast=True)
    x += (tl.load(positions_ptr + row) + 1).to(tl.uint64, bitcast=True) * 0x9E3779B97F4A7C15
    x = _mix(x, 30) * 0xBF58476D1CE4E5B9
    x = _mix(x, 27) * 0x94D049BB133111EB
    x = _mix(x, 31)
    uniform = (x >> 11).to(tl.int64).to(tl.float64) * 1.1102230246251565e-16

    tile = tl.arange(0, TILES)
    at = statistics_ptr + row * tiles + tile
    plane = rows * tiles
    maxima = tl.load(at, mask=tile < tiles, other=-1e37)
    sums = tl.load(at + plane, mask=tile < tiles, other=0.0)
    weighted = tl.load(at + 2 * plane, mask=tile < tiles, other=0.0)
    highest = tl.max(maxima, 0)
    shift = maxima - highest
    shrink = tl.where(sums > 0.0, tl.exp(shift), 0.0)
    mass = (sums * shrink).to(tl.float64)
    total = tl.sum(mass, 0)
    log_total = tl.log(total.to(tl.float32))
    mean = tl.sum(tl.where(shrink > 0.0, shrink * (weighted + shift * sums), 0.0), 0) / total.to(tl.float32)

    kept_total = total
    if CUT:  # from here on only the kept ones have any mass
        greedy = tl.load(greedy_ptr + row) > 0.0
        uniform = tl.where(greedy, 0.0, uniform)
        mass = (tl.load(at + 3 * plane, mask=tile < tiles, other=0.0) * shrink).to(tl.float64)
        kept_total = tl.sum(mass, 0)
    target = uniform * kept_total
    through = tl.cumsum(mass, 0)
    last = tl.max(tl.where(mass > 0.0, tile, 0), 0)
    chosen = tl.minimum(tl.sum((through <= target).to(tl.int32), 0), last)
    before = tl.sum(tl.where(tile < chosen, mass, 0.0), 0)
    column = chosen * TILE + tl.arange(0, TILE)
    raw = tl.load(logits_ptr + row.to(tl.int64) * width + column, mask=column < width, other=-1e37).to(tl.float32)
    logits = raw * tl.load(inverse_temperature_ptr + row).to(tl.float32) - highest
    p = tl.where(column < width, tl.exp(logits), 0.0)
    if CUT:
        p = tl.where(raw >= tl.load(least_ptr + row), p, 0.0)
    inside = before + tl.cumsum(p.to(tl.float64), 0)
    # Rounding may carry the target beyond the tile's end: stay on its last token with any probability.
    furthest = tl.max(tl.where(p > 0.0, tl.arange(0, TILE), 0), 0)
    offset = tl.minimum(tl.sum(((inside <= target) & (column < width)).to(tl.int32), 0), furthest)
    here = tl.arange(0, TILE) == offset
    logit = tl.sum(tl.where(here, logits, 0.0), 0)
    tl.store(out_ptr + row, (chosen * TILE + offset).to(tl.float64))
    tl.store(out_ptr + rows + row, (logit - log_total).to(tl.float64))
    kept_logprob = logit - log_total
    if CUT:  # a total of nothing but NaN says NaN here too
        kept_logprob = tl.where(greedy, 0.0, logit - tl.log(kept_total.to(tl.float32))) + 0.0 * log_total
    tl.store(out_ptr + 2 * rows + row, kept_logprob.to(tl.float64))
    tl.store(out_ptr + 3 * rows + row, (log_total - mean).to(tl.float64))


def draw(
    logits_nv: torch.Tensor, seeds_n: torch.Tensor, positions_n: torch.Tensor, settings: RowSettings,
    least_n: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """A token for each row of logits [N, V] (contiguous), drawn with int64 [N] seeds and positions from those that are not
    below fp32 `least_n` (default: from all; greedy rows need it). float64 [N] each: token ids, their log-probabilities among
    all and among those, and the rows' entropies (nats), of all. Logits that are not finite give NaN."""
    rows, width = logits_nv.shape
    tiles, cut = triton.cdiv(width, TILE), least_n is not None
    least, inverse = logits_nv if least_n is None else least_n, settings.inverse_temperature
    statistics = torch.empty(3 + cut, rows, tiles, dtype=torch.float32, device=logits_nv.device)
    out = torch.empty(4, rows, dtype=torch.float64, device=logits_nv.device)
    _draw_tile_statistics[(rows, tiles)](
        logits_nv, least, statistics, inverse, width, tiles, CUT=cut, TILE=TILE, num_warps=8
    )
    _draw_token[(rows,)](
        logits_nv, least, statistics, seeds_n, positions_n, out, inverse, settings.greedy, width, tiles, CUT=cut, TILE=TILE,
        TILES=triton.next_power_of_2(tiles), num_warps=8,
    )  # fmt: skip
    return out[0], out[1], out[2], out[3]
