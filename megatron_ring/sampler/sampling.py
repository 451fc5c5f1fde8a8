"""Drawing one token per sequence, reproducibly whatever the batch. Suffixes: n sequences, v vocabulary."""

from __future__ import annotations

import torch

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
    """Zero all but the smallest set of most likely tokens whose probability reaches `top_p`. Not renormalised."""
    ordered, order = probabilities_nv.sort(dim=-1, descending=True)
    before = ordered.cumsum(-1) - ordered
    return torch.zeros_like(probabilities_nv).scatter(1, order, torch.where(before < top_p, ordered, 0.0))


def draw_tokens(logits_nv: torch.Tensor, uniforms_n: torch.Tensor, temperature: float, top_p: float) -> torch.Tensor:
    """Token ids int64 [N] from softmax(logits / temperature) cut to its nucleus, by inversion of the distribution
    function at `uniforms_n`; the most likely token (lowest id on a tie) when the temperature is 0."""
    if temperature == 0:
        return logits_nv.argmax(dim=-1)
    probabilities = torch.softmax(logits_nv.double() / temperature, dim=-1)
    if top_p < 1:
        probabilities = nucleus(probabilities, top_p)
    cumulative = probabilities.cumsum(-1)
    target = (uniforms_n * cumulative[:, -1]).unsqueeze(1)
    drawn = torch.searchsorted(cumulative, target, right=True)[:, 0]
    # Rounding may carry the target to the very end: stay on the last token with any probability.
    last = probabilities.shape[1] - 1 - (probabilities > 0).flip(1).to(torch.int8).argmax(dim=1)
    return torch.minimum(drawn, last)
