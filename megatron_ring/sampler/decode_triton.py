"""Decoding attention over a paged KV cache in Triton: grouped queries, the context split over programs (flash-decoding,
Dao et al. 2023), a second kernel that joins the parts.

One program of the first kernel has the queries of one KV head of one sequence and `SPLIT` positions. As a part is so many
positions whatever the batch, a sequence's result does not depend on the others: not on their number, nor on their lengths.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from megatron_ring.model.kernels.dependent import launch_options
from megatron_ring.model.kernels.dependent_triton import begin

SPLIT = 512  # positions of a part
BLOCK = 64  # positions taken at a time
MATRIX_ROWS = 16  # the fewest rows that tensor cores take


@triton.jit
def _attend_part(  # type: ignore[no-untyped-def]
    q_ptr, k_ptr, v_ptr, table_ptr, lengths_ptr, out_ptr, lse_ptr, scale, q_n, q_h, k_page, k_token, k_head,
    v_page, v_token, v_head, table_n, heads, parts,
    GROUP: tl.constexpr, ROWS: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, PAGE: tl.constexpr,
    SPLIT: tl.constexpr, BLOCK: tl.constexpr, ONE: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Attention of GROUP queries over one part: out fp32 [N, heads, parts, D], lse fp32 [N, heads, parts] (base 2). ONE: no
    length has more than one part, out is the result [N, heads, D], with the bits that `_join_parts` would give it."""
    begin(DEPENDENT)
    sequence, group, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length = tl.load(lengths_ptr + sequence).to(tl.int32)
    start = part * SPLIT
    row, column = tl.arange(0, ROWS), tl.arange(0, WIDTH)
    head = group * GROUP + row
    real_row, real_column = row < GROUP, column < D
    at = (sequence.to(tl.int64) * heads + head) * parts + part
    out_at = out_ptr + at[:, None] * D + column[None, :]
    if start >= length:
        if ONE:
            tl.store(
                out_at, tl.zeros([ROWS, WIDTH], out_ptr.dtype.element_ty), mask=real_row[:, None] & real_column[None, :]
            )
        return
    q_at = q_ptr + sequence.to(tl.int64) * q_n + head[:, None] * q_h + column[None, :]
    q = tl.load(q_at, mask=real_row[:, None] & real_column[None, :], other=0.0)
    highest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    joined = tl.zeros([ROWS, WIDTH], tl.float32)
    for first in range(start, min(start + SPLIT, length), BLOCK):
        position = first + tl.arange(0, BLOCK)
        here = position < length
        page = tl.load(table_ptr + sequence.to(tl.int64) * table_n + position // PAGE, mask=here, other=0).to(tl.int64)
        inside = here[:, None] & real_column[None, :]
        k_at = k_ptr + page * k_page + (position % PAGE) * k_token + group * k_head
        v_at = v_ptr + page * v_page + (position % PAGE) * v_token + group * v_head
        k = tl.load(k_at[:, None] + column[None, :], mask=inside, other=0.0)
        v = tl.load(v_at[:, None] + column[None, :], mask=inside, other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        scores = tl.where(here[None, :], scores, float("-inf"))
        above = tl.maximum(highest, tl.max(scores, 1))
        weights = tl.exp2(scores - above[:, None])
        shrink = tl.exp2(highest - above)
        total = total * shrink + tl.sum(weights, 1)
        joined = joined * shrink[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
        highest = above
    attended = joined / total[:, None]
    tl.store(out_at, attended.to(out_ptr.dtype.element_ty), mask=real_row[:, None] & real_column[None, :])
    if not ONE:
        tl.store(lse_ptr + at, highest + tl.log2(total), mask=real_row)


@triton.jit
def _join_parts(  # type: ignore[no-untyped-def]
    parts_ptr, lse_ptr, lengths_ptr, out_ptr, heads, parts,
    D: tl.constexpr, WIDTH: tl.constexpr, SPLIT: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """The parts of one head of one sequence, each weighted by its sum of exponentials."""
    begin(DEPENDENT)
    sequence, head = tl.program_id(0), tl.program_id(1)
    length = tl.load(lengths_ptr + sequence).to(tl.int32)
    column = tl.arange(0, WIDTH)
    at = sequence.to(tl.int64) * heads + head
    highest = tl.full([], float("-inf"), tl.float32)
    total = tl.zeros([], tl.float32)
    joined = tl.zeros([WIDTH], tl.float32)
    for part in range(0, tl.cdiv(length, SPLIT)):
        lse = tl.load(lse_ptr + at * parts + part)
        one = tl.load(parts_ptr + (at * parts + part) * D + column, mask=column < D, other=0.0)
        above = tl.maximum(highest, lse)
        shrink, weight = tl.exp2(highest - above), tl.exp2(lse - above)
        joined = joined * shrink + one * weight
        total = total * shrink + weight
        highest = above
    result = joined / tl.maximum(total, 1e-38)  # a row without a sequence (length 0) comes out as 0
    tl.store(out_ptr + at * D + column, result.to(out_ptr.dtype.element_ty), mask=column < D)


@triton.jit
def _write_token(k_ptr, v_ptr, slots_ptr, keys_ptr, values_ptr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_ptr + token)
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    tl.store(keys_ptr + slot * WIDTH + column, tl.load(k_ptr + token * WIDTH + column, mask=inside), mask=inside)
    tl.store(values_ptr + slot * WIDTH + column, tl.load(v_ptr + token * WIDTH + column, mask=inside), mask=inside)


def write(keys: torch.Tensor, values: torch.Tensor, slots: torch.Tensor, k_tgd: torch.Tensor, v_tgd: torch.Tensor) -> None:
    """Put k and v [T, KV heads, d] at int64 [T] slots of the contiguous keys and values [pages, page_size, KV heads, d]."""
    width = k_tgd[0].numel()
    _write_token[(k_tgd.shape[0],)](
        k_tgd.contiguous(), v_tgd.contiguous(), slots, keys, values, WIDTH=width, BLOCK=triton.next_power_of_2(width)
    )


def attend_decode(
    q_nhd: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, block_table: torch.Tensor, lengths: torch.Tensor,
    longest: int,
) -> torch.Tensor:  # fmt: skip
    """One query for each sequence, at its last position; softmax and sums in fp32.

    Args:
        q_nhd: [N, heads, d], the last dimension contiguous.
        keys, values: [pages, page_size, KV heads, d], the last dimension contiguous; the sequences' last tokens included.
        block_table: int32 [N, columns].
        lengths: int32 or int64 [N]; a sequence of length 0 gives zeros.
        longest: no length is larger. For a CUDA graph: the largest that is to be replayed.

    Returns:
        [N, heads, d] in q's dtype.
    """
    n, heads, d = q_nhd.shape
    page_size, kv_heads = keys.shape[1:3]
    group, parts, width = heads // kv_heads, triton.cdiv(longest, SPLIT), triton.next_power_of_2(d)
    out = torch.empty(n, heads, d, dtype=q_nhd.dtype, device=q_nhd.device)
    part_nhsd = lse_nhs = out
    if parts > 1:
        part_nhsd = torch.empty(n, heads, parts, d, dtype=torch.float32, device=q_nhd.device)
        lse_nhs = torch.empty(n, heads, parts, dtype=torch.float32, device=q_nhd.device)
    log2_e = 1.4426950408889634
    _attend_part[(n, kv_heads, parts)](
        q_nhd, keys, values, block_table, lengths, part_nhsd, lse_nhs, d**-0.5 * log2_e,
        *q_nhd.stride()[:2], *keys.stride()[:3], *values.stride()[:3], block_table.stride(0), heads, parts,
        GROUP=group, ROWS=max(MATRIX_ROWS, triton.next_power_of_2(group)), D=d, WIDTH=max(MATRIX_ROWS, width),
        PAGE=page_size, SPLIT=SPLIT, BLOCK=BLOCK, ONE=parts == 1, **launch_options(),
    )  # fmt: skip
    if parts > 1:
        _join_parts[(n, heads)](
            part_nhsd, lse_nhs, lengths, out, heads, parts, D=d, WIDTH=max(MATRIX_ROWS, width), SPLIT=SPLIT,
            **launch_options(),
        )  # fmt: skip
    return out
