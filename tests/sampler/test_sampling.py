"""Drawing tokens: the random numbers, the nucleus, and the distribution that comes out."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ring.config.sampling import SamplingConfig
from megatron_ring.sampler.row_settings import RowSettings, cuts, numbers_of
from megatron_ring.sampler.sampling import draw_tokens, nucleus, processed, uniforms


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
    least = ordered[chosen - 1]
    assert sum(value for value in ordered if value > least) < top_p + 1e-12  # what is as likely as the last stays with it
    assert sum(ordered[:chosen]) >= top_p - 1e-12 and least not in ordered[chosen:]
    assert min(kept[kept > 0]).item() >= ordered[chosen - 1] - 1e-15


def rows_of(*samplings: SamplingConfig, count: int = 1) -> RowSettings:
    """Each of them for `count` rows."""
    each = [sampling for sampling in samplings for _ in range(count)]
    return RowSettings.of([numbers_of(sampling) for sampling in each], any(map(cuts, each)))


def reference(p: torch.Tensor, sampling: SamplingConfig) -> torch.Tensor:
    """top-k, then top-p of the rest, then min-p of the rest, over a list, renormalised at each."""
    order = sorted(range(len(p)), key=lambda i: (-p[i].item(), i))
    kept = order[: sampling.top_k or len(order)]
    whole, before, chosen = sum(p[i].item() for i in kept), 0.0, []
    for i in kept:
        if before < sampling.top_p * whole:
            chosen.append(i)
        before += p[i].item()
    chosen = [i for i in chosen if p[i] >= sampling.min_p * p[chosen[0]]]
    cut = torch.zeros_like(p)
    cut[chosen] = p[chosen]
    return cut / cut.sum()


@settings(deadline=None)
@given(
    logits=st.lists(st.integers(-40, 40), min_size=1, max_size=12, unique=True),
    temperature=st.sampled_from([0.5, 1.0, 3.0]),
    top_p=st.sampled_from([0.3, 0.77, 0.95, 1.0]),
    top_k=st.integers(0, 13),
    min_p=st.sampled_from([0.0, 0.03, 0.3, 1.0]),
)
def test_cut_distributions(logits: list[int], temperature: float, top_p: float, top_k: int, min_p: float) -> None:
    sampling = SamplingConfig(temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p)
    logits_nv = torch.tensor([logits], dtype=torch.float64) / 10
    wanted = reference(torch.softmax(logits_nv[0] / temperature, 0), sampling)
    found = processed(logits_nv, rows_of(sampling))[0]
    assert torch.allclose(found / found.sum(), wanted, atol=1e-12)
    u = torch.linspace(0, 1 - 2**-53, 41, dtype=torch.float64)
    drawn = draw_tokens(logits_nv.repeat(41, 1), u, rows_of(sampling, count=41))
    assert (wanted[drawn.ids] > 0).all()
    assert torch.allclose(drawn.logprobs, wanted[drawn.ids].log())


def test_rows_that_differ_are_what_they_are_alone() -> None:
    """To the last bit, tokens and numbers."""
    mixed = [
        SamplingConfig(), SamplingConfig(temperature=0.6, top_p=0.9), SamplingConfig(temperature=0.0, top_k=5),
        SamplingConfig(temperature=1.5), SamplingConfig(top_k=20, min_p=0.05), SamplingConfig(temperature=2.0, min_p=0.3),
        SamplingConfig(temperature=0.7, top_k=50, top_p=0.8, min_p=0.02), SamplingConfig(top_k=999),
    ]  # fmt: skip
    logits = torch.randn(len(mixed), 200, generator=torch.Generator().manual_seed(3)) * 2
    u = uniforms(torch.arange(len(mixed)), torch.zeros(len(mixed), dtype=torch.int64))
    together = draw_tokens(logits, u, rows_of(*mixed))
    for i, sampling in enumerate(mixed):
        alone = draw_tokens(logits[i : i + 1], u[i : i + 1], rows_of(sampling))
        assert torch.equal(together.ids[i], alone.ids[0]) and torch.equal(together.logprobs[i], alone.logprobs[0]), sampling


def test_draws_follow_the_distribution() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, -30.0, 0.5]]).repeat(100_000, 1)
    u = uniforms(torch.arange(100_000), torch.zeros(100_000, dtype=torch.int64))
    for temperature, top_p in ((1.0, 1.0), (0.5, 1.0), (1.0, 0.8)):
        sampling = SamplingConfig(temperature=temperature, top_p=top_p)
        p = reference(torch.softmax(logits[0].double() / temperature, 0), sampling)
        found = torch.bincount(draw_tokens(logits, u, rows_of(sampling, count=100_000)).ids, minlength=5) / 100_000
        assert (found - p).abs().max() < 5 * (0.25 / 100_000) ** 0.5
        assert found[p == 0].sum() == 0


def test_edges() -> None:
    logits, one, greedy = (
        torch.tensor([[1.0, 1.0, -float("inf")]]),
        rows_of(SamplingConfig()),
        rows_of(SamplingConfig(temperature=0)),
    )
    assert draw_tokens(logits, torch.tensor([1.0 - 2**-53], dtype=torch.float64), one).ids.item() == 1
    assert draw_tokens(logits, torch.tensor([0.0], dtype=torch.float64), one).ids.item() == 0
    assert draw_tokens(logits, torch.tensor([0.9], dtype=torch.float64), greedy).ids.item() == 0
    assert draw_tokens(logits, torch.tensor([0.9], dtype=torch.float64), greedy).logprobs.item() == 0
    broken = torch.full((1, 3), float("nan"))  # said by the sampler, not by an index out of range
    assert 0 <= draw_tokens(broken, torch.tensor([0.9], dtype=torch.float64), one).ids.item() < 3
