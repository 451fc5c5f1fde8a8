"""Decoding attention over a paged KV cache in Triton: grouped queries, the context split over programs (flash-decoding,
Dao et al. 2023).

A part is `SPLIT` positions of one sequence, for the queries of one KV head. As a part is so many positions whatever the
batch, and parts are joined in order, a sequence's result does not depend on the others: not on their number, nor on their
lengths.

Where no sequence has more than one part, a program writes its result. Otherwise programs take parts from a list: none is
launched for a part that a sequence does not have. The program that finishes a sequence's last open part joins all of them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

SPLIT = 512  # positions of a part
BLOCK = 64  # positions taken at a time
MATRIX_ROWS = 16  # the fewest rows that tensor cores take
STAGES = (
    5  # keys and values are two blocks ahead, and their pages two more: 3 and 4 would leave one block, used before the next
)
PROGRAMS = 4096  # at most, for lists: some ten times what an H200 runs at a time; each then takes several parts


@triton.jit
def _attend(  # type: ignore[no-untyped-def]
    q_ptr, k_ptr, v_ptr, table_ptr, sequence, group, start, end, scale, q_n, q_h, k_page, k_token, k_head,
    v_page, v_token, v_head, table_n,
    GROUP: tl.constexpr, ROWS: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, PAGE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Attention of GROUP queries over the positions from `start` to before `end`: the highest score [ROWS] (base 2), the sum
    of exponentials [ROWS] and the values weighted by these [ROWS, WIDTH], fp32."""
    row, column = tl.arange(0, ROWS), tl.arange(0, WIDTH)
    head = group * GROUP + row
    real_column = column < D
    q_at = q_ptr + sequence.to(tl.int64) * q_n + head[:, None] * q_h + column[None, :]
    q = tl.load(q_at, mask=(row < GROUP)[:, None] & real_column[None, :], other=0.0)
    highest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    joined = tl.zeros([ROWS, WIDTH], tl.float32)
    for first in range(start, end, BLOCK):
        position = first + tl.arange(0, BLOCK)
        here = position < end
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
    return highest, total, joined


