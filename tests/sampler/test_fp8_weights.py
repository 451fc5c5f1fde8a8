"""Expert weights in FP8 against float64: the error of a weight, the layout in words, and the kernels' products."""

from __future__ import annotations

import pytest
import torch

from megatron_ring.model.kernels.fp8 import Fp8Matrix

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 5, 96), (2, 40), (1, 1), (4, 300)])
def test_a_weight_is_off_by_a_sixteenth_at_most(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(sum(shape))
    sizes = torch.randn(shape, generator=generator).mul(4).exp2()  # over many binades
    weight = (torch.randn(shape, generator=generator) * sizes).to(DEVICE, dtype)
    found = Fp8Matrix.of(weight).wide(dtype)
    assert found.shape == weight.shape and found.dtype is dtype
    largest = weight.double().abs().amax(-1, keepdim=True)
    bound = torch.maximum(weight.double().abs() / 16, largest * 2.0**-17)
    assert ((found.double() - weight.double()).abs() <= bound).all()


def test_values_of_e4m3_with_a_power_of_two_are_kept() -> None:
    """Every value there is, in rows of several scales, with zeros and both signs."""
    codes = torch.arange(256, dtype=torch.uint8)
    values = codes[(codes & 127) != 127].view(torch.float8_e4m3fn).float()
    weight = torch.stack([values * 2.0**shift for shift in (-20, 0, 9)]).to(DEVICE)
    assert torch.equal(Fp8Matrix.of(weight).wide(torch.float32), weight)
    assert torch.equal(Fp8Matrix.of(weight.bfloat16()).wide(torch.bfloat16), weight.bfloat16())


def test_a_part_of_a_row_gets_the_values_of_the_whole() -> None:
    weight = torch.randn(16, 256, generator=torch.Generator().manual_seed(1), device="cpu").to(DEVICE)
    weight[:, 0] = 40.0
    whole, part = Fp8Matrix.of(weight), Fp8Matrix.of(weight[:, 128:])
    assert (part.scales < whole.scales).all()
    near_zero = weight[:, 128:].abs() < 40 * 2.0**-13
    differing = whole.wide(torch.float32)[:, 128:] != part.wide(torch.float32)
    assert not (differing & ~near_zero).any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_weight_that_is_not_finite_is_seen(bad: float) -> None:
    weight = torch.ones(3, 7, device=DEVICE)
    weight[1, 2] = bad
    found = Fp8Matrix.of(weight).wide(torch.float32)
    assert found[1].isnan().all() and (found[[0, 2]] == 1).all()


def test_it_follows_the_weights_where_it_lies() -> None:
    weight = torch.randn(2, 6, 130, generator=torch.Generator().manual_seed(2)).to(DEVICE)
    narrow = Fp8Matrix.of(weight)
    place = narrow.words.data_ptr(), narrow.scales.data_ptr()
    narrow.refill(3 * weight)
    assert place == (narrow.words.data_ptr(), narrow.scales.data_ptr())
    assert torch.equal(narrow.wide(torch.float32), Fp8Matrix.of(3 * weight).wide(torch.float32))
    assert narrow.nbytes == 2 * 6 * (256 + 4)


def test_the_kernels_widening_is_that_of_e4m3() -> None:
    """Its bit operations, on every code: in the interpreter there is no PTX."""
    codes = torch.arange(256, dtype=torch.int32)
    half = codes << 8 | codes  # the byte comes with a copy of itself below
    bits = (half & 0x8000) | (half >> 4 & 0x07F0)
    scale = torch.tensor(0x7B80, dtype=torch.int16).view(torch.bfloat16)
    assert float(scale) == 2.0**120
    found = bits.to(torch.uint16).view(torch.bfloat16) * scale
    wanted = codes.to(torch.uint8).view(torch.float8_e4m3fn).to(torch.bfloat16)
    finite = (codes & 127) != 127
    assert torch.equal(found[finite], wanted[finite])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16] if CUDA else [torch.float32])
@pytest.mark.parametrize(
    ("tokens", "k", "hidden", "width", "only"),
    [(1, 2, 64, 32, None), (70, 3, 160, 200, None), (50, 2, 128, 48, 2), (170, 3, 96, 130, 4)],
)
def test_experts_against_float64(tokens: int, k: int, hidden: int, width: int, only: int | None, dtype: torch.dtype) -> None:
    """Six experts; `only`: all tokens choose among so many."""
    pytest.importorskip("triton", reason="Triton is not installed")
    from megatron_ring.model.kernels import few_tokens_triton

    generator = torch.Generator().manual_seed(tokens)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(DEVICE, dtype)

    x, gate_up, down = draw(tokens, hidden), draw(6, 2 * width, hidden) / hidden**0.5, draw(6, hidden, width) / width**0.5
    weights = torch.rand(tokens, k, generator=generator).to(DEVICE)
    scores = torch.rand(tokens, 6, generator=generator)
    if only is not None:
        scores[:, only:] = -1.0
    experts_tk = scores.topk(k, dim=1).indices.to(DEVICE)
    narrow = Fp8Matrix.of(gate_up), Fp8Matrix.of(down)
    tile = few_tokens_triton.Tile(32, 128, 2, 4)
    y_nh, back = few_tokens_triton.sorted_outputs(x, weights, experts_tk, *narrow, (tile, tile))
    wide_up, wide_down = (matrix.wide(dtype).double() for matrix in narrow)
    gates, ups = torch.einsum("th,tkfh->tkf", x.double(), wide_up[experts_tk]).chunk(2, dim=-1)
    act = torch.nn.functional.silu(gates) * ups * weights.double()[..., None]
    wanted = torch.einsum("tkf,tkhf->tkh", act, wide_down[experts_tk])
    found = y_nh[back.long()].double()
    assert (found - wanted).norm() / wanted.norm() < (2e-6 if dtype is torch.float32 else 1e-2)


def test_the_kernel_that_widens_a_matrix() -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    from megatron_ring.model.kernels import few_fp8_triton

    for shape in ((3, 70, 300), (2, 5, 128)):
        narrow = Fp8Matrix.of(torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(DEVICE))
        found = few_fp8_triton.wide(narrow.words, narrow.scales, narrow.columns, torch.float32)
        values = narrow.words.cpu().view(torch.uint8).unflatten(-1, (-1, 32, 4)).transpose(-1, -2).flatten(-3)
        wanted = values[..., : shape[-1]].view(torch.float8_e4m3fn).float() * narrow.scales.cpu()[..., None]
        assert torch.equal(found.cpu(), wanted)
