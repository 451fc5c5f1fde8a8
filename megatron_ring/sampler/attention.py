"""Attention over the paged KV cache, and the layout through which the model uses it.

`DecodeAttention` and `attend_chunks` are the two seams where kernels go. Decoding has one in Triton, for CUDA; otherwise
torch's SDPA gets gathered pages.

Suffixes: n sequences, t tokens, h query heads, g KV heads, q queries, l positions, d head dimension.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from megatron_ring.model.layout import PackedLayout, TokenLayout
from megatron_ring.sampler.cache import PagedCache
from megatron_ring.sampler.pages import pages_for

if TYPE_CHECKING:
    from megatron_ring.model.exact_attention import Asked


class PagedLayout(TokenLayout):
    """A step of the sampler: first one token for each of the sequences that decode, then chunks of prompts, then padding.

    Args:
        positions: int64 [T].
        rows: int64 [T], each token's row of the block table.
        real: tokens before the padding.
        ends: of each sequence, decoding ones first: its tokens up to and with the last one here. On the host.
        chunks: tokens of each chunk, on the host; the other sequences decode.
    """

    def __init__(
        self, positions: torch.Tensor, rows: torch.Tensor, real: int, ends: Sequence[int], chunks: Sequence[int],
        cache: PagedCache,
    ) -> None:  # fmt: skip
        super().__init__(positions)
        self._exactly: tuple[Asked | None, Asked | None] | None = None
        self.cache, self.real, self.chunks = cache, real, chunks
        self.slots = cache.slots(rows, positions)
        self.slots[real:] = 0  # the scrap page
        n = self.decoding = len(ends) - len(chunks)
        if n:
            longest = max(ends[:n])
            table = cache.table[rows[:n], : pages_for(longest, cache.page_size)]
            self.decode = DecodeAttention(table, positions[:n] + 1, longest)
        if chunks:
            self.chunk_ends = ends[n:]
            # Chunks that begin their sequences need no cache: they attend as in training.
            self.fresh = PackedLayout(positions[n:real], chunks) if list(chunks) == list(self.chunk_ends) else None
            first = [n + before for before in accumulate(chunks[:-1], initial=0)]
            self.chunk_table = cache.table[rows[first], : pages_for(max(self.chunk_ends), cache.page_size)]

    def attend(self, layer: int, q_thd: torch.Tensor, k_tgd: torch.Tensor, v_tgd: torch.Tensor) -> torch.Tensor:
        self.cache.write(layer, self.slots, k_tgd, v_tgd)
        keys, values = self.cache.of_layer(layer)
        n = self.decoding
        parts: list[torch.Tensor] = []
        if n:
            parts.append(self.decode(q_thd[:n], keys, values))
        if self.chunks and self.fresh is not None:
            parts.append(self.fresh.attend(layer, *(x[n : self.real] for x in (q_thd, k_tgd, v_tgd))))
        elif self.chunks:
            q_chunks = q_thd[n : self.real]
            parts.append(attend_chunks(q_chunks, keys, values, self.chunk_table, self.chunk_ends, self.chunks))
        return self._joined(parts, q_thd)

    def attend_exactly(self, layer: int, q_thd: torch.Tensor, k_tgd: torch.Tensor, v_tgd: torch.Tensor) -> torch.Tensor:
        from megatron_ring.model.exact_attention import attend_paged

        self.cache.write(layer, self.slots, k_tgd, v_tgd)
        keys, values = self.cache.of_layer(layer)
        n = self.decoding
        parts: list[torch.Tensor] = []
        decode, chunks = self._asked(q_thd.shape[1] // k_tgd.shape[1])
        if decode is not None:
            parts.append(attend_paged(decode, q_thd[:n], keys, values, self.decode.block_table))
        if chunks is not None:
            parts.append(attend_paged(chunks, q_thd[n : self.real], keys, values, self.chunk_table))
        return self._joined(parts, q_thd)

    def _asked(self, group: int) -> tuple[Asked | None, Asked | None]:
        """What decodes, and chunks; made once for all layers."""
        from megatron_ring.model.exact_attention import Asked

        if self._exactly is None:
            decode = Asked.of_decoding(self.decode.lengths, group) if self.decoding else None
            chunks = Asked.of_chunks(self.chunk_ends, self.chunks, group, self.positions.device) if self.chunks else None
            self._exactly = (decode, chunks)
        return self._exactly

    def _joined(self, parts: list[torch.Tensor], q_thd: torch.Tensor) -> torch.Tensor:
        """The parts one after another, zeros for the padding behind them."""
        if self.real < q_thd.shape[0]:
            parts.append(torch.zeros_like(q_thd[self.real :]))
        return parts[0] if len(parts) == 1 else torch.cat(parts)


class DecodeAttention:
    """One query for each sequence, at its last position. For all layers of a step.

    Args:
        block_table: int32 [N, columns].
        lengths: int [N], tokens of each sequence.
        longest: the largest of them.
    """

    def __init__(self, block_table: torch.Tensor, lengths: torch.Tensor, longest: int) -> None:
        self.block_table, self.lengths, self.longest = block_table, lengths, longest
        self.kernel = "triton" if lengths.is_cuda and importlib.util.find_spec("triton") is not None else "sdpa"
        self._rows_ngl: torch.Tensor | None = None

    def __call__(self, q_nhd: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """q [N, heads, d]; keys and values [pages, page_size, KV heads, d], the last tokens included -> [N, heads, d]."""
        if self.kernel == "triton":
            from megatron_ring.sampler.decode_triton import attend_decode

            return attend_decode(q_nhd, keys, values, self.block_table, self.lengths, self.longest)
        if self._rows_ngl is None:
            self._rows_ngl = _rows_of(self.block_table, keys.shape[1], keys.shape[2], self.longest)
            seen = torch.arange(self.longest, device=self.lengths.device) < self.lengths[:, None]
            self._mask = seen[:, None, None, :]
        k_ngld, v_ngld = (_gather(x, self._rows_ngl) for x in (keys, values))
        # The queries of one KV group stand where a sequence's queries would: no key or value is repeated.
        q_ngqd = q_nhd.unflatten(1, (keys.shape[2], -1))
        return F.scaled_dot_product_attention(q_ngqd, k_ngld, v_ngld, attn_mask=self._mask).flatten(1, 2)


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
        rows_ngl = _rows_of(row[None], keys.shape[1], keys.shape[2], end)
        k_ngld, v_ngld = _gather(keys, rows_ngl), _gather(values, rows_ngl)
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


def _rows_of(block_table: torch.Tensor, page_size: int, heads: int, longest: int) -> torch.Tensor:
    """int32 [N, KV heads, longest]: where each head's positions lie among the heads of all tokens of all pages."""
    token = torch.arange(page_size, dtype=torch.int32, device=block_table.device)
    head = torch.arange(heads, dtype=torch.int32, device=block_table.device)
    token_nl = (block_table[:, : pages_for(longest, page_size), None] * page_size + token).flatten(1)[:, :longest]
    return token_nl[:, None, :] * heads + head[:, None]


def _gather(pages: torch.Tensor, rows_ngl: torch.Tensor) -> torch.Tensor:
    """[pages, page_size, KV heads, d] -> [N, KV heads, longest, d]: contiguous, which makes torch's attention on a CPU up to
    three times as fast, for one copy."""
    return pages.flatten(0, 2).index_select(0, rows_ngl.flatten()).unflatten(0, rows_ngl.shape)
