"""What every policy loss is computed from: tokens with their numbers, and the constants of the loss."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_ring.algorithm.kl import KLEstimator


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
        ratio_figures: whether the ratio itself is measured.
    """

    clip_low: float
    clip_high: float
    kl_beta: float
    alpha_entropy: float
    kl_estimator: KLEstimator = "k3"
    ratio_figures: bool = False

    def __post_init__(self) -> None:
        if self.clip_low <= 0 or self.clip_high <= 0:
            raise ValueError(f"clip is {self.clip_low} below and {self.clip_high} above, both must be above 0")
