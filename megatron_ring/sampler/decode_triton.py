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
from megatron_ring.parallel.device import program_memory

SPLIT = 512  # positions of a part
BLOCK = 32  # positions taken at a time: no more than a page has, as a rule
# Where pages lie is read ahead of what is in them, by half of the stages: two are one pair of blocks of keys and values on
# their way in a program, of which a multiprocessor has five. Few programs take two pairs each, where they have room.
STAGES, FEW_STAGES, WARPS = 2, 5, 2
FEW_PROGRAMS = 264  # two for each multiprocessor of an H100
OTHERS = 2048  # bytes of shared memory that a program may have beside blocks on their way, queries and weights
JOINED = 4  # parts of a head that are joined at a time, however many there are: for others products are rounded otherwise
MATRIX_ROWS = 16  # the fewest rows that tensor cores take


@triton.jit
def _turned(at, column, cos, sin, mask, D: tl.constexpr):  # type: ignore[no-untyped-def]
    """Heads that begin at `at`, rotated as `rope_triton` does it, with the bits that it stores."""
    half: tl.constexpr = D // 2
    lower, pair = column < half, column % half
    first = tl.load(at + pair, mask=mask, other=0.0).to(tl.float32)
    second = tl.load(at + half + pair, mask=mask, other=0.0).to(tl.float32)
    added = second * tl.where(lower, -sin, cos)
    by = tl.broadcast_to(tl.where(lower, cos, sin), added.shape)
    return tl.fma(first, by, added).to(at.dtype.element_ty)


@triton.jit
def _keep(at, value_at, k_at, v_at, column, cos, sin, mask, D: tl.constexpr):  # type: ignore[no-untyped-def]
    """Store a token's key, rotated, and its value, for all of the program to read."""
    v = tl.load(value_at + column, mask=mask, other=0.0)
    tl.store(k_at + column, _turned(at, column, cos, sin, mask, D), mask=mask)
    tl.store(v_at + column, v, mask=mask)
    tl.debug_barrier()


