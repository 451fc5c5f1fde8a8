"""Decoding through its layout, in Triton's kernels: keys and values on their way into the cache.
On the GPU where there is one and in Triton's interpreter elsewhere."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

CUDA = torch.cuda.is_available()
pytest.importorskip("triton", reason="Triton is not installed")

from megatron_ring.config.presets import RING_TINY  # noqa: E402
from megatron_ring.model.kernels import rope_triton  # noqa: E402
from megatron_ring.model.rope import rope_tables  # noqa: E402
from megatron_ring.sampler import decode_triton  # noqa: E402
from megatron_ring.sampler.attention import DecodeLayout  # noqa: E402
from megatron_ring.sampler.cache import CacheSize, PagedCache  # noqa: E402

DEVICE = torch.device("cuda" if CUDA else "cpu")
# On a GPU each example compiles its kernels: a search for the smallest one that fails would take hours.
PHASES = (Phase.explicit, Phase.generate) if CUDA else tuple(Phase)
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
@settings(max_examples=3 if CUDA else 25, deadline=None, phases=PHASES)
def test_keys_and_values_go_where_two_kernels_would_put_them(
    data: st.DataObject, groups: int, queries: int, d: int, dtype: torch.dtype, exact: bool
) -> None:
    page_size, columns = data.draw(st.sampled_from([1, 4, 16])), data.draw(st.integers(1, 3))
    drawn = data.draw(st.lists(rows(page_size, columns), min_size=1, max_size=6))
    n = len(drawn)
    pages = data.draw(st.permutations(range(1, n * columns + 4)))
    order = data.draw(st.permutations(range(n)))  # rows of the block table
    table = torch.tensor(pages[: n * columns], dtype=torch.int32, device=DEVICE).view(n, columns)
    check_one_kernel_against_two(drawn, order, table, page_size, (groups, queries, d), dtype, exact)


@pytest.mark.parametrize("columns", [16, 40])  # one part of a context, and more
@pytest.mark.parametrize("exact", [False, True])
def test_heads_of_ring_lite_go_there_too(columns: int, exact: bool) -> None:
    end = columns * 32
    drawn = [(0, 1), (31, end), (32, 33), (end - 1, end), (end // 2, end), (5, 5), (0, 0), (63, 64), (64, 65)]
    pages = torch.randperm(len(drawn) * columns, generator=torch.Generator().manual_seed(columns)) + 1
    table = pages.to(DEVICE, torch.int32).view(len(drawn), columns)
    order = list(reversed(range(len(drawn))))
    heads, dtype = ((4, 4, 128), torch.bfloat16) if CUDA else ((1, 4, 128), torch.float16)  # interpreting takes seconds
    check_one_kernel_against_two(drawn, order, table, 32, heads, dtype, exact)


def check_one_kernel_against_two(
    drawn: list[tuple[int, int]], order_of_rows: list[int], table: torch.Tensor, page_size: int, heads: tuple[int, int, int],
    dtype: torch.dtype, exact: bool,
) -> None:  # fmt: skip
    (groups, queries, d), (n, columns) = heads, table.shape
    order = torch.tensor(order_of_rows, device=DEVICE)
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


class Launched:
    """Stands for a kernel, and keeps the grids and the constants that it would be launched with."""

    def __init__(self) -> None:
        self.grids: list[tuple[int, ...]] = []
        self.constants: list[dict[str, Any]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        self.grids.append(grid)
        return lambda *_, **constants: self.constants.append(constants)


@pytest.mark.parametrize("longest", [1, 600])
def test_grids_have_room_for_very_many_sequences(longest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter takes any grid, and would need minutes for one that CUDA refuses: more than 65,535 of what is not the
    first number."""
    n, launched = 70_000, Launched()
    monkeypatch.setattr(decode_triton, "_attend_part", launched)
    monkeypatch.setattr(decode_triton, "_join_parts", launched)
    table, lengths = torch.zeros(n, 2, dtype=torch.int32, device=DEVICE), torch.zeros(n, dtype=torch.int64, device=DEVICE)
    pages = torch.zeros(1, 512, 2, 2, device=DEVICE)
    decode_triton.attend_decode(torch.zeros(n, 4, 2, device=DEVICE), pages, pages, table, lengths, longest)
    assert len(launched.grids) == (1 if longest == 1 else 2)
    assert all(grid[0] >= n and max(grid[1:]) <= 65_535 for grid in launched.grids)


def test_parts_are_joined_by_one_kernel_however_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled for two parts at a time it fuses a product that it rounds with room for four (heads of 64 or less): the
    bits of a sequence of two parts would depend on how long the others are. The interpreter fuses none."""
    launched = Launched()
    monkeypatch.setattr(decode_triton, "_join_parts", launched)
    lengths, table = torch.zeros(1, dtype=torch.int64, device=DEVICE), torch.zeros(1, 8, dtype=torch.int32, device=DEVICE)
    pages = torch.zeros(1, 512, 1, 2, device=DEVICE)
    for longest in (1000, 1500, 4000):
        decode_triton.attend_decode(torch.zeros(1, 1, 2, device=DEVICE), pages, pages, table, lengths, longest)
    first, *others = launched.constants
    assert len(others) == 2 and all(other == first for other in others)


@pytest.mark.skipif(not CUDA, reason="no GPU: kernels are not compiled")
@pytest.mark.parametrize("longest", [500, 2000])
def test_reading_further_ahead_changes_no_bit(longest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few programs have other stages than many."""
    generator = torch.Generator().manual_seed(7)
    draw = lambda *shape: torch.randn(shape, generator=generator).to(DEVICE, torch.bfloat16)  # noqa: E731
    pages, lengths = draw(257, 32, 4, 128), torch.tensor([longest, 1, 33, 64, 65, longest // 2, 100, 31], device=DEVICE)
    table = (torch.randperm(256, generator=generator)[: 8 * 32].view(8, 32).int() + 1).repeat(1, 2).to(DEVICE)
    q = draw(8, 16, 128)
    few = decode_triton.attend_decode(q, pages, pages, table, lengths, longest)
    monkeypatch.setattr(decode_triton, "FEW_PROGRAMS", 0)
    assert torch.equal(few, decode_triton.attend_decode(q, pages, pages, table, lengths, longest))


def test_few_programs_read_further_ahead_where_there_is_room() -> None:
    """Room for a program of an RTX 4090, an A100 and an H100."""
    for width, itemsize, wanted in ((128, 2, "yyy"), (256, 2, "nyy"), (128, 4, "nyy"), (256, 4, "nnn")):
        found = [decode_triton.stages_of(264, 16, width, itemsize, room << 10) for room in (99, 163, 227)]
        assert found == [decode_triton.FEW_STAGES if letter == "y" else decode_triton.STAGES for letter in wanted]
    assert decode_triton.stages_of(264, 16, 256, 4, None) == decode_triton.FEW_STAGES
    assert decode_triton.stages_of(265, 16, 128, 2, None) == decode_triton.STAGES
