"""Drawing one token per sequence, reproducibly whatever the batch. Suffixes: n sequences, v vocabulary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from megatron_ring.model.logprobs import token_statistics
from megatron_ring.parallel import collectives
from megatron_ring.sampler.row_settings import RowSettings

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


def nucleus(probabilities_nv: torch.Tensor, top_p: float | torch.Tensor) -> torch.Tensor:
    """Zero all but the smallest set of most likely tokens that has `top_p` of the whole, more on a tie. Not
    renormalised.

    Args:
        top_p: for all rows, or of each [N, 1]; of a row with 1 nothing is cut.
    """
    ordered = probabilities_nv.sort(dim=-1, descending=True).values
    sums = ordered.cumsum(-1)
    kept = (sums - ordered < top_p * sums[:, -1:]).sum(-1, keepdim=True)
    least = ordered.gather(1, (kept - 1).clamp_min(0))
    if isinstance(top_p, torch.Tensor):
        least = torch.where(top_p < 1, least, 0.0)
    return torch.where(probabilities_nv >= least, probabilities_nv, 0.0)


def processed(logits_nv: torch.Tensor, rows: RowSettings) -> torch.Tensor:
    """What tokens are drawn from, float64 [N, V], not renormalised: softmax(logits / temperature), of it the top-k most
    likely, of those the nucleus (both more on a tie), of that what has at least min-p times the largest probability. The
    order of Hugging Face transformers. Greedy rows are not cut."""
    probabilities = torch.softmax(logits_nv.double() / rows.temperature[:, None], dim=-1)
    width = probabilities.shape[1]
    if not rows.cuts:
        return probabilities
    top_k, top_p, min_p = rows.top_k[:, None].long(), rows.top_p[:, None], rows.min_p[:, None]
    most = int(torch.where(top_k < width, top_k, 0).amax())
    if most:
        highest = probabilities.topk(most, dim=-1).values
        least = highest.gather(1, (top_k - 1).clamp(0, most - 1))
        least = torch.where((top_k > 0) & (top_k < width), least, 0.0)
        probabilities = torch.where(probabilities >= least, probabilities, 0.0)
    if (top_p < 1).any():
        probabilities = nucleus(probabilities, top_p)
    if (min_p > 0).any():
        least = min_p * probabilities.max(dim=-1, keepdim=True).values
        probabilities = torch.where(probabilities >= least, probabilities, 0.0)
    return probabilities


class Drawn(NamedTuple):
    """Token ids int64 [N] and their float64 [N] log-probabilities (nats) under what they were drawn from."""

    ids: torch.Tensor
    logprobs: torch.Tensor


def draw_tokens(logits_nv: torch.Tensor, uniforms_n: torch.Tensor, rows: RowSettings) -> Drawn:
    """A token for each row by inversion of the distribution function at `uniforms_n`; of greedy rows the most likely token
    (lowest id on a tie), as certain. Looks at the numbers of `rows`: for the CPU."""
    greedy = rows.greedy > 0
    if greedy.all():
        return Drawn(logits_nv.argmax(dim=-1), torch.zeros_like(uniforms_n))
    probabilities = processed(logits_nv, rows)
    cumulative = probabilities.cumsum(-1)
    whole = cumulative[:, -1:].contiguous()
    drawn = torch.searchsorted(cumulative, uniforms_n.unsqueeze(1) * whole, right=True)
    # Rounding may carry the target to the very end: stay on the last token with any probability. (The clamp is for NaN.)
    last = torch.searchsorted(cumulative, whole, right=False)
    ids = torch.minimum(drawn, last).clamp_max(probabilities.shape[1] - 1)
    found = Drawn(ids[:, 0].contiguous(), (probabilities.gather(1, ids) / whole).log()[:, 0])
    if not greedy.any():
        return found
    return Drawn(torch.where(greedy, logits_nv.argmax(dim=-1), found.ids), torch.where(greedy, 0.0, found.logprobs))


@dataclass(frozen=True)
class DrawnRows:
    """The rows of one decoding step with the token drawn for each: what columns are filled from.

    Attributes:
        logits_nv: [N, vocab], of all tensor-parallel ranks, fp32 or bf16; padded classes are minus infinity.
        settings: of each row.
        ids: int64 [N], the tokens.
        logprobs, entropies: float64 [N], of softmax(logits / temperature) (temperature 1 for greedy rows), what a training
            forward computes (nats).
        processed_logprobs: float64 [N], under what the token was drawn from.
    """

    logits_nv: torch.Tensor
    settings: RowSettings
    ids: torch.Tensor
    logprobs: torch.Tensor
    processed_logprobs: torch.Tensor
    entropies: torch.Tensor

    @property
    def logits_n(self) -> torch.Tensor:
        """[N]: the logits of the tokens."""
        return self.logits_nv.gather(1, self.ids[:, None])[:, 0]


def draw_rows(
    logits_nv: torch.Tensor,
    seeds: torch.Tensor,
    positions: torch.Tensor,
    settings: RowSettings,
    tensor_rank: int = 0,
    exact: bool = False,
) -> DrawnRows:
    """A token for each row with its numbers.

    Args:
        logits_nv: [N, vocab/TP].
        seeds, positions: int64 [N], for `uniforms`.
        exact: the numbers come out of the training forward's own kernels.
    """
    whole_nv = collectives.gather_over_tensor(logits_nv)
    if logits_nv.is_cuda:  # tensor-parallel ranks draw from the same logits in the same order
        return _draw_on_device(logits_nv, whole_nv.contiguous(), seeds, positions, settings, exact)
    drawn = draw_tokens(whole_nv, uniforms(seeds, positions), settings)
    # Sums may be in another order on the next rank; schedulers that see different tokens would wait for ever.
    collectives.broadcast_over_tensor(drawn.ids)
    first = tensor_rank * logits_nv.shape[1]
    temperature: float | torch.Tensor = settings.temperature
    if (settings.temperature == settings.temperature[0]).all():
        temperature = float(settings.temperature[0])  # the way of training, which divides by no 1
    found = token_statistics(logits_nv, drawn.ids, first, temperature)
    logprobs, kept = found.logprobs.double(), drawn.logprobs
    kept = torch.where(_is_cut(settings), kept, logprobs) if settings.cuts else logprobs
    return DrawnRows(whole_nv, settings, drawn.ids, logprobs, kept, found.entropies.double())


def _draw_on_device(
    logits_nv: torch.Tensor, whole_nv: torch.Tensor, seeds: torch.Tensor, positions: torch.Tensor, settings: RowSettings,
    exact: bool,
) -> DrawnRows:  # fmt: skip
    from megatron_ring.sampler import cut_triton, draw_triton

    least = cut_triton.least_kept(whole_nv, settings) if settings.cuts else None
    drawn, logprobs, kept, entropies = draw_triton.draw(whole_nv, seeds, positions, settings, least)
    ids = drawn.long()
    if exact:
        found = token_statistics(logits_nv, ids, 0, settings.temperature)
        logprobs, entropies = found.logprobs.double(), found.entropies.double()
        kept = torch.where(_is_cut(settings), kept, logprobs) if settings.cuts else logprobs
    return DrawnRows(whole_nv, settings, ids, logprobs, kept, entropies)


def _is_cut(rows: RowSettings) -> torch.Tensor:
    """bool [N]: whether a row's tokens are not drawn from its whole distribution."""
    return (rows.top_k > 0) | (rows.top_p < 1) | (rows.min_p > 0) | (rows.greedy > 0)
