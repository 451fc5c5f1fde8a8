"""What all objectives share: the KL and entropy terms, the correction, and the sum of all terms over one micro-batch.

Shapes: every tensor is one value per token, [T] (any shape will do as long as all agree). Losses are SUMS. The caller
divides once by the global number of trained tokens, so any chunks, micro-batches and data-parallel ranks add up to the same
number as one batch. What tells objectives apart is in `objective`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_ring.algorithm.kl import KLEstimator, kl_estimate
from megatron_ring.algorithm.objective import Objective


@dataclass(frozen=True, kw_only=True)
class PolicyTokens:
    """Some tokens of a step, [T] each. Natural logarithms. Only `logprobs` and `entropy` carry gradient.

    Attributes:
        logprobs: log pi_theta of each sampled token.
        entropy: entropy of pi_theta at each token, in nats.
        old_logprobs: log pi_old of the same tokens: the sampler's own, or recomputed before the update.
        advantages: the advantage of the response that each token belongs to.
        mask: bool, the tokens that are trained. Values elsewhere are never used: NaN and infinities are harmless there, in
            the loss and in its gradient.
        weights: `Objective.token_weights` of each token's response; None: 1.
        sampler_logprobs: as the sampler recorded them, for the mismatch metrics; None: `old_logprobs` are these.
        ref_logprobs: log pi_ref, or None when there is no reference.
        sequence_log_ratio: GSPO's detached log s of each token's response (`sequences.sequence_log_ratios`).
        corrections: weight of each token's surrogate for the sampler/trainer mismatch (`corrections`); None: 1.
    """

    logprobs: Tensor
    entropy: Tensor
    old_logprobs: Tensor
    advantages: Tensor
    mask: Tensor
    weights: Tensor | None = None
    sampler_logprobs: Tensor | None = None
    ref_logprobs: Tensor | None = None
    sequence_log_ratio: Tensor | None = None
    corrections: Tensor | None = None

    def __post_init__(self) -> None:
        for name, tensor in self._given():
            if tensor.shape != self.logprobs.shape:
                shapes = f"{tuple(tensor.shape)}, logprobs {tuple(self.logprobs.shape)}"
                raise ValueError(f"{name} is {shapes}: they must agree")
        if self.mask.dtype != torch.bool:
            raise ValueError(f"the mask is {self.mask.dtype}, must be torch.bool")

    def masked(self) -> PolicyTokens:
        """The same with 0 at every token outside the mask, in fp32 at least."""

        def keep(name: str, values: Tensor) -> Tensor:
            # Before any arithmetic: what stands at unmasked positions may be NaN or infinite, and 0 * NaN is NaN.
            values = values if name in ("logprobs", "entropy") else values.detach()
            return torch.where(self.mask, values if values.dtype == torch.float64 else values.float(), 0.0)

        given = {name: keep(name, tensor) for name, tensor in self._given() if name != "mask"}
        return dataclasses.replace(self, **given)

    def _given(self) -> list[tuple[str, Tensor]]:
        named = ((field.name, getattr(self, field.name)) for field in dataclasses.fields(self))
        return [(name, tensor) for name, tensor in named if tensor is not None]


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """Constants of the loss. Raises `ValueError` for a clip bound that is not positive.

    Attributes:
        clip_low, clip_high: the ratio's range is [1 - clip_low, 1 + clip_high].
        kl_beta: weight of the KL term to the reference.
        kl_estimator: how that KL is estimated from the sampled token.
        alpha_entropy: weight of the entropy bonus.
    """

    clip_low: float
    clip_high: float
    kl_beta: float
    alpha_entropy: float
    kl_estimator: KLEstimator = "k3"

    def __post_init__(self) -> None:
        if self.clip_low <= 0 or self.clip_high <= 0:
            raise ValueError(f"clip is {self.clip_low} below and {self.clip_high} above, both must be above 0")


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
        and its maximum, mismatch_logprob_abs_max.

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
