"""What all objectives share: the KL and entropy terms, the correction, and the sum of all terms over one micro-batch.

Shapes: every tensor is one value per token, [T] (any shape will do as long as all agree). Losses are SUMS. The caller
divides once by the global number of trained tokens, so any chunks, micro-batches and data-parallel ranks add up to the same
number as one batch. What tells objectives apart is in `objective`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from megatron_ring.algorithm.kl import LOG_RATIO_LIMIT, kl_estimate
from megatron_ring.algorithm.objective import Objective
from megatron_ring.algorithm.tokens import LossSettings, PolicyTokens


def policy_loss(
    objective: Objective, tokens: PolicyTokens, settings: LossSettings
) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
    """The token sum of the loss for one micro-batch or a part of it.

        loss_sum = sum_{t in mask} w_t ( -c_t s_t + beta KL_t - alpha H_t )

    with s_t the objective's surrogate, as a rule min(r_t A, clip(r_t, 1 - low, 1 + high) A), and c_t the mismatch correction
    (1 without one): it leaves the KL and entropy terms alone.

    Returns:
        loss_sum, a scalar in fp32 (float64 for float64 inputs), and metrics: detached float64 scalars on its device,
        sums over the masked tokens, to be added across micro-batches and ranks (`combine_metrics`): tokens;
        policy_loss_sum (of the surrogate, weighted as in the loss); entropy_sum; kl_sum; clipped_tokens (where clipping
        removes the gradient); corrected_away_tokens (c_t = 0); mismatch_logprob_abs_sum of |log pi_theta - sampler's|,
        and its maximum, mismatch_logprob_abs_max. With `settings.ratio_figures` ratio_sum, too, of r_t, and
        log_ratio_abs_max of |log r_t|.

    Raises:
        ValueError: kl_beta is set without ref_logprobs, or a sequence-level objective lacks sequence_log_ratio.
    """
    if settings.kl_beta != 0 and tokens.ref_logprobs is None:
        raise ValueError(f"kl_beta is {settings.kl_beta} but there are no ref_logprobs")
    mask, tokens = tokens.mask, tokens.masked()
    weights = mask.to(tokens.logprobs.dtype) if tokens.weights is None else tokens.weights
    corrections = torch.ones_like(weights) if tokens.corrections is None else tokens.corrections

    log_ratio = objective.log_ratio(tokens)
    policy_terms = -weights * corrections * objective.surrogate(log_ratio, tokens.advantages, settings)
    loss_sum = policy_terms.sum() - settings.alpha_entropy * (weights * tokens.entropy).sum()
    kl = torch.zeros_like(tokens.logprobs)
    if tokens.ref_logprobs is not None:
        kl = kl_estimate(tokens.logprobs, tokens.ref_logprobs, settings.kl_estimator)
        loss_sum = loss_sum + settings.kl_beta * (weights * kl).sum()

    sampler = tokens.old_logprobs if tokens.sampler_logprobs is None else tokens.sampler_logprobs
    mismatch = (tokens.logprobs - sampler).detach().abs()
    metrics = {
        "tokens": _total(mask),
        "policy_loss_sum": _total(policy_terms),
        "entropy_sum": _total(tokens.entropy),
        "kl_sum": _total(kl),
        "clipped_tokens": _total(objective.clipped(log_ratio, tokens.advantages, settings)),
        "corrected_away_tokens": _total(mask & (corrections == 0)),
        "mismatch_logprob_abs_sum": _total(mismatch),
        "mismatch_logprob_abs_max": torch.cat([mismatch.flatten(), mismatch.new_zeros(1)]).max().double(),
    }
    if settings.ratio_figures:
        log_ratio = torch.where(mask, log_ratio.detach(), 0.0)
        metrics["ratio_sum"] = _total(log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp() * mask)
        metrics["log_ratio_abs_max"] = torch.cat([log_ratio.abs().flatten(), mismatch.new_zeros(1)]).max().double()
    return loss_sum, metrics


def combine_metrics(parts: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Metrics of several micro-batches or ranks as one: names ending in `_max` by maximum, all others by sum."""
    combined: dict[str, Tensor] = {}
    for part in parts:
        for name, value in part.items():
            if name not in combined:
                combined[name] = value
            elif name.endswith("_max"):
                combined[name] = torch.maximum(combined[name], value)
            else:
                combined[name] = combined[name] + value
    return combined


def _total(values: Tensor) -> Tensor:
    return values.detach().sum(dtype=torch.float64)
