"""Estimates of KL(pi_theta || pi_ref) from the sampled tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

KLEstimator = Literal["k1", "k2", "k3"]

# exp(20) = 4.9e8: beyond it a ratio only overflows, and inf * 0 would make gradients NaN.
LOG_RATIO_LIMIT = 20.0


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, estimator: KLEstimator = "k3") -> Tensor:
    """Per-token estimate with d = log pi_ref - log pi_theta, limited to +-LOG_RATIO_LIMIT; inputs and result [T], in nats.

        k1 = -d               unbiased, of either sign. Its gradient has mean 0: as a term of the loss it only adds noise.
        k2 = d^2 / 2          biased, never negative. Its gradient is, on policy, an unbiased one of the KL.
        k3 = exp(d) - d - 1   unbiased, never negative; GRPO's (arXiv 2402.03300, eq. 4). Its gradient is, on policy, that of
                              the KL the other way round.

    Source: J. Schulman, "Approximating KL divergence" (2020).
    """
    difference = (ref_logprobs - logprobs).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    if estimator == "k1":
        return -difference
    if estimator == "k2":
        return difference.square() / 2
    return difference.expm1() - difference
