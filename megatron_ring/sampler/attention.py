"""Attention over the paged KV cache, and the layout through which the model uses it.

`DecodeAttention` and `ChunkAttention` are the two seams where kernels go. On CUDA decoding has one in Triton and chunks take
FlashAttention; otherwise torch's SDPA gets gathered pages. torch's own `varlen_attn` has a block table in torch 2.13, not in
2.11; it has not been tried in their place.

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
from megatron_ring.parallel.device import moved_to, upload
from megatron_ring.sampler.cache import PagedCache
from megatron_ring.sampler.pages import pages_for

if TYPE_CHECKING:
    from megatron_ring.model.exact_attention import Asked


class PagedLayout(TokenLayout):
    """A step of the sampler: first one token for each of the sequences that decode, then chunks of prompts (those that begin
    their sequences before the others), then padding.

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
        self._exactly: list[tuple[slice, Asked, torch.Tensor]] = []
        self.cache, self.rows, self.real, self.chunks = cache, rows, real, chunks
        self.slots = cache.slots(rows, positions)
        self.slots[real:] = 0  # the scrap page
        n = self.decoding = len(ends) - len(chunks)
        self.chunk_ends = ends[n:]
        if n:
            longest = max(ends[:n])
            table = cache.table[rows[:n], : pages_for(longest, cache.page_size)]
            self.decode = DecodeAttention(table, positions[:n] + 1, longest)
        # Chunks that begin their sequences need no cache: they attend as in training.
        fresh = sum(count == end for count, end in zip(chunks, ends[n:], strict=True))
        self.fresh_end = n + sum(chunks[:fresh])
        self.fresh = self.later = None
        if fresh:
            # FlashAttention on CUDA: cuDNN plans anew for every shape, and a sampler's are many.
            kernel = "flash" if positions.is_cuda and cache.keys.dtype.itemsize == 2 else None
            self.fresh = PackedLayout(positions[n : self.fresh_end], chunks[:fresh], kernel)
        if fresh < len(chunks):
            counts = chunks[fresh:]
            first = [self.fresh_end + before for before in accumulate(counts[:-1], initial=0)]
            table = cache.table[_picked(rows, first), : pages_for(max(ends[n + fresh :]), cache.page_size)]
            self.later = ChunkAttention(table, ends[n + fresh :], counts)

    def attend(self, layer: int, q_thd: torch.Tensor, k_tgd: torch.Tensor, v_tgd: torch.Tensor) -> torch.Tensor:
        self.cache.write(layer, self.slots, k_tgd, v_tgd)
        keys, values = self.cache.of_layer(layer)
        n, end = self.decoding, self.fresh_end
        parts: list[torch.Tensor] = []
        if n:
            parts.append(self.decode(q_thd[:n], keys, values))
        if self.fresh is not None:
            parts.append(self.fresh.attend(layer, *(x[n:end] for x in (q_thd, k_tgd, v_tgd))))
        if self.later is not None:
            parts.append(self.later(q_thd[end : self.real], keys, values))
        return self._joined(parts, q_thd)

    def attend_exactly(self, layer: int, q_thd: torch.Tensor, k_tgd: torch.Tensor, v_tgd: torch.Tensor) -> torch.Tensor:
        from megatron_ring.model.exact_attention import Asked, attend_paged

        self.cache.write(layer, self.slots, k_tgd, v_tgd)
        keys, values = self.cache.of_layer(layer)
        n, group = self.decoding, q_thd.shape[1] // k_tgd.shape[1]
        if not self._exactly:  # for all layers
            if n:
                self._exactly.append((slice(n), Asked.of_decoding(self.decode.lengths, group), self.decode.block_table))
            if self.chunks:
                asked = Asked.of_chunks(self.chunk_ends, self.chunks, group, self.positions.device)
                first = [n + before for before in accumulate(self.chunks[:-1], initial=0)]
                self._exactly.append((slice(n, self.real), asked, self.cache.table[_picked(self.rows, first)]))
        parts = [attend_paged(asked, q_thd[part], keys, values, table) for part, asked, table in self._exactly]
        return self._joined(parts, q_thd)

    def _joined(self, parts: list[torch.Tensor], q_thd: torch.Tensor) -> torch.Tensor:
        """The parts one after another, zeros for the padding behind them."""
        if self.real < q_thd.shape[0]:
            parts.append(torch.zeros_like(q_thd[self.real :]))
        return parts[0] if len(parts) == 1 else torch.cat(parts)


