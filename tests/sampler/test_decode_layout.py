"""Decoding through its layout, in Triton's kernels: keys and values on their way into the cache, and the parts of a context.
On the GPU where there is one and in Triton's interpreter elsewhere."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

CUDA = torch.cuda.is_available()
pytest.importorskip("triton", reason="Triton is not installed")

from megatron_ring.config.presets import RING_TINY  # noqa: E402
from megatron_ring.model.kernels import rope_triton  # noqa: E402
from megatron_ring.model.rope import rope_tables  # noqa: E402
from megatron_ring.sampler import decode_triton  # noqa: E402
from megatron_ring.sampler.attention import DecodeAttention, DecodeLayout  # noqa: E402
from megatron_ring.sampler.cache import CacheSize, PagedCache  # noqa: E402
from tests.sampler.test_paged_attention import pages_of, plain  # noqa: E402

DEVICE = torch.device("cuda" if CUDA else "cpu")
DTYPES = st.sampled_from([torch.float32, torch.float16, torch.bfloat16])


def cache_of(pages: int, page_size: int, table: torch.Tensor, groups: int, d: int, dtype: torch.dtype) -> PagedCache:
    """Two layers with something everywhere, as if pages had been used before."""
    model: Any = SimpleNamespace(
        local_layers=range(2),
        ring_config=replace(RING_TINY, num_attention_heads=groups, num_key_value_heads=groups, head_dim=d),
        parameters=lambda: iter([torch.empty(0, dtype=dtype)]),
    )
    context: Any = SimpleNamespace(device=DEVICE, config=SimpleNamespace(tensor=1))
    cache = PagedCache(CacheSize(pages, page_size, *table.shape), model, context)
    generator = torch.Generator().manual_seed(1)
    for whole in (cache.keys, cache.values):
        whole.copy_(torch.randn(whole.shape, generator=generator))
    cache.table.copy_(table)
    return cache


@st.composite
def rows(draw: st.DrawFn, page_size: int, columns: int) -> tuple[int, int]:
    """A row's position and the end of what it may write: it may be no sequence (0), or be behind its end."""
    end = columns * page_size
    position = draw(st.integers(0, end - 1))
    writable = draw(st.one_of(st.just(0), st.integers(1, end), st.just(position), st.just(end)))
    return (0, 0) if writable == 0 else (position, writable)


@given(st.data(), st.integers(1, 3), st.integers(1, 5), st.sampled_from([2, 8, 24, 48, 128]), DTYPES, st.booleans())
@settings(max_examples=40, deadline=None)
def test_keys_and_values_go_where_two_kernels_would_put_them(
    data: st.DataObject, groups: int, queries: int, d: int, dtype: torch.dtype, exact: bool
) -> None:
    page_size, columns = data.draw(st.sampled_from([1, 4, 16])), data.draw(st.integers(1, 3))
    drawn = data.draw(st.lists(rows(page_size, columns), min_size=1, max_size=6))
    n = len(drawn)
    pages = data.draw(st.permutations(range(1, n * columns + 4)))
    order = torch.tensor(data.draw(st.permutations(range(n))), device=DEVICE)  # rows of the block table
    table = torch.tensor(pages[: n * columns], dtype=torch.int32, device=DEVICE).view(n, columns)
    positions, writable = torch.tensor(drawn, device=DEVICE).unbind(1)
    generator = torch.Generator().manual_seed(n)
    qkv = torch.randn(n, groups, queries + 2, d, generator=generator).to(DEVICE, dtype)
    rope = rope_tables(positions, d, 10_000.0)
    caches, outs = [], []
    for fused in (False, True):
        cache = cache_of(n * columns + 3, page_size, table, groups, d, dtype)
        layout = DecodeLayout(positions, order, writable, columns * page_size, cache)
        layout.decode.kernel = "triton"
        if fused:
            outs.append(layout.attend_unsplit(2, qkv, rope, exact))
        else:
            q, k, v = qkv.new_empty(n, groups * queries, d), qkv.new_empty(n, groups, d), qkv.new_empty(n, groups, d)
            rope_triton.split(qkv, q, k, v, *rope, backward=False)
            before = cache.keys.clone(), cache.values.clone()
            outs.append((layout.attend_exactly if exact else layout.attend)(2, q, k, v))
        caches.append((cache.keys, cache.values))
    for old, new, kept, fresh in zip(*caches, before, (k, v), strict=True):
        assert torch.equal(old[:, 1:], new[:, 1:])
        for row, (position, end) in enumerate(drawn):  # what it should be, without any of it
            if position < end:
                page = int(table[order[row], position // page_size])
                kept[1, page, position % page_size] = fresh[row]
        assert torch.equal(new[:, 1:], kept[:, 1:])  # page 0 is scrap
    if CUDA or dtype is not torch.bfloat16:  # the interpreter's products know no bf16
        assert torch.equal(outs[0], outs[1])


LENGTHS = st.lists(st.one_of(st.just(0), st.integers(1, 64), st.integers(0, 400)), min_size=1, max_size=6)


@given(LENGTHS, st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_parts_are_listed_in_order(lengths: list[int], kv_heads: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode_triton, "SPLIT", 64)
        listed = decode_triton.list_parts(torch.tensor(lengths, device=DEVICE), 400, kv_heads)
    assert listed is not None
    wanted = [row * 7 + part for row, length in enumerate(lengths) for part in range(max(1, -(-length // 64)))]
    assert listed.items[: 1 + len(wanted)].tolist() == [len(wanted), *wanted]
    assert listed.done.shape == (len(lengths), kv_heads) and not listed.done.any()


def test_a_context_of_one_part_has_no_list() -> None:
    lengths = torch.tensor([1, decode_triton.SPLIT], device=DEVICE)
    assert decode_triton.list_parts(lengths, decode_triton.SPLIT, 2) is None
    assert decode_triton.list_parts(lengths, decode_triton.SPLIT + 1, 2) is not None


@given(LENGTHS, st.sampled_from([(4, 2, 16), (3, 1, 24), (6, 3, 8)]), st.sampled_from([1, 5, 4096]))
@settings(max_examples=12, deadline=None)
def test_parts_are_joined_alike_however_programs_share_them(
    lengths: list[int], shape: tuple[int, int, int], programs: int
) -> None:
    """Bit by bit as each sequence alone; and as float64 has it."""
    heads, groups, d = shape
    keys, values, table = (x.to(DEVICE) for x in pages_of(lengths, 16, groups, d, torch.float32, seed=3))
    q = torch.randn(len(lengths), heads, d, generator=torch.Generator().manual_seed(2)).to(DEVICE)
    counts = torch.tensor(lengths, device=DEVICE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode_triton, "SPLIT", 64)
        whole = DecodeAttention(table, counts, 500)
        whole.kernel = "triton"
        alone = []
        for row, length in enumerate(lengths):
            one = DecodeAttention(table[row : row + 1], counts[row : row + 1], max(1, length))
            one.kernel = "triton"
            alone.append(one(q[row : row + 1], keys, values)[0])
        patch.setattr(decode_triton, "PROGRAMS", programs)
        for _ in range(3):  # layers
            together = whole(q, keys, values)
            assert torch.equal(together, torch.stack(alone))
    for row, length in enumerate(lengths):
        wanted = plain(q[row : row + 1].cpu(), keys.cpu(), values.cpu(), table[row].cpu(), length)[0] if length else 0.0
        assert (together[row].cpu() - wanted).abs().max() < 1e-5
