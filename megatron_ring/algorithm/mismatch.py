"""Corrections for a sampler whose probabilities differ from the trainer's, and the measure of that difference.

k_t = pi_train,old(y_t) / pi_sampler(y_t): two ways to compute the same weights' probability of the same token, so 1 in exact
arithmetic. Each correction is a weight c_t for the token's surrogate, without gradient; KL and entropy terms keep theirs.
Everything is per token, [T], with natural logarithms; log k is limited to +-LOG_RATIO_LIMIT.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from megatron_ring.algorithm.kl import LOG_RATIO_LIMIT

CPU = torch.device("cpu")


class Correction(ABC):
    """From the two log-probabilities of each token to the weight of its surrogate."""

    @abstractmethod
    def weights(self, train_logprobs: Tensor, sampler_logprobs: Tensor) -> Tensor:
        """c [T], 0 where the token's surrogate is dropped. The denominator of the loss still counts such tokens."""


@dataclass(frozen=True)
class TruncatedImportance(Correction):
    """c = min(k, cap): importance sampling whose large weights are cut (TIS, F. Yao et al. 2025)."""

    cap: float

    def weights(self, train_logprobs: Tensor, sampler_logprobs: Tensor) -> Tensor:
        return _ratio(train_logprobs, sampler_logprobs).clamp(max=self.cap)


@dataclass(frozen=True)
class IcePop(Correction):
    """c = k where low <= k <= high, else 0 (IcePop, the Ring team 2025)."""

    low: float
    high: float

    def weights(self, train_logprobs: Tensor, sampler_logprobs: Tensor) -> Tensor:
        ratio = _ratio(train_logprobs, sampler_logprobs)
        return torch.where((ratio >= self.low) & (ratio <= self.high), ratio, 0.0)


@dataclass(frozen=True)
class KPop(Correction):
    """c = k where max(KL(p || q), KL(q || p)) <= phi, else 0, with p and q the token's two probabilities taken as those of
    a coin (KPop, the Ring team 2026). phi in nats."""

    phi: float

    def weights(self, train_logprobs: Tensor, sampler_logprobs: Tensor) -> Tensor:
        worst = torch.maximum(
            binary_kl(train_logprobs, sampler_logprobs), binary_kl(sampler_logprobs, train_logprobs)
        )  # fmt: skip
        return torch.where(worst <= self.phi, _ratio(train_logprobs, sampler_logprobs), 0.0)


def binary_kl(logprobs: Tensor, other_logprobs: Tensor) -> Tensor:
    """p log(p / q) + (1 - p) log((1 - p) / (1 - q)) with p = exp(logprobs), q = exp(other_logprobs), in nats.

    Probabilities above 1 - 2^-24 count as that: fp32 cannot tell them from 1, where the divergence would be infinite.
    """
    p, q = (values.clamp(max=-(2.0**-24)) for values in (logprobs, other_logprobs))
    rest_p, rest_q = (torch.log(-torch.expm1(values)) for values in (p, q))
    return p.exp() * (p - q) + rest_p.exp() * (rest_p - rest_q)


def _ratio(train_logprobs: Tensor, sampler_logprobs: Tensor) -> Tensor:
    return (train_logprobs - sampler_logprobs).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()


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
