"""Drawing one token per sequence, reproducibly whatever the batch. Suffixes: n sequences, v vocabulary."""

from __future__ import annotations

from typing import NamedTuple

import torch

from megatron_ring.config.sampling import SamplingConfig
from megatron_ring.model.logprobs import token_statistics
from megatron_ring.parallel import collectives

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
    """Zero all but the smallest set of most likely tokens that has `top_p` of the whole, more on a tie. Not
    renormalised."""
    ordered = probabilities_nv.sort(dim=-1, descending=True).values
    sums = ordered.cumsum(-1)
    kept = (sums - ordered < top_p * sums[:, -1:]).sum(-1, keepdim=True)
    return torch.where(probabilities_nv >= ordered.gather(1, (kept - 1).clamp_min(0)), probabilities_nv, 0.0)


def processed(logits_nv: torch.Tensor, sampling: SamplingConfig) -> torch.Tensor:
    """What tokens are drawn from, float64 [N, V], not renormalised: softmax(logits / temperature), of it the `top_k` most
    likely, of those the nucleus (both more on a tie), of that what has at least `min_p` times the largest probability. The
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


def draw_rows(
    logits_nv: torch.Tensor,
    seeds: torch.Tensor,
    positions: torch.Tensor,
    sampling: SamplingConfig,
    tensor_rank: int = 0,
    exact: bool = False,
) -> torch.Tensor:
    """A token for each row with its numbers, float64 [4, N]: token ids, then the numbers of `Sampled`. Log-probabilities and
    entropies are of softmax(logits / temperature) (temperature 1 for greedy decoding), what a training forward computes.

    Args:
        logits_nv: [N, vocab/TP].
        seeds, positions: int64 [N], for `uniforms`.
        exact: the numbers come out of the training forward's own kernels.
    """
    whole_nv = collectives.gather_over_tensor(logits_nv)
    if logits_nv.is_cuda and sampling.temperature > 0:  # tensor-parallel ranks draw from the same logits in the same order
        return _draw_on_device(logits_nv, whole_nv.contiguous(), seeds, positions, sampling, exact)
    drawn = draw_tokens(whole_nv, uniforms(seeds, positions), sampling)
    # Sums on a GPU may be in another order on the next one; schedulers that see different tokens would wait for ever.
    collectives.broadcast_over_tensor(drawn.ids)
    found = token_statistics(logits_nv, drawn.ids, tensor_rank * logits_nv.shape[1], sampling.temperature or 1.0)
    logprobs = found.logprobs.double()
    uncut = sampling.whole_distribution and sampling.temperature > 0
    return torch.stack((drawn.ids.double(), logprobs, logprobs if uncut else drawn.logprobs, found.entropies.double()))


def _draw_on_device(
    logits_nv: torch.Tensor, whole_nv: torch.Tensor, seeds: torch.Tensor, positions: torch.Tensor, sampling: SamplingConfig,
    exact: bool,
) -> torch.Tensor:  # fmt: skip
    from megatron_ring.sampler import cut_triton, draw_triton

    least, temperature = None, sampling.temperature
    if not sampling.whole_distribution:
        least = cut_triton.least_kept(whole_nv, temperature, sampling.top_k, sampling.top_p, sampling.min_p)
    ids, logprobs, kept_logprobs, entropies = draw_triton.draw(whole_nv, seeds, positions, temperature, least)
    if exact:
        found = token_statistics(logits_nv, ids.long(), 0, temperature)
        logprobs, entropies = found.logprobs.double(), found.entropies.double()
        kept_logprobs = logprobs if least is None else kept_logprobs
    return torch.stack((ids, logprobs, kept_logprobs, entropies))
