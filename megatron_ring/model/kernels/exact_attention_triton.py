"""Causal attention in which a query's result depends on its own sequence alone, in training as in sampling: bit by bit.

A query takes its keys in blocks of KEYS, from position 0 upwards, whatever else a program holds: the queries of one KV head
at POSITIONS neighbouring positions, which begin at a multiple of POSITIONS. As that divides KEYS, all of them end in the
same block. Keys lie beside each other (a training forward) or in pages (the sampler's cache). The context is never split.

Suffixes: t tokens, s sequences, h heads, g KV heads, d head dimension.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

KEYS = 64


class Rows(NamedTuple):
    """Rows of queries that one program takes (positions times queries of a KV head), and how."""

    rows: int
    warps: int
    stages: int


MANY = Rows(128, warps=8, stages=3)  # chunks of prompts, training
ONE = Rows(64, warps=4, stages=4)  # decoding; no fewer, as the tensor cores' products have 64 rows


def positions_of(rows: Rows, group: int) -> int:
    """Positions that one program takes with `group` queries of a KV head each: a power of 2 up to KEYS."""
    return 1 << min(rows.rows // group, KEYS).bit_length() - 1


@triton.jit
def _take(  # type: ignore[no-untyped-def]
    q, highest, total, joined, first, end, position, k_ptr, v_ptr, table_ptr, k_page, k_token, v_page, v_token, scale,
    PAGE: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, KEYS: tl.constexpr, LAST: tl.constexpr,
):  # fmt: skip
    """One block of keys. LAST: the one that holds the queries' own positions, the only one that needs a mask."""
    key, column = first + tl.arange(0, KEYS), tl.arange(0, WIDTH)
    if PAGE > 0:
        page = tl.load(table_ptr + key // PAGE, mask=key < end, other=0).to(tl.int64)
        k_at, v_at = page * k_page + (key % PAGE) * k_token, page * v_page + (key % PAGE) * v_token
    else:
        k_at, v_at = key.to(tl.int64) * k_token, key.to(tl.int64) * v_token
    inside = (column < D)[None, :] & (key < (end if LAST else first + KEYS))[:, None]
    k = tl.load(k_ptr + k_at[:, None] + column[None, :], mask=inside, other=0.0)
    v = tl.load(v_ptr + v_at[:, None] + column[None, :], mask=inside, other=0.0)
    scores = tl.dot(q, tl.trans(k), input_precision="ieee")
    if LAST:
        scores = tl.where(key[None, :] <= position[:, None], scores, float("-inf"))
    above = tl.maximum(highest, tl.max(scores, 1))
    # Fused products are written out: what a compiler fuses may differ between two versions of a kernel.
    minus = tl.broadcast_to(-(above * scale)[:, None], scores.shape)
    weights = tl.exp2(tl.fma(scores, tl.full(scores.shape, scale, tl.float32), minus))
    shrink = tl.exp2((highest - above) * scale)
    total = tl.fma(total, shrink, tl.sum(weights, 1))
    joined = tl.dot(weights.to(v.dtype), v, joined * shrink[:, None], input_precision="ieee")
    return above, total, joined


@triton.jit
def _exact_attention(  # type: ignore[no-untyped-def]
    q_ptr, k_ptr, v_ptr, out_ptr, tiles_ptr, sequences_ptr, table_ptr, scale, q_t, q_h, k_page, k_token, k_head, v_page,
    v_token, v_head, out_t, table_s,
    GROUP: tl.constexpr, ROWS: tl.constexpr, POSITIONS: tl.constexpr, PAGE: tl.constexpr, D: tl.constexpr,
    WIDTH: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """PAGE 0: keys of a sequence lie where its queries do."""
    tile, group = tl.program_id(0), tl.program_id(1)
    sequence, first = tl.load(tiles_ptr + 2 * tile).to(tl.int64), tl.load(tiles_ptr + 2 * tile + 1)
    here = sequences_ptr + 3 * sequence
    query_row, first_query, end = tl.load(here).to(tl.int64), tl.load(here + 1), tl.load(here + 2)
    row, column = tl.arange(0, ROWS), tl.arange(0, WIDTH)
    position, head = first + row // GROUP, group * GROUP + row % GROUP
    asked = (row < POSITIONS * GROUP) & (position >= tl.maximum(first_query, 0)) & (position < end)
    inside = asked[:, None] & (column < D)[None, :]
    token = query_row + position - first_query
    q = tl.load(q_ptr + token[:, None] * q_t + head[:, None] * q_h + column[None, :], mask=inside, other=0.0)
    k_ptr += group * k_head
    v_ptr += group * v_head
    if PAGE > 0:
        table_ptr += sequence * table_s
    else:
        k_ptr += query_row * k_token
        v_ptr += query_row * v_token
    highest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    joined = tl.zeros([ROWS, WIDTH], tl.float32)
    last = first // KEYS * KEYS
    for key in range(0, last, KEYS):
        highest, total, joined = _take(
            q, highest, total, joined, key, end, position, k_ptr, v_ptr, table_ptr, k_page, k_token, v_page, v_token,
            scale, PAGE, D, WIDTH, KEYS, False,
        )  # fmt: skip
    highest, total, joined = _take(
        q, highest, total, joined, last, end, position, k_ptr, v_ptr, table_ptr, k_page, k_token, v_page, v_token, scale,
        PAGE, D, WIDTH, KEYS, True,
    )  # fmt: skip
    out = (joined / total[:, None]).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + token[:, None] * out_t + head[:, None] * D + column[None, :], out, mask=inside)


def attend(
    q_thd: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, tiles: torch.Tensor, sequences: torch.Tensor,
    rows: Rows, block_table: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """Softmax and sums in fp32, products in q's dtype.

    Args:
        q_thd: [T, heads, d].
        keys, values: [T, KV heads, d], or [pages, page_size, KV heads, d] with a block table; the last dimension contiguous.
        tiles: int32 [programs, 2], a sequence and the first position that the program takes of it, a multiple of
            `positions_of(rows, heads / KV heads)`.
        sequences: int32 [S, 3]: row of q of its first query, that query's position, the sequence's tokens up to and with
            its last query. Without a block table the first query is at position 0.
        block_table: int32 [S, columns].

    Returns:
        [T, heads, d]; rows that no tile names are 0.
    """
    heads, d = q_thd.shape[1:]
    kv_heads, paged = keys.shape[-2], block_table is not None
    group = heads // kv_heads
    out = torch.zeros(q_thd.shape, dtype=q_thd.dtype, device=q_thd.device)
    if tiles.shape[0] == 0:
        return out
    k_strides, v_strides = ((0, *x.stride()[-3:-1]) if not paged else x.stride()[:3] for x in (keys, values))
    _exact_attention[(tiles.shape[0], kv_heads)](
        q_thd, keys, values, out, tiles, sequences, sequences if block_table is None else block_table,
        d**-0.5 * 1.4426950408889634, *q_thd.stride()[:2], *k_strides, *v_strides, out.stride(0),
        0 if block_table is None else block_table.stride(0), GROUP=group, ROWS=rows.rows,
        POSITIONS=positions_of(rows, group), PAGE=keys.shape[1] if paged else 0, D=d,
        WIDTH=max(16, triton.next_power_of_2(d)), KEYS=KEYS, num_warps=rows.warps, num_stages=rows.stages,
    )  # fmt: skip
    return out
