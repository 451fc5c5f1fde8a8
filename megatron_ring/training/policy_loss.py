"""The RL loss on the training step's side: the objective of room rl/ over a micro-batch's tokens."""

from __future__ import annotations

from typing import Any, Literal

import torch

from megatron_ring.data.packing import PolicyBatch
from megatron_ring.rl.c3po import c3po_loss
from megatron_ring.rl.grpo import grpo_loss
from megatron_ring.training.trainer import LossOutput

Objective = Literal["c3po", "grpo"]


class PolicyLoss:
    """C3PO's or GRPO's loss of one micro-batch; figures are sums over trained tokens."""

    def __init__(
        self,
        objective: Objective,
        temperature: float,
        clip: float,
        kl_beta: float,
        alpha_entropy: float,
    ) -> None:
        self.objective, self.temperature = objective, temperature
        self.settings: dict[str, Any] = {"clip": clip, "kl_beta": kl_beta, "alpha_entropy": alpha_entropy}

    def __call__(self, logprobs: torch.Tensor, entropies: torch.Tensor, batch: PolicyBatch) -> LossOutput:
        inputs: dict[str, Any] = {
            "old_logprobs": batch.sampler_logprobs,
            "advantages": batch.advantages,
            "ref_logprobs": batch.ref_logprobs,
            "entropy": entropies,
            "mask": batch.loss_mask,
        }
        if self.objective == "c3po":
            loss, figures = c3po_loss(logprobs, **inputs, **self.settings)
        else:
            loss, figures = grpo_loss(logprobs, **inputs, weights=batch.weights, **self.settings)
        maxima = {"mismatch_logprob_abs_max": figures.pop("mismatch_logprob_abs_max")}
        return LossOutput(loss, sums=figures, maxima=maxima)
