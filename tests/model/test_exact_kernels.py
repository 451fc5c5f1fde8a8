"""The kernels of --exact against float64, and against themselves: a row alone has the bits that it has among others. On the
GPU where there is one (in bf16, too) and in Triton's interpreter elsewhere."""

from __future__ import annotations

import pytest
import torch

CUDA = torch.cuda.is_available()
pytest.importorskip("triton", reason="Triton is not installed")

from megatron_ring.model import exact_attention  # noqa: E402
from megatron_ring.model.attention_kernels import PackedAttention  # noqa: E402
from megatron_ring.model.exact_attention import Asked, attend_packed, attend_paged  # noqa: E402
from megatron_ring.model.kernels import (  # noqa: E402
    exact_mm_triton,
    norm_triton,
    rope_triton,
    router_triton,
    rows_triton,
    swiglu_triton,
    vocabulary_triton,
)
from tests.sampler.test_paged_attention import pages_of, plain  # noqa: E402

DEVICE = torch.device("cuda" if CUDA else "cpu")
# The interpreter multiplies bf16 as integers.
ALLOWED = {torch.float32: 1e-5, torch.float16: 2e-3, **({torch.bfloat16: 1e-2} if CUDA else {})}
DTYPES = list(ALLOWED)
TILES = exact_mm_triton.TILES


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed + 1000 * len(shape))
    return torch.randn(shape, generator=generator).to(DEVICE, dtype)


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Relative, by norms; NaN never passes as it compares false."""
    return ((found.double() - wanted.double()).norm() / wanted.double().norm().clamp(min=1e-30)).item()


def tiles_for(dtype: torch.dtype) -> list[exact_mm_triton.Tile]:
    """Those that fit: tiles are made for 16 bit."""
    if CUDA and dtype is torch.float32:
        return [exact_mm_triton.Tile(64, 64, 32, warps=4, stages=2, programs=1)]
    return list(TILES)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("columns", "depth", "bias"), [(24, 40, False), (300, 200, True), (8, 8, True)])
def test_product(columns: int, depth: int, bias: bool, dtype: torch.dtype) -> None:
    x, w = draw(261, depth, dtype=dtype), draw(columns, depth, dtype=dtype, seed=1)
    b = draw(columns, dtype=dtype, seed=2) if bias else None
    wanted = x.double() @ w.double().t() + (0 if b is None else b.double())
    for tile in tiles_for(dtype):
        found = exact_mm_triton.exact_mm(x, w, b, tile=tile)
        assert found.dtype is dtype and error(found, wanted) < ALLOWED[dtype]
        for start, count in ((0, 1), (1, 64), (63, 130), (260, 1)):
            rows = slice(start, start + count)
            assert torch.equal(exact_mm_triton.exact_mm(x[rows], w, b, tile=tile), found[rows])
        precise = exact_mm_triton.exact_mm(x, w, b, torch.float32, tile)
        assert precise.dtype is torch.float32 and error(precise, wanted) < 1e-5
    assert exact_mm_triton.exact_mm(x[:0], w, b).shape == (0, columns)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("counts", [[3, 0, 140, 64, 1, 0], [0, 0, 5], [300], [0] * 7 + [1]])
def test_grouped_product(counts: list[int], dtype: torch.dtype) -> None:
    """What lies behind the last expert's rows is nobody's and stays out."""
    columns, depth, rows = 72, 48, sum(counts)
    x, w = draw(rows + 2, depth, dtype=dtype), draw(len(counts), columns, depth, dtype=dtype, seed=1)
    x[rows:] = torch.inf
    ends = torch.tensor(counts, device=DEVICE).cumsum(0).int()
    for tile in tiles_for(dtype):
        found = exact_mm_triton.exact_grouped_mm(x, w, ends, tile)
        for expert, count in enumerate(counts):
            end = int(ends[expert])
            mine, part = found[end - count : end], x[end - count : end]
            assert torch.equal(mine, exact_mm_triton.exact_mm(part, w[expert], tile=tile))
            assert count == 0 or error(mine, part.double() @ w[expert].double().t()) < ALLOWED[dtype]


def test_tiles_are_chosen_for_rows_and_columns() -> None:
    assert exact_mm_triton.tile_for(16_384, 3072, 1, 2) == exact_mm_triton.WIDE
    assert exact_mm_triton.tile_for(49_152, 2816, 64, 2) == exact_mm_triton.WIDE
    assert exact_mm_triton.tile_for(768, 2816, 64, 2) == exact_mm_triton.NARROW
    assert exact_mm_triton.tile_for(128, 3072, 1, 2) == exact_mm_triton.NARROW
    assert exact_mm_triton.tile_for(1, 3072, 1, 2) == exact_mm_triton.THIN
    assert exact_mm_triton.tile_for(16_384, 3072, 1, 4) != exact_mm_triton.WIDE  # its results would not fit in fp32


def packed_of(pages: torch.Tensor, table: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    """Keys or values of all sequences one after another."""
    size = pages.shape[1]
    return torch.stack([pages[int(table[s, p // size]), p % size] for s, n in enumerate(lengths) for p in range(n)])


SHAPES = [
    # lengths, page size, query heads, KV heads, d
    ([150, 1, 64, 33], 16, 4, 1, 32),
    ([129, 65], 8, 6, 2, 24),
    ([70, 3], 7, 5, 1, 16),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_attention(shape: tuple, dtype: torch.dtype) -> None:
    """Packed, over pages, in chunks and one by one: the same bits; and right."""
    lengths, page, heads, groups, d = shape
    keys, values, table = (x.to(DEVICE) for x in pages_of(lengths, page, groups, d, dtype, seed=3))
    k, v, group = packed_of(keys, table, lengths), packed_of(values, table, lengths), heads // groups
    q = draw(sum(lengths) + 3, heads, d, dtype=dtype)
    asked = Asked.of_chunks(lengths, lengths, group, DEVICE)
    padded = [torch.cat((x, torch.full_like(x[:3], torch.nan))) for x in (k, v)]
    out = attend_packed(asked, PackedAttention(lengths, DEVICE, dtype, d), q, *padded)
    assert not out[-3:].any()
    for row, (mine, asks, end) in enumerate(zip(out[:-3].split(lengths), q[:-3].split(lengths), lengths, strict=True)):
        assert error(mine, plain(asks.cpu(), keys.cpu(), values.cpu(), table.cpu()[row], end).to(DEVICE)) < ALLOWED[dtype]
    last = torch.tensor(lengths, device=DEVICE).cumsum(0) - 1
    counts = torch.tensor([*lengths, 0], device=DEVICE)
    wide = torch.cat((table, torch.zeros_like(table[:1])))
    one_each = attend_paged(Asked.of_decoding(counts, group), q[[*last.tolist(), 0]], keys, values, wide)
    assert torch.equal(one_each[:-1], out[last]) and not one_each[-1].any()
    for asks in ([1] * len(lengths), [max(1, n // 3) for n in lengths], lengths):
        chunks = [x[n - count : n] for x, n, count in zip(q[:-3].split(lengths), lengths, asks, strict=True)]
        wanted = [x[n - count : n] for x, n, count in zip(out[:-3].split(lengths), lengths, asks, strict=True)]
        found = attend_paged(Asked.of_chunks(lengths, asks, group, DEVICE), torch.cat(chunks), keys, values, table)
        assert torch.equal(found, torch.cat(wanted))


def test_gradient_of_attention() -> None:
    lengths, heads, groups, d = [40, 7], 4, 2, 16
    inputs = [draw(50, n, d, seed=n).requires_grad_() for n in (heads, groups, groups)]
    usual = PackedAttention(lengths, DEVICE, torch.float32, d)
    out = attend_packed(Asked.of_chunks(lengths, lengths, 2, DEVICE), usual, *inputs)
    weights = draw(50, heads, d, seed=9)
    found = torch.autograd.grad(out, inputs, weights)
    wanted = torch.autograd.grad(usual(*inputs), inputs, weights)
    assert all(error(a, b) < 1e-6 for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("group", [1, 2, 3, 4, 5, 7, 8, 64])
def test_queries_of_a_program_end_in_one_block_of_keys(group: int) -> None:
    for rows in (exact_attention.kernel.MANY, exact_attention.kernel.ONE):
        step = exact_attention.kernel.positions_of(rows, group)
        assert step >= 1 and step * group <= rows.rows and exact_attention.kernel.KEYS % step == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernels_that_go_row_by_row(dtype: torch.dtype) -> None:
    """The others of a forward pass. Training's may do more (sums of the router's losses) than sampling's."""
    rows, width, experts = 77, 96, 12
    x, r, w = draw(rows, width, dtype=dtype), draw(rows, width, dtype=dtype, seed=1), draw(width, dtype=dtype, seed=2)
    logits, scale = draw(rows, experts, seed=3), draw(rows, seed=4)
    qkv, angle = draw(rows, 2, 4, 16, dtype=dtype, seed=5), draw(rows, 1, 16, seed=6)
    index = torch.randint(rows, (rows, 3), generator=torch.Generator().manual_seed(7)).to(DEVICE)
    columns = index[:, 0].contiguous()
    both, wide = (x.repeat(1, 2), r.repeat(1, 25))

    def forward(part: slice, training: bool) -> list[torch.Tensor]:
        q, k, v = (qkv.new_empty(len(x[part]), n, 16) for n in (4, 2, 2))
        rope_triton.split(qkv[part], q, k, v, angle[part].cos(), angle[part].sin(), backward=False)
        return [
            *norm_triton.forward(x[part], r[part], w, 1e-6), norm_triton.forward(x[part], None, w, 1e-6)[0],
            *router_triton.forward(logits[part], 4, None, training)[:2],
            router_triton.forward(logits[part], 1, None, training)[0],
            swiglu_triton.forward(both[part], scale[part]), swiglu_triton.forward(both[part], None),
            rows_triton.combine(x, index[part], (r[part], x[part])), q, k, v,
            *vocabulary_triton.statistics(wide[part], columns[part], 0.7),
            *vocabulary_triton.finished_statistics(wide[part], columns[part], 0.7),
        ]  # fmt: skip

    together = forward(slice(0, rows), True)
    for start, count in ((0, 1), (76, 1), (30, 34)):
        part = slice(start, start + count)
        for alone, among in zip(forward(part, False), together, strict=True):
            assert torch.equal(alone, among[part])
