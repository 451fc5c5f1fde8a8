"""Attention over pages against plain attention in float64: the reference written with torch, and the Triton kernel, on the
GPU where there is one and in Triton's interpreter elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")


def pages_of(
    lengths: list[int], page_size: int, heads: int, d: int, dtype: torch.dtype, seed: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Keys, values and a block table over shuffled pages. What no sequence reads is wild."""
    generator = torch.Generator().manual_seed(seed)
    columns = [-(-length // page_size) for length in lengths]
    count = sum(columns) + 3
    shape = (count, page_size, heads, d)
    keys, values = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    keys[0], values[0] = 1e4, 1e4
    free = (torch.randperm(count - 1, generator=generator) + 1).tolist()
    table = torch.zeros(len(lengths), max(columns, default=1) or 1, dtype=torch.int32)
    for row, many in enumerate(columns):
        for column in range(many):
            table[row, column] = free.pop()
    return keys, values, table


def plain(q_qhd: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, row: torch.Tensor, end: int) -> torch.Tensor:
    """The last queries of a sequence of `end` tokens, in float64."""
    count, heads, d = q_qhd.shape
    page_size, groups = keys.shape[1:3]
    where = [(int(row[p // page_size]), p % page_size) for p in range(end)]
    k, v = (torch.stack([x[page, offset] for page, offset in where]).double() for x in (keys, values))
    k, v = (x.repeat_interleave(heads // groups, dim=1) for x in (k, v))
    scores = torch.einsum("qhd,lhd->hql", q_qhd.double(), k) * d**-0.5
    seen = torch.arange(end)[None, :] <= torch.arange(end - count, end)[:, None]
    return torch.einsum("hql,lhd->qhd", scores.masked_fill(~seen, -torch.inf).softmax(-1), v)


SHAPES = [
    # lengths, page size, query heads, KV heads, d
    ([1, 7, 40, 16, 33], 16, 4, 2, 32),
    ([5, 1, 3], 1, 6, 2, 16),
    ([70, 64, 65], 32, 4, 4, 24),
    ([100], 128, 16, 1, 64),
    ([130, 96, 47], 48, 4, 2, 32),  # no whole number of blocks in a page
]
LONG = [([513, 512, 1, 1100], 32, 4, 1, 16), ([2049, 4200], 128, 2, 1, 8)]  # parts of 512, joined four at a time


def check_decode(
    attend: Callable[..., torch.Tensor], shape: tuple, dtype: torch.dtype, tolerance: float, device: torch.device
) -> None:
    lengths, page_size, heads, groups, d = shape
    keys, values, table = pages_of(lengths, page_size, groups, d, dtype, seed=len(lengths))
    q = torch.randn(len(lengths), heads, d, generator=torch.Generator().manual_seed(1)).to(dtype)
    given = (q, keys, values, table, torch.tensor(lengths))
    out = attend(*(x.to(device) for x in given), max(lengths)).cpu()
    assert out.shape == q.shape and out.dtype == dtype
    for row, length in enumerate(lengths):
        wanted = plain(q[row : row + 1], keys, values, table[row], length)[0]
        assert (out[row] - wanted).abs().max() < tolerance


@pytest.mark.parametrize("shape", [*SHAPES, *LONG])
def test_decoding(shape: tuple) -> None:
    from megatron_ring.sampler.attention import DecodeAttention

    def attend(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, *where: Any) -> torch.Tensor:
        return DecodeAttention(*where)(q, keys, values)

    check_decode(attend, shape, torch.float32, 1e-5, torch.device("cpu"))


@pytest.fixture
def attend_decode() -> Callable[..., torch.Tensor]:
    pytest.importorskip("triton", reason="Triton is not installed")
    from megatron_ring.sampler import decode_triton

    return decode_triton.attend_decode


@pytest.mark.parametrize("shape", [*SHAPES, *LONG])
def test_the_kernel_decodes(attend_decode: Callable[..., torch.Tensor], shape: tuple) -> None:
    check_decode(attend_decode, shape, torch.float32, 1e-5, DEVICE)
    check_decode(attend_decode, shape, torch.float16, 3e-3, DEVICE)
    if CUDA:  # the interpreter's products know no bf16
        check_decode(attend_decode, shape, torch.bfloat16, 2e-2, DEVICE)


@pytest.mark.parametrize("page_size", [16, 32, 128])
def test_weights_are_rounded_below_the_highest_of_64_positions(
    attend_decode: Callable[..., torch.Tensor], page_size: int
) -> None:
    """As in training, where FlashAttention-2 has 64 keys at a time: below another score they would be other numbers."""
    length, d = 64, 32
    keys, values, table = pages_of([length], page_size, 1, d, torch.float16, seed=8)
    q = torch.randn(1, 16, d, generator=torch.Generator().manual_seed(9)).half()
    places = torch.arange(length)
    rows = table[0, places // page_size], places % page_size
    scores = q[0].double() @ keys[rows][:, 0].double().t() * d**-0.5
    weights = (scores - scores.amax(1, keepdim=True)).exp()
    wanted = (weights.half().double() @ values[rows][:, 0].double() / weights.sum(1, keepdim=True)).half()
    out = attend_decode(*(x.to(DEVICE) for x in (q, keys, values, table, torch.tensor([length]))), length)
    assert (out[0].cpu() != wanted).sum() <= 5  # of 512: sums in fp32 have another order


def test_the_kernel_does_not_depend_on_the_batch(attend_decode: Callable[..., torch.Tensor]) -> None:
    """Bit by bit: nothing that others bring changes the order of its sums."""
    lengths = [600, 9, 1030]
    keys, values, table = (x.to(DEVICE) for x in pages_of(lengths, 16, 1, 16, torch.float32, seed=3))
    q = torch.randn(3, 2, 16, generator=torch.Generator().manual_seed(2)).to(DEVICE)
    held = torch.tensor(lengths, device=DEVICE)
    together = attend_decode(q, keys, values, table, held, 2000)
    for row, length in enumerate(lengths):
        one = slice(row, row + 1)
        assert torch.equal(attend_decode(q[one], keys, values, table[one], held[one], length)[0], together[row])


@pytest.mark.parametrize("page_size", [16, 32, 64])
def test_what_others_left_behind_a_sequence_is_not_read(attend_decode: Callable[..., torch.Tensor], page_size: int) -> None:
    """Pages are used again: a sequence that overflowed must not reach the next one through a weight of zero."""
    lengths = [600, 64, 1, 513, 63, 65, 128]
    keys, values, table = pages_of(lengths, page_size, 2, 16, torch.float32, seed=6)
    q = torch.randn(len(lengths), 4, 16, generator=torch.Generator().manual_seed(7))
    given = [x.to(DEVICE) for x in (q, keys, values, table, torch.tensor(lengths))]
    clean = attend_decode(*given, 600)
    for pages in given[1:3]:
        mine = torch.zeros(pages.shape[:2], dtype=torch.bool)
        for row, length in enumerate(lengths):
            at = torch.arange(length)
            mine[table[row, at // page_size].long(), at % page_size] = True
        pages[~mine.to(DEVICE)] = float("nan")
    assert torch.equal(attend_decode(*given, 600), clean)


def test_the_kernel_takes_rows_without_a_sequence_and_strided_inputs(attend_decode: Callable[..., torch.Tensor]) -> None:
    keys, values, table = pages_of([20, 5], 8, 2, 16, torch.float32, seed=4)
    q = torch.randn(3, 4, 16, generator=torch.Generator().manual_seed(5))
    wide = torch.cat((table, torch.zeros(1, 3, dtype=torch.int32))).to(DEVICE)
    strided_q = torch.stack((q, q), dim=1).to(DEVICE)[:, 1]
    strided_k, strided_v = torch.stack((keys, values), dim=2).to(DEVICE).unbind(2)
    lengths = torch.tensor([20, 5, 0], dtype=torch.int32, device=DEVICE)
    out = attend_decode(strided_q, strided_k, strided_v, wide, lengths, 20).cpu()
    assert (out[2] == 0).all()
    for row, length in enumerate([20, 5]):
        wanted = plain(q[row : row + 1], keys, values, table[row], length)[0]
        assert (out[row] - wanted).abs().max() < 1e-5


@pytest.mark.parametrize("shape", SHAPES)
def test_chunks(shape: tuple) -> None:
    from megatron_ring.sampler.attention import ChunkAttention

    ends, page_size, heads, groups, d = shape
    counts = [max(1, end // 3) if i % 2 else end for i, end in enumerate(ends)]
    keys, values, table = pages_of(ends, page_size, groups, d, torch.float32, seed=6)
    q = torch.randn(sum(counts), heads, d, generator=torch.Generator().manual_seed(7))
    parts = ChunkAttention(table, ends, counts)(q, keys, values).split(counts)
    for row, (part, q_qhd, end) in enumerate(zip(parts, q.split(counts), ends, strict=True)):
        assert (part - plain(q_qhd, keys, values, table[row], end)).abs().max() < 1e-5
