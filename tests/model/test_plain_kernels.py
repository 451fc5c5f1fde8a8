"""The plain torch versions of the fused operations: their hand-written gradients against torch's, in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from megatron_ring.model.kernels.norm import add_and_norm, norm_and_pass
from megatron_ring.model.kernels.rope import split_and_rotate
from megatron_ring.model.kernels.router import choose_experts, logits_gradient
from megatron_ring.model.kernels.rows import combine_rows, gather_rows, sort_by_expert, spread_rows
from megatron_ring.model.kernels.swiglu import swiglu_backward, swiglu_forward
from megatron_ring.model.rope import rope_tables


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed + 1000 * len(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def test_norm() -> None:
    x, residual, weight = (draw(5, 1, 8, seed=1), draw(5, 1, 8, seed=2), draw(8))
    inputs = [tensor.requires_grad_() for tensor in (x, residual, weight)]
    assert torch.allclose(add_and_norm(*inputs, 1e-5)[0], F.rms_norm(x + residual, (8,), weight, 1e-5))
    assert torch.autograd.gradcheck(lambda x, r, w: add_and_norm(x, r, w, 1e-5), inputs)
    assert torch.autograd.gradcheck(lambda x, w: norm_and_pass(x, w, 1e-5), (x, weight))
    assert torch.autograd.gradcheck(lambda x, w: norm_and_pass(x, w, 1e-5)[0], (x, weight))


def test_norm_of_sixteen_bit_is_computed_in_fp32() -> None:
    x, weight = draw(64, 32).bfloat16(), draw(32).bfloat16()
    wanted = F.rms_norm(x.float(), (32,), weight.float(), 1e-6).bfloat16()
    found = norm_and_pass(x, weight, 1e-6)[0]
    assert found.dtype is torch.bfloat16
    assert torch.equal(found, wanted)


def apply_rope(x_thd: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """As the public modelling code writes it: x cos + rotate_half(x) sin."""
    first, second = x_thd.float().chunk(2, dim=-1)
    return (x_thd.float() * cos + torch.cat((-second, first), dim=-1) * sin).to(x_thd.dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_rope(dtype: torch.dtype) -> None:
    qkv = draw(6, 2, 5, 8).to(dtype).requires_grad_()
    cos, sin = rope_tables(torch.tensor([0, 1, 2, 0, 1, 700]), 8, 10_000.0)
    q, k, v = split_and_rotate(qkv, cos, sin)
    assert torch.allclose(q, apply_rope(qkv[:, :, :-2].flatten(1, 2), cos, sin), atol=1e-6)
    assert torch.allclose(k, apply_rope(qkv[:, :, -2], cos, sin), atol=1e-6)
    assert torch.equal(v, qkv[:, :, -1])
    assert all(x.is_contiguous() and x.dtype is dtype for x in (q, k, v))
    if dtype is torch.float64:
        assert torch.autograd.gradcheck(lambda qkv: split_and_rotate(qkv, cos.double(), sin.double()), qkv)


@pytest.mark.parametrize("weighted", [False, True])
def test_swiglu(weighted: bool) -> None:
    gate_up, weights = draw(6, 10).requires_grad_(), draw(6).requires_grad_()
    gate, up = gate_up.chunk(2, -1)
    wanted = F.silu(gate) * up * (weights[:, None] if weighted else 1.0)
    given = weights.detach() if weighted else None
    assert torch.allclose(swiglu_forward(gate_up.detach(), given), wanted)
    d = draw(6, 5, seed=1)
    d_gate_up, d_weights, again = swiglu_backward(d, gate_up.detach(), given, again=True)
    (wanted * d).sum().backward()
    assert torch.allclose(d_gate_up, gate_up.grad)
    assert torch.allclose(again, wanted)
    assert (d_weights is None) is not weighted
    if d_weights is not None:
        assert torch.allclose(d_weights.double(), weights.grad, atol=1e-6)


@pytest.mark.parametrize(("experts", "k"), [(4, 1), (8, 2), (60, 6)])
@pytest.mark.parametrize("padded", [False, True])
def test_router(experts: int, k: int, padded: bool) -> None:
    logits = draw(20, experts).requires_grad_()
    padding = torch.arange(20) >= 15 if padded else None
    valid = torch.ones(20, dtype=torch.float64) if padding is None else (~padding).double()
    weights, chosen, sums = choose_experts(logits.detach(), k, padding, True)
    p, lse = torch.softmax(logits, -1), torch.logsumexp(logits, -1)
    wanted = p.gather(1, chosen)
    wanted = wanted / wanted.sum(-1, keepdim=True) if k > 1 else wanted
    assert torch.allclose(weights, wanted)
    assert torch.allclose(choose_experts(logits.detach(), k, padding, False)[0], wanted)
    counts = torch.zeros_like(p).scatter(1, chosen, 1.0).mul(valid[:, None]).sum(0)
    totals = torch.stack(((lse.square() * valid).sum(), valid.sum()))
    assert torch.allclose(sums, torch.cat((counts, (p * valid[:, None]).sum(0), totals)))
    share, d, scale = draw(experts, seed=1).abs(), draw(20, k, seed=2), torch.full((1,), 0.5)
    losses = 0.3 * experts * ((p @ share) * valid).sum() + 0.02 * (lse.square() * valid).sum()
    ((wanted * d).sum() + 0.5 * losses).backward()
    found = logits_gradient(logits.detach(), (weights, chosen), d, padding, share, scale, 0.3, 0.02)
    assert torch.allclose(found, logits.grad)


def test_rows_there_and_back() -> None:
    x, chosen = draw(9, 6), torch.randint(5, (9, 3), generator=torch.Generator().manual_seed(0))
    places = sort_by_expert(chosen, 5)
    gathered = spread_rows(x, places)
    assert torch.equal(gathered, x[places.order // 3]) and torch.equal(gather_rows(x, chosen[:, 0]), x[chosen[:, 0]])
    assert chosen.flatten()[places.order].diff().min() >= 0
    other = draw(9, 6, seed=1)
    assert torch.allclose(combine_rows(gathered, places.back, other), 3 * x + other)
