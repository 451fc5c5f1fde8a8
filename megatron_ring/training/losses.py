"""Losses that need no rollouts."""

from __future__ import annotations

import torch

from megatron_ring.data.packing import MicroBatch
from megatron_ring.model.logprobs import logprobs_and_entropy
from megatron_ring.training.trainer import LossOutput


class SFTLoss:
    """Negative log-likelihood of the response tokens; also the entropy of the model's distribution at them."""

    def __init__(self, tensor_rank: int) -> None:
        self.tensor_rank = tensor_rank

    def __call__(self, logits_tv: torch.Tensor, batch: MicroBatch) -> LossOutput:
        logprobs, entropy = logprobs_and_entropy(logits_tv, batch.targets, self.tensor_rank)
        zero = torch.zeros_like(logprobs)
        loss = -torch.where(batch.loss_mask, logprobs, zero).sum()
        entropy_sum = torch.where(batch.loss_mask, entropy, zero).sum()
        return LossOutput(loss, batch.loss_mask.sum(), sums={"loss": loss.detach(), "entropy": entropy_sum.detach()})
