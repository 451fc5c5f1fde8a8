"""Drawing one token per sequence, reproducibly whatever the batch. Suffixes: n sequences, v vocabulary."""

from __future__ import annotations

from typing import NamedTuple

import torch

from megatron_ring.config import SamplingConfig

_GOLDEN, _MIX1, _MIX2 = -7046029254386353131, -4658895280553007687, -7723592293110705685  # splitmix64, as signed 64-bit


def _shift_right(x: torch.Tensor, bits: int) -> torch.Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def uniforms(seeds: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Uniform float64 in [0, 1) for each (seed, position) of int64 [N]: splitmix64 (Steele et al. 2014), stateless."""
    x = seeds + (positions + 1) * _GOLDEN
    x = (x ^ _shift_right(x, 30)) * _MIX1
    x = (x ^ _shift_right(x, 27)) * _MIX2
    x = x ^ _shift_right(x, 31)
    return _shift_right(x, 11).double() * 2.0**-53


def nucleus(probabilities_nv: torch.Tensor, top_p: float) -> torch.Tensor:
    """Zero all but the smallest set of most likely tokens that has `top_p` of the whole. Not renormalised."""
    ordered, order = probabilities_nv.sort(dim=-1, descending=True)
    sums = ordered.cumsum(-1)
    kept = torch.where(sums - ordered < top_p * sums[:, -1:], ordered, 0.0)
    return torch.zeros_like(probabilities_nv).scatter(1, order, kept)


def processed(logits_nv: torch.Tensor, sampling: SamplingConfig) -> torch.Tensor:
    """What tokens are drawn from, float64 [N, V], not renormalised: softmax(logits / temperature), of it the `top_k` most
    likely (more on a tie), of those the nucleus, of that what has at least `min_p` times the largest probability. The
    order of Hugging Face transformers. The temperature is above 0."""
    probabilities = torch.softmax(logits_nv.double() / sampling.temperature, dim=-1)
    if 0 < sampling.top_k < probabilities.shape[1]:
        least = probabilities.topk(sampling.top_k, dim=-1).values[:, -1:]
        probabilities = torch.where(probabilities >= least, probabilities, 0.0)
    if sampling.top_p < 1:
        probabilities = nucleus(probabilities, sampling.top_p)
    if sampling.min_p > 0:
        least = sampling.min_p * probabilities.max(dim=-1, keepdim=True).values
        probabilities = torch.where(probabilities >= least, probabilities, 0.0)
    return probabilities


class Drawn(NamedTuple):
    """Token ids int64 [N] and their float64 [N] log-probabilities (nats) under what they were drawn from."""

    ids: torch.Tensor
    logprobs: torch.Tensor


def draw_tokens(logits_nv: torch.Tensor, uniforms_n: torch.Tensor, sampling: SamplingConfig) -> Drawn:
    """A token for each row by inversion of the distribution function at `uniforms_n`; the most likely token (lowest id on
    a tie), as certain, when the temperature is 0."""
    if sampling.temperature == 0:
        return Drawn(logits_nv.argmax(dim=-1), torch.zeros_like(uniforms_n))
    probabilities = processed(logits_nv, sampling)
    cumulative = probabilities.cumsum(-1)
    whole = cumulative[:, -1:].contiguous()
    drawn = torch.searchsorted(cumulative, uniforms_n.unsqueeze(1) * whole, right=True)
    # Rounding may carry the target to the very end: stay on the last token with any probability. (The clamp is for NaN.)
    last = torch.searchsorted(cumulative, whole, right=False)
    ids = torch.minimum(drawn, last).clamp_max(probabilities.shape[1] - 1)
    return Drawn(ids[:, 0].contiguous(), (probabilities.gather(1, ids) / whole).log()[:, 0])
