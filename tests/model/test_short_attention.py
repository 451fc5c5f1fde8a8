"""Attention of short sequences on the CPU against torch's, its gradients included, in float64."""

from __future__ import annotations

from itertools import accumulate, pairwise

import pytest
import torch
import torch.nn.functional as F

from megatron_ring.model.attention_kernels import PackedAttention
from megatron_ring.model.kernels import short_attention

LENGTHS = [[1], [7], [64], [65, 65], [200], [3, 1, 150, 64, 149, 9, 10, 3], [36] * 4 + [30]]


def by_torch(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    """One sequence after another; zeros behind the last."""
    out = []
    for start, end in pairwise([0, *accumulate(lengths)]):
        one = (x[start:end].transpose(0, 1) for x in (q, k, v))
        out.append(F.scaled_dot_product_attention(*one, is_causal=True, enable_gqa=True).transpose(0, 1))
    return torch.cat([*out, torch.zeros_like(q[sum(lengths) :])])


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize(("heads", "kv_heads", "padding"), [(4, 2, 0), (3, 1, 5), (2, 2, 1)])
def test_against_torch(lengths: list[int], heads: int, kv_heads: int, padding: int) -> None:
    generator = torch.Generator().manual_seed(sum(lengths))
    tokens = sum(lengths) + padding
    q, k, v, d = (
        torch.randn(tokens, n, 8, dtype=torch.float64, generator=generator) for n in (heads, kv_heads, kv_heads, heads)
    )
    for x in (q, k, v):
        x[sum(lengths) :] = float("nan")  # what lies behind must not be read
    inputs = [x.requires_grad_() for x in (q, k, v)]
    attention = PackedAttention(lengths, q.device, q.dtype, 8)
    assert attention.kernel == "short"
    found, wanted = attention(q, k, v), by_torch(q, k, v, lengths)
    assert torch.allclose(found, wanted, atol=1e-12)
    real = sum(lengths)
    for mine, theirs in zip(torch.autograd.grad(found, inputs, d), torch.autograd.grad(wanted, inputs, d), strict=True):
        assert torch.allclose(mine[:real], theirs[:real], atol=1e-11)
        assert not mine[real:].any()


def test_buckets_hold_every_sequence_with_little_padding() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 500, (60,), generator=generator).tolist()
    buckets = short_attention.Buckets(lengths, 4, 2, torch.float32)
    assert buckets.source[buckets.places].tolist() == list(range(2 * sum(lengths)))
    assert buckets.source.numel() <= 1.5 * 2 * sum(lengths)
    assert buckets.behind.numel() == buckets.source.numel() - 2 * sum(lengths)


def test_long_sequences_and_sixteen_bit_go_to_torch() -> None:
    cpu = torch.device("cpu")
    assert PackedAttention([short_attention.LONGEST + 1, 3], cpu, torch.float32, 8).kernel == "sdpa"
    assert PackedAttention([8, 3], cpu, torch.bfloat16, 8).kernel == "sdpa"