@triton.jit
def _attend_whole(  # type: ignore[no-untyped-def]
    q_ptr, k_ptr, v_ptr, table_ptr, lengths_ptr, out_ptr, scale, q_n, q_h, k_page, k_token, k_head, v_page, v_token, v_head,
    table_n, heads,
    GROUP: tl.constexpr, ROWS: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, PAGE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sequences of one part at most: out [N, heads, D]."""
    sequence, group = tl.program_id(0), tl.program_id(1)
    length = tl.load(lengths_ptr + sequence).to(tl.int32)
    _, total, joined = _attend(
        q_ptr, k_ptr, v_ptr, table_ptr, sequence, group, 0, length, scale, q_n, q_h, k_page, k_token, k_head,
        v_page, v_token, v_head, table_n, GROUP, ROWS, D, WIDTH, PAGE, BLOCK,
    )  # fmt: skip
    row, column = tl.arange(0, ROWS), tl.arange(0, WIDTH)
    at = (sequence.to(tl.int64) * heads + group * GROUP + row[:, None]) * D + column[None, :]
    result = joined / tl.maximum(total, 1e-38)[:, None]  # a row without a sequence (length 0) comes out as 0
    tl.store(out_ptr + at, result.to(out_ptr.dtype.element_ty), mask=(row < GROUP)[:, None] & (column < D)[None, :])


@triton.jit
def _list_parts(  # type: ignore[no-untyped-def]
    lengths_ptr, listed_ptr, done_ptr, parts, kv_heads, SPLIT: tl.constexpr, HEADS: tl.constexpr, ROWS: tl.constexpr
):
    """listed int32 [1 + N * parts]: how many parts there are, then sequence * parts + part of each; a sequence without
    positions has one. done int32 [N, KV heads]: zeros."""
    sequence = tl.program_id(0)
    before = 0
    for first in range(0, sequence, ROWS):
        row = first + tl.arange(0, ROWS)
        lengths = tl.load(lengths_ptr + row, mask=row < sequence, other=0).to(tl.int32)
        before += tl.sum(tl.where(row < sequence, tl.maximum(tl.cdiv(lengths, SPLIT), 1), 0))
    mine = tl.maximum(tl.cdiv(tl.load(lengths_ptr + sequence).to(tl.int32), SPLIT), 1)
    for part in range(0, mine):
        tl.store(listed_ptr + 1 + before + part, sequence * parts + part)
    if sequence == tl.num_programs(0) - 1:
        tl.store(listed_ptr, before + mine)
    head = tl.arange(0, HEADS)
    tl.store(done_ptr + sequence * kv_heads + head, tl.zeros([HEADS], tl.int32), mask=head < kv_heads)


@triton.jit
def _attend_parts(  # type: ignore[no-untyped-def]
    q_ptr, k_ptr, v_ptr, table_ptr, lengths_ptr, listed_ptr, done_ptr, parts_ptr, lse_ptr, out_ptr, scale, q_n, q_h,
    k_page, k_token, k_head, v_page, v_token, v_head, table_n, heads, parts,
    GROUP: tl.constexpr, ROWS: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, PAGE: tl.constexpr, BLOCK: tl.constexpr,
    SPLIT: tl.constexpr,
):  # fmt: skip
    """Listed parts: out [N, heads, D], by way of fp32 [N, heads, parts, D] and lse [N, heads, parts] (base 2)."""
    group, row, column = tl.program_id(1), tl.arange(0, ROWS), tl.arange(0, WIDTH)
    real_row, inside = row < GROUP, (row < GROUP)[:, None] & (column < D)[None, :]
    for place in range(tl.program_id(0), tl.load(listed_ptr), tl.num_programs(0)):
        item = tl.load(listed_ptr + 1 + place)
        sequence, part = item // parts, item % parts
        length = tl.load(lengths_ptr + sequence).to(tl.int32)
        start = part * SPLIT
        highest, total, joined = _attend(
            q_ptr, k_ptr, v_ptr, table_ptr, sequence, group, start, tl.minimum(start + SPLIT, length), scale, q_n, q_h,
            k_page, k_token, k_head, v_page, v_token, v_head, table_n, GROUP, ROWS, D, WIDTH, PAGE, BLOCK,
        )  # fmt: skip
        head = sequence.to(tl.int64) * heads + group * GROUP + row
        at = head * parts + part
        tl.store(parts_ptr + at[:, None] * D + column[None, :], joined / total[:, None], mask=inside)
        tl.store(lse_ptr + at, highest + tl.log2(total), mask=real_row)
        # What all threads have stored is there before the count says so, and is read past the multiprocessor's own cache.
        tl.debug_barrier()
        done_at = done_ptr + sequence * (heads // GROUP) + group
        count = tl.cdiv(length, SPLIT)
        if tl.atomic_add(done_at, 1, sem="acq_rel", scope="gpu") + 1 == tl.maximum(count, 1):
            highest = tl.full([ROWS], float("-inf"), tl.float32)
            total = tl.zeros([ROWS], tl.float32)
            joined = tl.zeros([ROWS, WIDTH], tl.float32)
            for other in range(0, count):
                at = head * parts + other
                lse = tl.load(lse_ptr + at, mask=real_row, other=0.0, cache_modifier=".cg")
                one = tl.load(parts_ptr + at[:, None] * D + column[None, :], mask=inside, other=0.0, cache_modifier=".cg")
                above = tl.maximum(highest, lse)
                shrink, weight = tl.exp2(highest - above), tl.exp2(lse - above)
                joined = joined * shrink[:, None] + one * weight[:, None]
                total = total * shrink + weight
                highest = above
            result = joined / tl.maximum(total, 1e-38)[:, None]  # a row without a sequence (length 0) comes out as 0
            tl.store(out_ptr + head[:, None] * D + column[None, :], result.to(out_ptr.dtype.element_ty), mask=inside)
            tl.store(done_at, 0)  # for the next layer


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


class Listed(NamedTuple):
    """The parts of a batch, for all layers of a pass. items: int32 [1 + N * parts]; done: int32 [N, KV heads], zeros between
    layers."""

    items: torch.Tensor
    done: torch.Tensor


def list_parts(lengths: torch.Tensor, longest: int, kv_heads: int) -> Listed | None:
    """Of sequences of `lengths` int [N], none above `longest`; None where each has one part at most."""
    n, parts = lengths.shape[0], triton.cdiv(longest, SPLIT)
    if parts <= 1:
        return None
    items = torch.empty(1 + n * parts, dtype=torch.int32, device=lengths.device)
    done = torch.empty(n, kv_heads, dtype=torch.int32, device=lengths.device)
    heads = triton.next_power_of_2(kv_heads)
    _list_parts[(n,)](
        lengths, items, done, parts, kv_heads, SPLIT=SPLIT, HEADS=heads, ROWS=min(1024, triton.next_power_of_2(n))
    )
    return Listed(items, done)


def attend_decode(
    q_nhd: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, block_table: torch.Tensor, lengths: torch.Tensor,
    longest: int, listed: Listed | None,
) -> torch.Tensor:  # fmt: skip
    """One query for each sequence, at its last position; softmax and sums in fp32.

    Args:
        q_nhd: [N, heads, d], the last dimension contiguous.
        keys, values: [pages, page_size, KV heads, d], the last dimension contiguous; the sequences' last tokens included.
        block_table: int32 [N, columns].
        lengths: int32 or int64 [N]; a sequence of length 0 gives zeros.
        longest: no length is larger. For a CUDA graph: the largest that is to be replayed.
        listed: `list_parts` of these lengths.

    Returns:
        [N, heads, d] in q's dtype.
    """
    n, heads, d = q_nhd.shape
    page_size, kv_heads = keys.shape[1:3]
    group, width = heads // kv_heads, max(MATRIX_ROWS, triton.next_power_of_2(d))
    stages = STAGES if width * keys.itemsize <= 256 else 3  # of wider ones fewer programs would fit a multiprocessor
    out = torch.empty(n, heads, d, dtype=q_nhd.dtype, device=q_nhd.device)
    inputs, scale = (q_nhd, keys, values, block_table, lengths), d**-0.5 * 1.4426950408889634
    strides = *q_nhd.stride()[:2], *keys.stride()[:3], *values.stride()[:3], block_table.stride(0)
    constants = {
        "GROUP": group, "ROWS": max(MATRIX_ROWS, triton.next_power_of_2(group)), "D": d, "WIDTH": width, "PAGE": page_size,
        "BLOCK": BLOCK, "num_stages": stages,
    }  # fmt: skip
    if listed is None:
        _attend_whole[(n, kv_heads)](*inputs, out, scale, *strides, heads, **constants)
        return out
    parts = triton.cdiv(longest, SPLIT)
    part_nhsd = torch.empty(n, heads, parts, d, dtype=torch.float32, device=q_nhd.device)
    lse_nhs = torch.empty(n, heads, parts, dtype=torch.float32, device=q_nhd.device)
    programs = min(n * parts, triton.cdiv(PROGRAMS, kv_heads))
    _attend_parts[(programs, kv_heads)](
        *inputs, *listed, part_nhsd, lse_nhs, out, scale, *strides, heads, parts, **constants, SPLIT=SPLIT
    )
    return out
