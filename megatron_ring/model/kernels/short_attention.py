"""Causal attention of short sequences in plain torch, for the CPU: sequences of like length together, what lies above the
diagonal left out but for small squares, probabilities kept for the backward pass.

Suffixes: t tokens, g KV heads, d head dimension, b pairs (sequence, KV head), l positions in a sequence, n rows: queries of
one KV head by position, or keys.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch

LONGEST = 512  # tokens of a sequence up to which this is faster than torch's kernels, and memory for probabilities is small
BLOCK = 64  # positions whose queries are multiplied together, with the keys up to the last of them


class Bucket(NamedTuple):
    """`pairs` of a sequence and a KV head, all padded to `length` positions; the first row of theirs is `first`."""

    first: int
    pairs: int
    length: int

    def of(self, x_rx: torch.Tensor, per_row: int = 1) -> torch.Tensor:
        """This bucket's part [b, l * per_row, d] of all rows [R, per_row * d]."""
        rows = x_rx[self.first : self.first + self.pairs * self.length]
        return rows.view(self.pairs, self.length * per_row, -1)


class Buckets:
    """Sequences, one after another in memory, sorted by length into buckets that need little padding.

    Attributes:
        buckets: their rows are sorted by bucket, sequence, KV head, position.
        source: int64 [R], the row (token, KV head) that each of these rows is; behind a sequence's end its last token's.
        behind: int64, which of these rows are behind a sequence's end.
        places: int64 [T * KV heads], where each row (token, KV head) is.
        above: [BLOCK * query heads of a KV head, BLOCK], -inf where a key comes after the query, else 0.
    """

    def __init__(self, lengths: Sequence[int], heads: int, kv_heads: int, dtype: torch.dtype) -> None:
        self.each = heads // kv_heads
        self.above = torch.full((BLOCK, BLOCK), -math.inf, dtype=dtype).triu_(1).repeat_interleave(self.each, dim=0)
        begins = torch.tensor([0, *lengths]).cumsum(0)
        self.buckets: list[Bucket] = []
        sources, behinds, first = [], [], 0
        for members in _of_like_length(lengths):
            bucket = Bucket(first, len(members) * kv_heads, lengths[members[0]])
            begin_s, last_s = begins[members, None], begins[[member + 1 for member in members], None] - 1
            token_sl = begin_s + torch.arange(bucket.length)
            source_sgl = token_sl.minimum(last_s)[:, None] * kv_heads + torch.arange(kv_heads)[:, None]
            sources.append(source_sgl.flatten())
            behinds.append((token_sl > last_s)[:, None].expand_as(source_sgl).flatten())
            self.buckets.append(bucket)
            first += sources[-1].numel()
        behind = torch.cat(behinds)
        self.source, self.behind, real = torch.cat(sources), behind.nonzero()[:, 0], (~behind).nonzero()[:, 0]
        self.places = torch.empty_like(real)
        self.places[self.source[real]] = real

    def gather(self, x_thd: torch.Tensor, heads_a_row: int = 1) -> torch.Tensor:
        """[R, heads_a_row * d] from [T, heads, d]; tokens behind the last sequence are left out."""
        return x_thd.view(-1, heads_a_row * x_thd.shape[2]).index_select(0, self.source)

    def scatter(self, x_rx: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """The inverse, into a tensor like `like` [T, heads, d], with zeros behind the last sequence."""
        out = torch.empty_like(like)
        rows = out.view(-1, x_rx.shape[1])
        torch.index_select(x_rx, 0, self.places, out=rows[: self.places.numel()])
        rows[self.places.numel() :].zero_()
        return out


def _of_like_length(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Indices of sequences, longest first, in groups whose longest is at most half as long again as their shortest."""
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    group: list[int] = []
    for index in order:
        if group and 3 * lengths[index] < 2 * lengths[group[0]]:
            yield group
            group = []
        group.append(index)
    if group:
        yield group


def short_attention(q_thd: torch.Tensor, k_tgd: torch.Tensor, v_tgd: torch.Tensor, buckets: Buckets) -> torch.Tensor:
    """q [T, heads, d], k and v [T, KV heads, d] -> [T, heads, d], zeros behind the last sequence."""
    return _ShortAttention.apply(q_thd, k_tgd, v_tgd, buckets)


class _ShortAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q_thd: torch.Tensor, k_tgd: torch.Tensor, v_tgd: torch.Tensor, buckets: Buckets) -> torch.Tensor:
        each = buckets.each
        q = buckets.gather(q_thd.contiguous(), each).mul_(1.0 / math.sqrt(q_thd.shape[2]))
        k, v = buckets.gather(k_tgd.contiguous()), buckets.gather(v_tgd.contiguous())
        out = torch.empty_like(q)
        kept: list[torch.Tensor] = []
        for bucket in buckets.buckets:
            q_bnd, k_bld, v_bld, out_bnd = bucket.of(q, each), bucket.of(k), bucket.of(v), bucket.of(out, each)
            for start, end in _blocks(bucket.length):
                rows = slice(start * each, end * each)
                scores_bnl = torch.bmm(q_bnd[:, rows], k_bld[:, :end].transpose(1, 2))
                scores_bnl[:, :, start:] += buckets.above[: (end - start) * each, : end - start]
                kept.append(torch.softmax(scores_bnl, dim=-1))
                out_bnd[:, rows] = torch.bmm(kept[-1], v_bld[:, :end])
        ctx.buckets = buckets
        ctx.save_for_backward(q, k, v, out, q_thd, k_tgd, *kept)
        return buckets.scatter(out, q_thd)

    @staticmethod
    def backward(ctx: Any, d_thd: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, out, q_thd, k_tgd, *kept = ctx.saved_tensors
        buckets: Buckets = ctx.buckets
        each = buckets.each
        d = buckets.gather(d_thd.contiguous(), each)
        d.index_fill_(0, buckets.behind, 0.0)
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        for bucket in reversed(buckets.buckets):
            q_bnd, k_bld, v_bld, d_bnd = bucket.of(q, each), bucket.of(k), bucket.of(v), bucket.of(d, each)
            dq_bnd, dk_bld, dv_bld = bucket.of(dq, each), bucket.of(dk), bucket.of(dv)
            delta_bn = torch.linalg.vecdot(d_bnd, bucket.of(out, each))
            for start, end in reversed(_blocks(bucket.length)):
                rows = slice(start * each, end * each)
                p_bnl = kept.pop()
                _add(dv_bld, torch.bmm(p_bnl.transpose(1, 2), d_bnd[:, rows]))
                by_score_bnl = torch.bmm(d_bnd[:, rows], v_bld[:, :end].transpose(1, 2))
                by_score_bnl.sub_(delta_bn[:, rows, None]).mul_(p_bnl)
                dq_bnd[:, rows] = torch.bmm(by_score_bnl, k_bld[:, :end])
                _add(dk_bld, torch.bmm(by_score_bnl.transpose(1, 2), q_bnd[:, rows]))
        dq.mul_(1.0 / math.sqrt(q_thd.shape[2]))
        return buckets.scatter(dq, q_thd), buckets.scatter(dk, k_tgd), buckets.scatter(dv, k_tgd), None


def _add(total_bld: torch.Tensor, x_bld: torch.Tensor) -> None:
    """Blocks come last to first: the first to be added reaches all keys, and finds nothing there."""
    if x_bld.shape == total_bld.shape:
        total_bld.copy_(x_bld)
    else:
        total_bld[:, : x_bld.shape[1]] += x_bld


def _blocks(length: int) -> list[tuple[int, int]]:
    return [(start, min(start + BLOCK, length)) for start in range(0, length, BLOCK)]
