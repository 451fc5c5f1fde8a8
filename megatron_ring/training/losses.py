"""Losses that need no rollouts."""

from __future__ import annotations

import torch

from megatron_ring.data.packing import MicroBatch
from megatron_ring.training.loss_output import LossOutput


class SFTLoss:
    """Negative log-likelihood of the response tokens; also the entropy of the model's distribution at them."""

    temperature = 1.0

    def __call__(self, logprobs: torch.Tensor, entropies: torch.Tensor, batch: MicroBatch) -> LossOutput:
        loss = -logprobs.sum()
        return LossOutput(loss, sums={"loss": loss.detach(), "entropy": entropies.detach().sum()})
