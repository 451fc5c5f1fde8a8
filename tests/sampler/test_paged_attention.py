"""Attention over pages against plain attention in float64: the reference written with torch, and the Triton kernel under
Triton's interpreter."""

from __future__ import annotations

import importlib.util
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest
import torch


@pytest.fixture(scope="module")
def interpreted() -> Iterator[Callable[..., None]]:
    """`interpreted(function, *arguments)`: call it where Triton interprets its kernels on the CPU, which is decided when
    Triton is imported: in a process of its own."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            yield lambda function, *arguments: process.submit(function, *arguments).result(timeout=100)


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
]
LONG = ([513, 512, 1, 1100], 32, 4, 1, 16)


def check_decode(attend: Callable[..., torch.Tensor], shape: tuple, dtype: torch.dtype, tolerance: float) -> None:
    lengths, page_size, heads, groups, d = shape
    keys, values, table = pages_of(lengths, page_size, groups, d, dtype, seed=len(lengths))
    q = torch.randn(len(lengths), heads, d, generator=torch.Generator().manual_seed(1)).to(dtype)
    out = attend(q, keys, values, table, torch.tensor(lengths), max(lengths))
    assert out.shape == q.shape and out.dtype == dtype
    for row, length in enumerate(lengths):
        wanted = plain(q[row : row + 1], keys, values, table[row], length)[0]
        assert (out[row] - wanted).abs().max() < tolerance


@pytest.mark.parametrize("shape", [*SHAPES, LONG])
def test_decoding(shape: tuple) -> None:
    from megatron_ring.sampler.attention import DecodeAttention

    def attend(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, *where: Any) -> torch.Tensor:
        return DecodeAttention(*where)(q, keys, values)

    check_decode(attend, shape, torch.float32, 1e-5)


def kernel_decodes(shape: tuple) -> None:
    from megatron_ring.sampler.decode_triton import attend_decode

    check_decode(attend_decode, shape, torch.float32, 1e-5)
    check_decode(attend_decode, shape, torch.float16, 3e-3)  # the interpreter's products know no bf16


@pytest.mark.parametrize("shape", [*SHAPES, LONG])
def test_the_kernel_decodes(interpreted: Callable[..., None], shape: tuple) -> None:
    interpreted(kernel_decodes, shape)


def kernel_alone_and_together() -> None:
    from megatron_ring.sampler.decode_triton import attend_decode

    lengths = [600, 9, 1030]
    keys, values, table = pages_of(lengths, 16, 1, 16, torch.float32, seed=3)
    q = torch.randn(3, 2, 16, generator=torch.Generator().manual_seed(2))
    together = attend_decode(q, keys, values, table, torch.tensor(lengths), 2000)
    for row, length in enumerate(lengths):
        one = slice(row, row + 1)
        alone = attend_decode(q[one], keys, values, table[one], torch.tensor([length]), length)
        assert torch.equal(alone[0], together[row])


def test_the_kernel_does_not_depend_on_the_batch(interpreted: Callable[..., None]) -> None:
    """Bit by bit: nothing that others bring changes the order of its sums."""
    interpreted(kernel_alone_and_together)


def kernel_with_empty_rows_and_strides() -> None:
    from megatron_ring.sampler.decode_triton import attend_decode

    keys, values, table = pages_of([20, 5], 8, 2, 16, torch.float32, seed=4)
    q = torch.randn(3, 4, 16, generator=torch.Generator().manual_seed(5))
    wide = torch.cat((table, torch.zeros(1, 3, dtype=torch.int32)))
    strided_q = torch.stack((q, q), dim=1)[:, 1]
    strided_k, strided_v = torch.stack((keys, values), dim=2).unbind(2)
    out = attend_decode(strided_q, strided_k, strided_v, wide, torch.tensor([20, 5, 0], dtype=torch.int32), 20)
    assert (out[2] == 0).all()
    for row, length in enumerate([20, 5]):
        wanted = plain(q[row : row + 1], keys, values, table[row], length)[0]
        assert (out[row] - wanted).abs().max() < 1e-5


def test_the_kernel_takes_rows_without_a_sequence_and_strided_inputs(interpreted: Callable[..., None]) -> None:
    interpreted(kernel_with_empty_rows_and_strides)


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
