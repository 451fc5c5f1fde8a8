"""Corrections for a sampler whose probabilities differ from the trainer's.

k_t = pi_train,old(y_t) / pi_sampler(y_t): two ways to compute the same weights' probability of the same token, so 1 in exact
arithmetic. Each correction is a weight c_t for the token's surrogate, without gradient; KL and entropy terms keep theirs.
Everything is per token, [T], with natural logarithms; log k is limited to +-LOG_RATIO_LIMIT.

A new correction is a class and a line here. Its constants are fields of `config.CorrectionConfig` of the same names. The
module imports no torch when it is loaded: the configuration reads names and defaults.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from megatron_ring.algorithm.kl import LOG_RATIO_LIMIT

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Correction(ABC):
    """From the two log-probabilities of each token to the weight of its surrogate. Its fields are its constants, with their
    defaults; `summary` is for the help of `--correction.name`."""

    summary: ClassVar[str]

    @abstractmethod
    def weights(self, train_logprobs: Tensor, sampler_logprobs: Tensor) -> Tensor:
        """c [T], 0 where the token's surrogate is dropped. The denominator of the loss still counts such tokens."""


@dataclass(frozen=True)
class TruncatedImportance(Correction):
    """c = min(k, cap): importance sampling whose large weights are cut (TIS, F. Yao et al. 2025)."""

    summary: ClassVar[str] = "weigh tokens by k, truncated"
    cap: float = 2.0

    def weights(self, train_logprobs: Tensor, sampler_logprobs: Tensor) -> Tensor:
        return _ratio(train_logprobs, sampler_logprobs).clamp(max=self.cap)


@dataclass(frozen=True)
class IcePop(Correction):
    """c = k where low <= k <= high, else 0 (IcePop, the Ring team 2025)."""

    summary: ClassVar[str] = "by k, none outside a range"
    low: float = 0.5
    high: float = 5.0

    def weights(self, train_logprobs: Tensor, sampler_logprobs: Tensor) -> Tensor:
        ratio = _ratio(train_logprobs, sampler_logprobs)
        return ratio.where((ratio >= self.low) & (ratio <= self.high), 0.0)


@dataclass(frozen=True)
class KPop(Correction):
    """c = k where max(KL(p || q), KL(q || p)) <= phi, else 0, with p and q the token's two probabilities taken as those of
    a coin (KPop, the Ring team 2026). phi in nats."""

    summary: ClassVar[str] = "by k, none whose binary KL is large"
    phi: float = 2.0

    def weights(self, train_logprobs: Tensor, sampler_logprobs: Tensor) -> Tensor:
        forward, backward = binary_kl(train_logprobs, sampler_logprobs), binary_kl(sampler_logprobs, train_logprobs)
        return _ratio(train_logprobs, sampler_logprobs).where(forward.maximum(backward) <= self.phi, 0.0)


def binary_kl(logprobs: Tensor, other_logprobs: Tensor) -> Tensor:
    """p log(p / q) + (1 - p) log((1 - p) / (1 - q)) with p = exp(logprobs), q = exp(other_logprobs), in nats.

    Probabilities above 1 - 2^-24 count as that: fp32 cannot tell them from 1, where the divergence would be infinite.
    """
    p, q = (values.clamp(max=-(2.0**-24)) for values in (logprobs, other_logprobs))
    rest_p, rest_q = ((-values.expm1()).log() for values in (p, q))
    return p.exp() * (p - q) + rest_p.exp() * (rest_p - rest_q)


def _ratio(train_logprobs: Tensor, sampler_logprobs: Tensor) -> Tensor:
    return (train_logprobs - sampler_logprobs).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()


CORRECTIONS: dict[str, type[Correction]] = {"tis": TruncatedImportance, "icepop": IcePop, "kpop": KPop}
"""By the name that `--correction.name` gives them."""
