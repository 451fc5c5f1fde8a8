"""The persistent grouped products against float64, on the GPU where there is one and in Triton's interpreter elsewhere."""

from __future__ import annotations

import pytest
import torch

CUDA = torch.cuda.is_available()
pytest.importorskip("triton", reason="Triton is not installed")

from megatron_ring.model.kernels import grouped_triton  # noqa: E402
from megatron_ring.model.kernels.grouped_triton import Tile  # noqa: E402

DEVICE = torch.device("cuda" if CUDA else "cpu")
DTYPE = torch.bfloat16 if CUDA else torch.float16  # the interpreter cannot multiply bf16
SMALL = Tile(rows=64, columns=64, depth=32, stages=2, warps=4)
# No rows for the first, last and middle ones, one row, whole tiles, one expert with all.
COUNTS = [[0, 64, 1, 0, 130, 63, 0], [200], [0, 0, 5], [128, 128], [1] * 9]


def draw(*shape: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(DEVICE, DTYPE)


def ends_of(counts: list[int]) -> torch.Tensor:
    return torch.tensor(counts, dtype=torch.int64).cumsum(0).to(torch.int32).to(DEVICE)


def by_expert(x_na: torch.Tensor, matrices: torch.Tensor, counts: list[int]) -> torch.Tensor:
    """In float64: each expert's rows times its matrix [a, b]."""
    parts = x_na.double().split(counts)
    return torch.cat([part @ matrix.double() for part, matrix in zip(parts, matrices, strict=True)])


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The largest difference, relative to the largest value; NaN never passes as it compares false."""
    return ((found.double() - wanted).abs().max() / wanted.abs().max()).item()


@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize(("inner", "width"), [(64, 96), (96, 200)])
@pytest.mark.parametrize("transposed", [False, True])
def test_product(counts: list[int], inner: int, width: int, transposed: bool) -> None:
    x = draw(sum(counts), inner, seed=0)
    weight = draw(len(counts), width, inner, seed=1) if transposed else draw(len(counts), inner, width, seed=1)
    found = grouped_triton.product(x, weight, ends_of(counts), transposed, SMALL)
    wanted = by_expert(x, weight.transpose(1, 2) if transposed else weight, counts)
    assert found.shape == wanted.shape and found.dtype is DTYPE
    assert error(found, wanted) < 4e-3


@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize(("inner", "width"), [(64, 64), (96, 40)])
def test_product_and_swiglu(counts: list[int], inner: int, width: int) -> None:
    x, weight = draw(sum(counts), inner, seed=0), draw(len(counts), 2 * width, inner, seed=1)
    weights = draw(sum(counts), seed=2).float().abs()
    both, out = grouped_triton.product_and_swiglu(x, weight, ends_of(counts), weights, SMALL)
    assert error(both, by_expert(x, weight.transpose(1, 2), counts)) < 4e-3
    gate, up = both.double().chunk(2, -1)
    assert error(out, torch.nn.functional.silu(gate) * up * weights[:, None].double()) < 4e-3


def test_no_rows_and_a_published_tile() -> None:
    nothing = grouped_triton.product(draw(0, 64, seed=0), draw(3, 96, 64, seed=1), ends_of([0, 0, 0]), True)
    assert nothing.shape == (0, 96)
    counts = [300, 0, 17]
    x, weight = draw(317, 128, seed=0), draw(3, 512, 128, seed=1)
    found = grouped_triton.product(x, weight, ends_of(counts), True)
    assert error(found, by_expert(x, weight.transpose(1, 2), counts)) < 4e-3
