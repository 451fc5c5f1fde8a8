"""The RL loss on the training step's side: an objective of room rl/ over a part of a micro-batch's tokens."""

from __future__ import annotations

import torch

from megatron_ring.data.packing import PolicyBatch
from megatron_ring.rl.policy import LossSettings, Objective, PolicyTokens
from megatron_ring.training.trainer import LossOutput


class PolicyLoss:
    """An objective's loss; figures are sums over trained tokens."""

    def __init__(self, objective: Objective, settings: LossSettings, temperature: float) -> None:
        self.objective, self.settings, self.temperature = objective, settings, temperature

    def __call__(self, logprobs: torch.Tensor, entropies: torch.Tensor, batch: PolicyBatch) -> LossOutput:
        tokens = PolicyTokens(
            logprobs=logprobs,
            entropy=entropies,
            old_logprobs=batch.sampler_logprobs,
            advantages=batch.advantages,
            mask=batch.loss_mask,
            weights=batch.weights,
            ref_logprobs=batch.ref_logprobs,
        )
        loss, figures = self.objective.loss(tokens, self.settings)
        maxima = {"mismatch_logprob_abs_max": figures.pop("mismatch_logprob_abs_max")}
        return LossOutput(loss, sums=figures, maxima=maxima)
