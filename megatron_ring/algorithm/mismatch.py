"""How far the sampler's probabilities are from the trainer's: log k of each token (`corrections`) as a histogram."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

CPU = torch.device("cpu")


@lru_cache
def ratio_edges(device: torch.device = CPU) -> Tensor:
    """Borders [274] of the histogram's bins, float64: |log k| from 1e-7 to 31.6, 16 bins a decade on either side, one bin
    around 0; its first and last bins have one border only."""
    magnitudes = 10 ** torch.linspace(-7, 1.5, 137, dtype=torch.float64)
    return torch.cat([-magnitudes.flip(0), magnitudes]).to(device)


def ratio_histogram(log_ratio: Tensor) -> Tensor:
    """How often log k (any shape, finite) falls into each of the fixed bins: int64 [275], on its device, without waiting for
    it; several ranks' add up."""
    edges = ratio_edges(log_ratio.device)
    bins = torch.bucketize(log_ratio.detach().double().flatten(), edges)
    counts = torch.zeros(len(edges) + 1, dtype=torch.int64, device=log_ratio.device)
    return counts.index_add_(0, bins, torch.ones_like(bins))


def ratio_quantiles(histogram: Tensor, quantiles: Sequence[float]) -> list[float]:
    """Quantiles of k from `ratio_histogram`, right to within 7.5 % of log k (1 for |log k| below 1e-7, and of no tokens)."""
    edges = ratio_edges()
    middle = len(edges) // 2  # the bin around 0
    centres = torch.zeros(len(edges) + 1, dtype=torch.float64)
    centres[1:middle] = -(edges[: middle - 1] * edges[1:middle]).sqrt()
    centres[middle + 1 : -1] = (edges[middle:-1] * edges[middle + 1 :]).sqrt()
    centres[0], centres[-1] = edges[0], edges[-1]
    reached = histogram.cpu().cumsum(0).double()
    if reached[-1] == 0:
        return [1.0 for _ in quantiles]
    places = torch.searchsorted(reached, torch.tensor(quantiles, dtype=torch.float64) * reached[-1])
    return centres[places].exp().tolist()
