"""Attention over the paged KV cache, and the layout through which the model uses it.

`attend_decode` and `attend_chunks` are the two seams where kernels go. Decoding has one in Triton, for CUDA; otherwise they
gather pages and call torch's SDPA.

Suffixes: n sequences, t tokens, h query heads, g KV heads, q queries, l positions, d head dimension.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from itertools import accumulate

import torch
import torch.nn.functional as F

from megatron_ring.model.layout import PackedLayout, TokenLayout
from megatron_ring.sampler.cache import PagedCache
from megatron_ring.sampler.pages import pages_for


class PagedLayout(TokenLayout):
    """A step of the sampler: first one token for each of the sequences that decode, then chunks of prompts, then padding.

    Args:
        positions: int64 [T].
        rows: int64 [T], each token's row of the block table.
        real: tokens before the padding.
        decoding: sequences that decode.
        chunks: tokens of each chunk.
        ends: tokens of each sequence, decoding ones first, up to and with its last token here. On the host.
    """

    def __init__(
        self, positions: torch.Tensor, rows: torch.Tensor, real: int, decoding: int, chunks: Sequence[int],
        ends: Sequence[int], cache: PagedCache,
    ) -> None:  # fmt: skip
        super().__init__(positions)
        self.cache, self.real, self.decoding, self.chunks = cache, real, decoding, chunks
        self.chunk_ends = ends[decoding:]
        self.slots = cache.slots(rows, positions)
        self.slots[real:] = 0  # the scrap page
        self.longest = max(ends[:decoding], default=0)
        self.table = cache.table[rows[:decoding], : pages_for(self.longest, cache.page_size)]
        self.lengths = positions[:decoding] + 1
        # Chunks that begin their sequences need no cache: they attend as in training.
        self.fresh = PackedLayout(positions[decoding:real], chunks) if list(chunks) == list(self.chunk_ends) else None
        first = [decoding + before for before in accumulate(chunks[:-1], initial=0)] if chunks else []
        self.chunk_table = cache.table[rows[first], : pages_for(max(self.chunk_ends, default=0), cache.page_size)]

    def attend(self, layer: int, q_thd: torch.Tensor, k_tgd: torch.Tensor, v_tgd: torch.Tensor) -> torch.Tensor:
        self.cache.write(layer, self.slots, k_tgd, v_tgd)
        keys, values = self.cache.of_layer(layer)
        n, parts = self.decoding, []
        if n:
            parts.append(attend_decode(q_thd[:n], keys, values, self.table, self.lengths, self.longest))
        if self.chunks and self.fresh is not None:
            parts.append(self.fresh.attend(layer, *(x[n : self.real] for x in (q_thd, k_tgd, v_tgd))))
        elif self.chunks:
            q_chunks = q_thd[n : self.real]
            parts.append(attend_chunks(q_chunks, keys, values, self.chunk_table, self.chunk_ends, self.chunks))
        if self.real < q_thd.shape[0]:
            parts.append(torch.zeros_like(q_thd[self.real :]))
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def attend_decode(
    q_nhd: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, block_table: torch.Tensor, lengths: torch.Tensor,
    longest: int,
) -> torch.Tensor:  # fmt: skip
    """One query for each sequence, at its last position.

    Args:
        q_nhd: [N, heads, d].
        keys, values: [pages, page_size, KV heads, d], the sequences' last tokens included.
        block_table: int32 [N, columns].
        lengths: int [N], tokens of each sequence.
        longest: the largest of them.

    Returns:
        [N, heads, d].
    """
    if q_nhd.is_cuda and importlib.util.find_spec("triton") is not None:
        from megatron_ring.sampler import decode_triton

        return decode_triton.attend_decode(q_nhd, keys, values, block_table, lengths, longest)
    mask = (torch.arange(longest, device=lengths.device) < lengths[:, None])[:, None, None, :]
    k_ngld, v_ngld = _gather(keys, values, block_table, longest)
    # The queries of one KV group stand where a sequence's queries would: no key or value is repeated.
    q_ngqd = q_nhd.unflatten(1, (keys.shape[2], -1))
    return F.scaled_dot_product_attention(q_ngqd, k_ngld, v_ngld, attn_mask=mask).flatten(1, 2)


def attend_chunks(
    q_thd: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, block_table: torch.Tensor, ends: Sequence[int],
    counts: Sequence[int],
) -> torch.Tensor:  # fmt: skip
    """The last counts[n] positions of each sequence, causally.

    Args:
        q_thd: [T, heads, d], the queries of the sequences one after another.
        keys, values: [pages, page_size, KV heads, d], these tokens included.
        block_table: int32 [N, columns].
        ends: tokens of each sequence.
        counts: of them those that ask, T together.

    Returns:
        [T, heads, d].
    """
    out, start = [], 0
    for row, end, count in zip(block_table, ends, counts, strict=True):
        k_ngld, v_ngld = _gather(keys, values, row[None, : pages_for(end, keys.shape[1])], end)
        q_hqd = q_thd[start : start + count].transpose(0, 1)
        mask = None
        if count < end:
            mask = torch.ones(count, end, dtype=torch.bool, device=q_thd.device).tril(end - count)
        attended = F.scaled_dot_product_attention(
            q_hqd[None], k_ngld, v_ngld, attn_mask=mask, is_causal=mask is None, enable_gqa=True
        )
        out.append(attended[0].transpose(0, 1))
        start += count
    return torch.cat(out)


def _gather(
    keys: torch.Tensor, values: torch.Tensor, block_table: torch.Tensor, longest: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """[pages, page_size, KV heads, d] and int32 [N, columns] -> [N, KV heads, longest, d]: contiguous, which makes
    torch's attention on a CPU up to three times as fast, for one copy."""
    size, heads = keys.shape[1:3]
    token = torch.arange(size, dtype=torch.int32, device=keys.device)
    head = torch.arange(heads, dtype=torch.int32, device=keys.device)
    token_nl = (block_table[:, :, None] * size + token).flatten(1)[:, :longest] * heads
    row_ngl = token_nl[:, None, :] + head[:, None]
    gathered = [x.flatten(0, 2).index_select(0, row_ngl.flatten()).unflatten(0, row_ngl.shape) for x in (keys, values)]
    return gathered[0], gathered[1]
