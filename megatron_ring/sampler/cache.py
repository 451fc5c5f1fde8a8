"""The paged KV cache of one process: keys and values of its layers and KV heads, and the block table.

Suffixes: t tokens, g KV heads, d head dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from megatron_ring.config.declarations import SPARE_PAGES, kv_bytes
from megatron_ring.config.sampling import SamplingConfig
from megatron_ring.errors import RequestError, UserError
from megatron_ring.model.ring_model import RingModel
from megatron_ring.parallel import collectives
from megatron_ring.parallel.context import ParallelContext
from megatron_ring.parallel.device import free_memory, upload
from megatron_ring.sampler.pages import pages_for
from megatron_ring.sampler.requests import GenerationRequest
from megatron_ring.sampler.step import Step

CPU_BYTES = 2 << 30  # of a cache whose size nobody stated


@dataclass(frozen=True)
class CacheSize:
    """How large a cache is asked for: pages (scrap not counted), tokens of a page, rows and columns of the block table."""

    pages: int
    page_size: int
    rows: int
    columns: int


class PagedCache:
    """Page p of layer l is keys[l, p] and values[l, p], each [page_size, KV heads, d]; page 0 is scrap.

    Attributes:
        keys, values: [layers, pages + 1, page_size, KV heads, d].
        table: int32 [rows, columns]; the page of positions column * page_size and on, of the sequence of a row.
    """

    def __init__(self, size: CacheSize, model: RingModel, context: ParallelContext) -> None:
        self.size, self.page_size = size, size.page_size
        self.first_layer = model.local_layers.start
        config, device, dtype = model.ring_config, context.device, next(model.parameters()).dtype
        heads = config.num_key_value_heads // context.config.tensor
        shape = (len(model.local_layers), size.pages + 1, size.page_size, heads, config.head_dim)
        # Zeros: a page's unused part is read and masked, and 0 * NaN would be NaN.
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.table = torch.zeros(size.rows, size.columns, dtype=torch.int32, device=device)

    @property
    def bytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes

    def serves(self, size: CacheSize) -> bool:
        """Whether this cache is at least as large."""
        mine = self.size
        enough = mine.pages >= size.pages and mine.rows >= size.rows and mine.columns >= size.columns
        return enough and mine.page_size == size.page_size

    def prepare(self, step: Step) -> None:
        """Do what `step` wants done before its forward pass: copy pages, change the block table."""
        if step.copies:
            target, source = self._indices(list(step.copies)), self._indices(list(step.copies.values()))
            for pages in (self.keys, self.values):
                pages[:, target] = pages[:, source]
        if step.table:
            rows, columns, pages_ = self._indices(step.table).unbind(1)
            self.table[rows, columns] = pages_.int()

    def slots(self, rows: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """int64 [T]: where position t of the sequence in row t lies, among the tokens of all pages."""
        pages = self.table[rows, positions // self.page_size].long()
        return pages * self.page_size + positions % self.page_size

    def write(self, layer: int, slots: torch.Tensor, k_tgd: torch.Tensor, v_tgd: torch.Tensor) -> None:
        """Store keys and values of the 1-based global `layer`."""
        keys, values = self.of_layer(layer)
        if keys.is_cuda:
            from megatron_ring.sampler import decode_triton

            decode_triton.write(keys, values, slots, k_tgd, v_tgd)
            return
        keys.flatten(0, 1).index_copy_(0, slots, k_tgd)
        values.flatten(0, 1).index_copy_(0, slots, v_tgd)

    def of_layer(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [pages + 1, page_size, KV heads, d] of the 1-based global `layer`."""
        local = layer - 1 - self.first_layer
        return self.keys[local], self.values[local]

    def _indices(self, values: Sequence) -> torch.Tensor:
        return upload(values, self.keys.device)


def size_for(
    requests: Sequence[GenerationRequest], model: RingModel, context: ParallelContext, sampling: SamplingConfig, held: int
) -> CacheSize:
    """What `requests` need, within --sampling.kv-tokens or within what memory there is. The same on all ranks of a replica,
    which call it together.

    Args:
        held: bytes of a cache that makes way for the new one.

    Raises:
        UserError: the longest request does not fit.
    """
    size = sampling.page_size
    longest = sorted((pages_for(len(r.prompt_tokens) + r.max_new_tokens, size) for r in requests), reverse=True)
    columns = max(longest, default=1)
    most, limit = _most_pages(model, context, sampling, held)
    rows = sampling.rows(context.device.type, len(requests), most * size, columns * size)
    if most < columns:
        raise UserError(_too_long(most, columns, limit, sampling))
    return CacheSize(min(sum(longest[:rows]) + SPARE_PAGES * rows, most), size, rows, columns)


def size_for_any(model: RingModel, context: ParallelContext, sampling: SamplingConfig, held: int) -> CacheSize:
    """A cache for requests that are not known yet: --sampling.kv-tokens, or what memory there is, but no more than
    --sampling.max-batch requests of the model's longest could use. Otherwise as `size_for`.

    Raises:
        UserError: there is no room for a page.
    """
    columns = pages_for(model.ring_config.max_positions, sampling.page_size)
    most, limit = _most_pages(model, context, sampling, held)
    if most < 1:
        raise UserError(_too_long(most, 1, limit, sampling))
    device = context.device.type
    # Requests that are not known are taken to be shorter than the longest there could be.
    rows = sampling.rows(device, sampling.most_rows(device), most * sampling.page_size, columns * sampling.page_size // 4)
    pages = min(rows * (columns + SPARE_PAGES), most)
    return CacheSize(pages, sampling.page_size, rows, min(columns, pages))


def check_fits(request: GenerationRequest, size: CacheSize) -> None:
    """Raise `RequestError` where a cache of `size` does not hold `request` alone."""
    tokens = len(request.prompt_tokens) + request.max_new_tokens
    if pages_for(tokens, size.page_size) > size.columns:
        raise RequestError(
            f"a prompt of {len(request.prompt_tokens)} tokens and {request.max_new_tokens} new ones exceed the KV cache of "
            f"{size.columns * size.page_size}: raise --sampling.kv-tokens, or lower --sampling.max-new-tokens"
        )


def _most_pages(model: RingModel, context: ParallelContext, sampling: SamplingConfig, held: int) -> tuple[int, str]:
    """Pages that there may be, and what limits them, in words."""
    if sampling.kv_tokens is not None:
        return sampling.kv_tokens // sampling.page_size, f"--sampling.kv-tokens {sampling.kv_tokens}"
    itemsize = next(model.parameters()).itemsize
    page_bytes = sampling.page_size * kv_bytes(model.ring_config, context.config, len(model.local_layers), itemsize)
    free = free_memory()
    room = CPU_BYTES if free is None else held + int(free * sampling.kv_fraction)
    most = collectives.min_over_replica(room // page_bytes - 1, context.device)
    return most, f"a KV cache of {room / 2**30:.1f} GiB"


def _too_long(most: int, columns: int, limit: str, sampling: SamplingConfig) -> str:
    mend = "lower --sampling.max-new-tokens"
    if sampling.kv_tokens is not None:
        mend = f"raise it to {columns * sampling.page_size} at least, or {mend}"
    size = sampling.page_size
    return f"{limit} holds {max(0, most)} pages of {size} tokens and the longest request needs {columns}: {mend}"