class DecodeLayout(TokenLayout):
    """One token for each of N rows of the block table; nothing here waits for the device or depends on its numbers, so that
    a CUDA graph can hold it.

    Args:
        positions: int64 [N].
        rows: int64 [N], of the block table.
        writable: int64 [N], positions from here on are nobody's: what is computed there is scrap. 0: not a sequence.
        longest: no position that counts is as large.
    """

    alike = True

    def __init__(
        self, positions: torch.Tensor, rows: torch.Tensor, writable: torch.Tensor, longest: int, cache: PagedCache
    ) -> None:
        super().__init__(positions)
        self._exactly: Asked | None = None
        self.cache = cache
        columns = min(pages_for(longest, cache.page_size), cache.table.shape[1])
        if positions.is_cuda:
            from megatron_ring.sampler import turn_triton

            table, self.slots, lengths, self.idle = turn_triton.find_places(cache, rows, positions, writable, columns)
        else:
            table = cache.table.index_select(0, rows)[:, :columns]
            column = (positions // cache.page_size).clamp_max(columns - 1)
            slots = table.gather(1, column[:, None])[:, 0] * cache.page_size + positions % cache.page_size
            self.idle = positions >= writable
            self.slots = slots.masked_fill(self.idle, 0).long()
            lengths = torch.minimum(positions + 1, writable)
        self.decode = DecodeAttention(table, lengths, min(longest, columns * cache.page_size))

    def attend(self, layer: int, q_thd: torch.Tensor, k_tgd: torch.Tensor, v_tgd: torch.Tensor) -> torch.Tensor:
        self.cache.write(layer, self.slots, k_tgd, v_tgd)
        return self.decode(q_thd, *self.cache.of_layer(layer))

    def attend_exactly(self, layer: int, q_thd: torch.Tensor, k_tgd: torch.Tensor, v_tgd: torch.Tensor) -> torch.Tensor:
        self.cache.write(layer, self.slots, k_tgd, v_tgd)
        return self._attend_exactly(layer, q_thd)

    def attend_unsplit(
        self, layer: int, qkv_tgpd: torch.Tensor, rope: tuple[torch.Tensor, torch.Tensor], exact: bool
    ) -> torch.Tensor:
        """Keys and values go straight into the cache where kernels run, and usually the same one attends."""
        if self.decode.kernel != "triton":
            return super().attend_unsplit(layer, qkv_tgpd, rope, exact)
        keys, values = self.cache.of_layer(layer)
        if not exact:
            return self.decode.turn_and_attend(qkv_tgpd, rope, self.slots, keys, values)
        from megatron_ring.model.kernels import rope_triton

        tokens, groups, per_group, d = qkv_tgpd.shape
        q_thd = qkv_tgpd.new_empty(tokens, groups * (per_group - 2), d)
        k_sgd, v_sgd = keys.flatten(0, 1), values.flatten(0, 1)
        rope_triton.split(qkv_tgpd.contiguous(), q_thd, k_sgd, v_sgd, *rope, backward=False, slots=self.slots)
        return self._attend_exactly(layer, q_thd)

    def _attend_exactly(self, layer: int, q_thd: torch.Tensor) -> torch.Tensor:
        from megatron_ring.model.exact_attention import Asked, attend_paged

        keys, values = self.cache.of_layer(layer)
        if self._exactly is None:
            self._exactly = Asked.of_decoding(self.decode.lengths, q_thd.shape[1] // keys.shape[2])
        return attend_paged(self._exactly, q_thd, keys, values, self.decode.block_table)


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

    def turn_and_attend(
        self, qkv_ngpd: torch.Tensor, rope: tuple[torch.Tensor, torch.Tensor], slots: torch.Tensor, keys: torch.Tensor,
        values: torch.Tensor,
    ) -> torch.Tensor:  # fmt: skip
        """As `decode_triton.turn_and_attend` has it."""
        from megatron_ring.sampler import decode_triton

        where = (self.block_table, self.lengths, self.longest)
        return decode_triton.turn_and_attend(qkv_ngpd, rope, slots, keys, values, *where)


class ChunkAttention:
    """The last counts[n] positions of each sequence, causally. For all layers of a step.

    Args:
        block_table: int32 [N, columns].
        ends: tokens of each sequence, those that ask included.
        counts: of them those that ask.
    """

    def __init__(self, block_table: torch.Tensor, ends: Sequence[int], counts: Sequence[int]) -> None:
        self.block_table, self.ends, self.counts = block_table, ends, counts
        self._bounds: torch.Tensor | None = None

    def __call__(self, q_thd: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """q [T, heads, d], the queries of the sequences one after another; keys and values [pages, page_size, KV heads, d],
        these tokens included -> [T, heads, d]."""
        if q_thd.is_cuda and q_thd.dtype.itemsize == 2:
            return self._flash(q_thd, keys, values)
        out, start = [], 0
        for row, end, count in zip(self.block_table, self.ends, self.counts, strict=True):
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

    def _flash(self, q_thd: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """FlashAttention-2 over the sequences' keys and values, copied one after another; their ends are aligned."""
        if self._bounds is None:
            device, size = q_thd.device, keys.shape[1]
            self._bounds = upload([[0, *accumulate(self.counts)], [0, *accumulate(self.ends)]], device, torch.int32)
            where = torch.cat([torch.arange(end) + n * self.block_table.shape[1] * size for n, end in enumerate(self.ends)])
            where = moved_to(where, device)
            self._slots = self.block_table.flatten()[where // size].long() * size + where % size
        k_lgd, v_lgd = (x.flatten(0, 1).index_select(0, self._slots) for x in (keys, values))
        return torch.ops.aten._flash_attention_forward(
            q_thd, k_lgd, v_lgd, self._bounds[0], self._bounds[1], max(self.counts), max(self.ends), 0.0, True, False
        )[0]


def _picked(x: torch.Tensor, places: Sequence[int]) -> torch.Tensor:
    """`x[places]`, without the wait for the device that indexing by a list brings."""
    return x.index_select(0, upload(places, x.device))


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
