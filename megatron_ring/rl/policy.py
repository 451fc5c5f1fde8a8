"""The parts that C3PO and GRPO share: clipped surrogate, KL estimate, and their sum over one micro-batch.

Shapes: every tensor is one value per token, [T] (any shape will do as long as all agree). The losses return SUMS. The
caller divides once by a global count, so micro-batches and data-parallel ranks add up to the same number as one batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

# exp(20) = 4.9e8: beyond it a ratio only overflows, and inf * 0 would make gradients NaN.
LOG_RATIO_LIMIT = 20.0


def clipped_surrogate(log_ratio: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """min(r A, clip(r, 1 - clip, 1 + clip) A) per token, with r = exp(log_ratio) (PPO, arXiv 1707.06347, eq. 7).

    Args:
        log_ratio: [T] log pi_theta - log pi_old, in nats; limited to +-LOG_RATIO_LIMIT.
        advantages: [T].
        clip: epsilon, above 0.
    """
    ratio = log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
    return torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)


def clipped_tokens(log_ratio: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """[T] bool: where clipping removes the surrogate's gradient (r > 1 + clip and A > 0, or r < 1 - clip and A < 0)."""
    ratio = log_ratio.detach().exp()
    return ((ratio > 1 + clip) & (advantages > 0)) | ((ratio < 1 - clip) & (advantages < 0))


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """k3 estimate of KL(pi_theta || pi_ref) per token: exp(d) - d - 1, d = log pi_ref - log pi_theta; never negative.

    Source: J. Schulman, "Approximating KL divergence" (2020); GRPO, arXiv 2402.03300, eq. 4. d is limited to
    +-LOG_RATIO_LIMIT. Inputs and result are [T], in nats.
    """
    difference = (ref_logprobs - logprobs).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return torch.expm1(difference) - difference


def policy_loss(
    logprobs: Tensor,
    *,
    old_logprobs: Tensor,
    advantages: Tensor,
    ref_logprobs: Tensor | None,
    entropy: Tensor,
    mask: Tensor,
    weights: Tensor | None,
    clip: float,
    kl_beta: float,
    alpha_entropy: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Sum over masked tokens of w * (-[min(r A, clip(r) A) - kl_beta KL] - alpha_entropy H).

    `c3po_loss` (w = 1) and `grpo_loss` document arguments, metrics and errors.
    """
    _check(logprobs, old_logprobs, advantages, ref_logprobs, entropy, mask, weights, clip, kl_beta)

    def keep(values: Tensor) -> Tensor:
        # Before any arithmetic: what stands at unmasked positions may be NaN or infinite, and 0 * NaN is NaN.
        values = values if values.dtype == torch.float64 else values.float()
        return torch.where(mask, values, 0.0)

    logprobs, entropy = keep(logprobs), keep(entropy)
    old_logprobs, advantages = keep(old_logprobs.detach()), keep(advantages.detach())
    weights = mask.to(logprobs.dtype) if weights is None else keep(weights.detach())

    log_ratio = logprobs - old_logprobs
    policy_terms = -weights * clipped_surrogate(log_ratio, advantages, clip)
    loss_sum = policy_terms.sum() - alpha_entropy * (weights * entropy).sum()
    kl = torch.zeros_like(logprobs)
    if ref_logprobs is not None:
        kl = kl_estimate(logprobs, keep(ref_logprobs.detach()))
        loss_sum = loss_sum + kl_beta * (weights * kl).sum()

    mismatch = log_ratio.detach().abs()
    metrics = {
        "tokens": _total(mask),
        "policy_loss_sum": _total(policy_terms),
        "entropy_sum": _total(entropy),
        "kl_sum": _total(kl),
        "clipped_tokens": _total(clipped_tokens(log_ratio, advantages, clip)),
        "mismatch_logprob_abs_sum": _total(mismatch),
        "mismatch_logprob_abs_max": torch.cat([mismatch.flatten(), mismatch.new_zeros(1)]).max().double(),
    }
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


def _check(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    ref_logprobs: Tensor | None,
    entropy: Tensor,
    mask: Tensor,
    weights: Tensor | None,
    clip: float,
    kl_beta: float,
) -> None:
    named = {
        "old_logprobs": old_logprobs,
        "advantages": advantages,
        "ref_logprobs": ref_logprobs,
        "entropy": entropy,
        "mask": mask,
        "weights": weights,
    }
    for name, tensor in named.items():
        if tensor is not None and tensor.shape != logprobs.shape:
            raise ValueError(f"{name} is {tuple(tensor.shape)}, logprobs {tuple(logprobs.shape)}: they must agree")
    if mask.dtype != torch.bool:
        raise ValueError(f"the mask is {mask.dtype}, must be torch.bool")
    if clip <= 0:
        raise ValueError(f"clip is {clip}, must be above 0")
    if kl_beta != 0 and ref_logprobs is None:
        raise ValueError(f"kl_beta is {kl_beta} but there are no ref_logprobs")
