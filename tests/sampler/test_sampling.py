"""Drawing tokens: the random numbers, the nucleus, and the distribution that comes out."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ring.sampler.sampling import draw_tokens, nucleus, uniforms


def splitmix64(seed: int, position: int) -> float:
    """The published algorithm on Python's integers."""
    mask = 2**64 - 1
    x = (seed + (position + 1) * 0x9E3779B97F4A7C15) & mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    x ^= x >> 31
    return (x >> 11) * 2.0**-53


@given(st.integers(0, 2**63 - 1), st.integers(0, 10**6))
def test_uniforms_are_splitmix64(seed: int, position: int) -> None:
    found = uniforms(torch.tensor([seed]), torch.tensor([position]))
    assert found.item() == splitmix64(seed, position)


def test_uniforms_fill_the_interval_evenly() -> None:
    drawn = uniforms(torch.arange(200_000) * 7919, torch.arange(200_000) % 50)
    counts = torch.histc(drawn.float(), bins=20, min=0, max=1)
    assert (counts - 10_000).abs().max() < 500  # five standard deviations


@settings(deadline=None)
@given(st.lists(st.floats(0.001, 1.0), min_size=1, max_size=12), st.floats(0.05, 0.999))
def test_nucleus_is_the_smallest_set_that_reaches_top_p(weights: list[float], top_p: float) -> None:
    p = torch.tensor([weights], dtype=torch.float64)
    p = p / p.sum()
    kept = nucleus(p, top_p)[0]
    chosen = (kept > 0).sum().item()
    ordered = sorted(p[0].tolist(), reverse=True)
    assert sum(ordered[: chosen - 1]) < top_p + 1e-12
    assert sum(ordered[:chosen]) >= top_p - 1e-12
    assert min(kept[kept > 0]).item() >= ordered[chosen - 1] - 1e-15


def test_draws_follow_the_distribution() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, -30.0, 0.5]]).repeat(100_000, 1)
    u = uniforms(torch.arange(100_000), torch.zeros(100_000, dtype=torch.int64))
    for temperature, top_p in ((1.0, 1.0), (0.5, 1.0), (1.0, 0.8)):
        p = torch.softmax(logits[0].double() / temperature, 0)
        if top_p < 1:
            p = nucleus(p[None], top_p)[0]
            p = p / p.sum()
        found = torch.bincount(draw_tokens(logits, u, temperature, top_p), minlength=5) / 100_000
        assert (found - p).abs().max() < 5 * (0.25 / 100_000) ** 0.5
        assert found[p == 0].sum() == 0


def test_edges() -> None:
    logits = torch.tensor([[1.0, 1.0, -float("inf")]])
    assert draw_tokens(logits, torch.tensor([1.0 - 2**-53], dtype=torch.float64), 1.0, 1.0).item() == 1
    assert draw_tokens(logits, torch.tensor([0.0], dtype=torch.float64), 1.0, 1.0).item() == 0
    assert draw_tokens(logits, torch.tensor([0.9], dtype=torch.float64), 0.0, 1.0).item() == 0