@triton.jit
def _positions(  # type: ignore[no-untyped-def]
    ptr, table_at, first, end, by_page, by_token, column, real_column, PAGE: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """One head's keys or values of the BLOCK positions from `first`, zeros from `end`."""
    position = first + tl.arange(0, BLOCK)
    here = position < end
    if PAGE % BLOCK == 0:
        page = tl.load(table_at + first // PAGE, mask=first < end, other=0).to(tl.int64)
    else:
        page = tl.load(table_at + position // PAGE, mask=here, other=0).to(tl.int64)
    rows = ptr + page * by_page + (position % PAGE) * by_token
    return tl.load(rows[:, None] + column[None, :], mask=here[:, None] & real_column[None, :], other=0.0)


@triton.jit
def _attended(  # type: ignore[no-untyped-def]
    q, k_ptr, v_ptr, table_at, start, end, scale, k_page, k_token, v_page, v_token, column, real_column,
    PAGE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sums of values by weights exp2(scale * (score - highest)), fp32 [ROWS, WIDTH]; and `highest`, not scaled yet, and the
    weights' sums, fp32 [ROWS].

    Weights are rounded below the highest score of two blocks: of 64 positions, and as FlashAttention-2 computes them. So
    tokens with short contexts have the weights that they have in training. What is fused is said: kernels that read less
    ahead have the same bits.
    """
    highest, total = tl.full([q.shape[0]], -1e30, tl.float32), tl.zeros([q.shape[0]], tl.float32)
    joined = tl.zeros([q.shape[0], column.shape[0]], tl.float32)
    by = tl.full([q.shape[0], BLOCK], 0.0, tl.float32) + scale
    for first in range(start, end, 2 * BLOCK):
        position = first + tl.arange(0, BLOCK)
        k = _positions(k_ptr, table_at, first, end, k_page, k_token, column, real_column, PAGE, BLOCK)
        k_2 = _positions(k_ptr, table_at, first + BLOCK, end, k_page, k_token, column, real_column, PAGE, BLOCK)
        v = _positions(v_ptr, table_at, first, end, v_page, v_token, column, real_column, PAGE, BLOCK)
        v_2 = _positions(v_ptr, table_at, first + BLOCK, end, v_page, v_token, column, real_column, PAGE, BLOCK)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee")
        scores = tl.where((position < end)[None, :], scores, float("-inf"))
        scores_2 = tl.dot(q, tl.trans(k_2), input_precision="ieee")
        scores_2 = tl.where((position + BLOCK < end)[None, :], scores_2, float("-inf"))
        above = tl.maximum(highest, tl.maximum(tl.max(scores, 1), tl.max(scores_2, 1)))
        below = tl.broadcast_to(-(above * scale)[:, None], by.shape)
        weights, weights_2 = tl.exp2(tl.fma(scores, by, below)), tl.exp2(tl.fma(scores_2, by, below))
        shrink = tl.exp2((highest - above) * scale)
        total = tl.fma(total, shrink, tl.sum(weights + weights_2, 1))
        joined = tl.dot(weights.to(v.dtype), v, joined * shrink[:, None], input_precision="ieee")
        joined = tl.dot(weights_2.to(v.dtype), v_2, joined, input_precision="ieee")
        highest = above
    return joined, highest, total


@triton.jit
def _attend_part(  # type: ignore[no-untyped-def]
    q_ptr, k_ptr, v_ptr, table_ptr, lengths_ptr, out_ptr, lse_ptr, cos_ptr, sin_ptr, slots_ptr, scale, q_n, q_g, q_h,
    k_page, k_token, k_head, v_page, v_token, v_head, table_n, table_stride, heads, parts,
    GROUP: tl.constexpr, ROWS: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, PAGE: tl.constexpr,
    SPLIT: tl.constexpr, BLOCK: tl.constexpr, ONE: tl.constexpr, TURN: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Attention of GROUP queries over one part: out fp32 [N, heads, parts, D], lse fp32 [N, heads, parts] (base 2). ONE: no
    length has more than one part, out is the result [N, heads, D], with the bits that `_join_parts` would give it. TURN: the
    queries are not rotated yet, and behind a group's come its key and value, which go to their slot (0: nowhere)."""
    begin(DEPENDENT)
    program, part, groups = tl.program_id(0), tl.program_id(1), heads // GROUP
    group, sequence = program % groups, (program // groups).to(tl.int64)
    row, column = tl.arange(0, ROWS), tl.arange(0, WIDTH)
    real_row, real_column = row < GROUP, column < D
    real = real_row[:, None] & real_column[None, :]
    q_at = q_ptr + sequence * q_n + group * q_g
    # Asked for together, before it is known whether there is anything to do:
    length = tl.load(lengths_ptr + sequence).to(tl.int32)
    if TURN:
        slot = tl.load(slots_ptr + sequence)
        cos = tl.load(cos_ptr + sequence * table_stride + column, mask=real_column, other=0.0)
        sin = tl.load(sin_ptr + sequence * table_stride + column, mask=real_column, other=0.0)
        q = _turned(q_at + row[:, None] * q_h, column[None, :], cos[None, :], sin[None, :], real, D)
    else:
        q = tl.load(q_at + row[:, None] * q_h + column[None, :], mask=real, other=0.0)
    start, at = part * SPLIT, (sequence * heads + group * GROUP + row) * parts + part
    out_at = out_ptr + at[:, None] * D + column[None, :]
    if start >= length:
        if ONE:
            tl.store(out_at, tl.zeros([ROWS, WIDTH], out_ptr.dtype.element_ty), mask=real)
        return
    if TURN and (slot > 0) & (start + SPLIT >= length):  # this program meets the new token
        k_at = k_ptr + (slot // PAGE) * k_page + (slot % PAGE) * k_token + group * k_head
        v_at = v_ptr + (slot // PAGE) * v_page + (slot % PAGE) * v_token + group * v_head
        _keep(q_at + GROUP * q_h, q_at + (GROUP + 1) * q_h, k_at, v_at, column, cos, sin, real_column, D)
    joined, highest, total = _attended(
        q, k_ptr + group * k_head, v_ptr + group * v_head, table_ptr + sequence * table_n, start,
        min(start + SPLIT, length), scale, k_page, k_token, v_page, v_token, column, real_column, PAGE, BLOCK,
    )  # fmt: skip
    tl.store(out_at, (joined / total[:, None]).to(out_ptr.dtype.element_ty), mask=real)
    if not ONE:
        tl.store(lse_ptr + at, tl.fma(highest, tl.zeros_like(highest) + scale, tl.log2(total)), mask=real_row)


@triton.jit
def _join_parts(  # type: ignore[no-untyped-def]
    parts_ptr, lse_ptr, lengths_ptr, out_ptr, heads, parts,
    D: tl.constexpr, WIDTH: tl.constexpr, SPLIT: tl.constexpr, AT_ONCE: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """The parts of one head of one sequence, each weighted by its sum of exponentials."""
    sequence, head = tl.program_id(0), tl.program_id(1)
    begin(DEPENDENT)
    column, part = tl.arange(0, WIDTH), tl.arange(0, AT_ONCE)
    at = sequence.to(tl.int64) * heads + head
    lse_at = lse_ptr + at * parts + part
    some_at = parts_ptr + (at * parts + part)[:, None] * D + column[None, :]
    # The first parts are asked for before it is known how many there are.
    lse = tl.load(lse_at, mask=part < parts, other=0.0)
    some = tl.load(some_at, mask=(part < parts)[:, None] & (column < D)[None, :], other=0.0)
    real = tl.cdiv(tl.load(lengths_ptr + sequence).to(tl.int32), SPLIT)
    highest = tl.full([], -1e30, tl.float32)
    total = tl.zeros([], tl.float32)
    joined = tl.zeros([WIDTH], tl.float32)
    for first in range(0, real, AT_ONCE):
        here = first + part < real
        lse, some = tl.where(here, lse, float("-inf")), tl.where(here[:, None], some, 0.0)
        above = tl.maximum(highest, tl.max(lse, 0))
        shrink, weights = tl.exp2(highest - above), tl.exp2(lse - above)
        joined = joined * shrink + tl.sum(some * weights[:, None], 0)
        total = total * shrink + tl.sum(weights, 0)
        highest = above
        after = first + AT_ONCE
        lse = tl.load(lse_at + after, mask=after + part < real, other=0.0)
        some = tl.load(some_at + after * D, mask=(after + part < real)[:, None] & (column < D)[None, :], other=0.0)
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
    q_ngqd = q_nhd.unflatten(1, (keys.shape[2], -1))
    return _attend(q_ngqd, q_ngqd.shape[2], keys, values, block_table, lengths, longest, None)


def turn_and_attend(
    qkv_ngpd: torch.Tensor, rope: tuple[torch.Tensor, torch.Tensor], slots: torch.Tensor, keys: torch.Tensor,
    values: torch.Tensor, block_table: torch.Tensor, lengths: torch.Tensor, longest: int,
) -> torch.Tensor:  # fmt: skip
    """`rope_triton.split` into the cache, and `attend_decode` of it, in one kernel with the same bits.

    Args:
        qkv_ngpd: [N, KV heads, queries of one + 2, d], the last dimension contiguous.
        rope: cos and sin, fp32 [N, 1, d].
        slots: int64 [N], where among the tokens of all pages a sequence's last one lies; 0: nowhere, it is not written.
    """
    return _attend(qkv_ngpd, qkv_ngpd.shape[2] - 2, keys, values, block_table, lengths, longest, (*rope, slots))


def stages_of(programs: int, rows: int, width: int, itemsize: int, room: int | None) -> int:
    """Of so many programs, each with `rows` queries of `width` columns, of `itemsize` bytes, on a device whose programs have
    `room` bytes of shared memory (None: any)."""
    blocks, queries = FEW_STAGES // 2 * 4 * BLOCK * width, rows * (width + 2 * BLOCK)
    held = itemsize * (blocks + queries) + OTHERS
    return FEW_STAGES if programs <= FEW_PROGRAMS and (room is None or held <= room) else STAGES


def _attend(
    q_ngqd: torch.Tensor, group: int, keys: torch.Tensor, values: torch.Tensor, block_table: torch.Tensor,
    lengths: torch.Tensor, longest: int, turn: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None,
) -> torch.Tensor:  # fmt: skip
    n, kv_heads, _, d = q_ngqd.shape
    page_size, heads = keys.shape[1], kv_heads * group
    parts, width = triton.cdiv(longest, SPLIT), max(MATRIX_ROWS, triton.next_power_of_2(d))
    out = q_ngqd.new_empty(n, heads, d)
    part_nhsd = lse_nhs = out
    if parts > 1:
        part_nhsd = torch.empty(n, heads, parts, d, dtype=torch.float32, device=out.device)
        lse_nhs = torch.empty(n, heads, parts, dtype=torch.float32, device=out.device)
    cos, sin, slots = turn or (out, out, out)
    log2_e = 1.4426950408889634
    rows = max(MATRIX_ROWS, triton.next_power_of_2(group))
    stages = stages_of(kv_heads * n * parts, rows, width, q_ngqd.itemsize, program_memory(out.device))
    # Only the first number of a grid may be above 65,535.
    _attend_part[(kv_heads * n, parts)](
        q_ngqd, keys, values, block_table, lengths, part_nhsd, lse_nhs, cos, sin, slots, d**-0.5 * log2_e,
        *q_ngqd.stride()[:3], *keys.stride()[:3], *values.stride()[:3], block_table.stride(0), cos.stride(0), heads, parts,
        GROUP=group, ROWS=rows, D=d, WIDTH=width, PAGE=page_size, SPLIT=SPLIT,
        BLOCK=BLOCK, ONE=parts == 1, TURN=turn is not None, num_stages=stages, num_warps=WARPS, **launch_options(),
    )  # fmt: skip
    if parts > 1:
        _join_parts[(n, heads)](
            part_nhsd, lse_nhs, lengths, out, heads, parts, D=d, WIDTH=width, SPLIT=SPLIT,
            AT_ONCE=JOINED, num_warps=1, **launch_options(),
        )  # fmt: skip
    return out
